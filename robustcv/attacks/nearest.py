"""What minimum-norm attacks share: the nearest fooling candidate so far, and its last approach to the boundary."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.climb import chosen
from robustcv.attacks.halfspace import nearest_crossing
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import NORMS, NormName
from robustcv.classifier import rows_in_play


class Nearest:
    """Remembers each image's nearest candidate that fools the classifier; its clean image until there is one."""

    def __init__(self, images: Float[Tensor, "n c h w"], norm: NormName) -> None:
        self.clean, self.norm = images, norm
        self.images = images.clone()
        self.distance = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)

    def offer(
        self,
        rows: Int64[Tensor, " m"],
        candidates: Float[Tensor, "m c h w"],
        logits: Float[Tensor, "m k"],
        labels: Int64[Tensor, " n"],
        targets: Int64[Tensor, " n"] | None,
    ) -> Tensor:
        """Take over the candidates that fool and are nearer; says which rows fool."""
        fools = margin(logits.detach(), labels[rows], chosen(targets, rows)) > 0
        distance = NORMS[self.norm].distance(candidates, self.clean[rows])
        better = fools & (distance < self.distance[rows])
        self.images[rows[better]], self.distance[rows[better]] = candidates[better], distance[better]
        return fools

    def first(
        self,
        classifier: nn.Module,
        labels: Int64[Tensor, " n"],
        targets: Int64[Tensor, " n"] | None,
        nearest_of: int,
    ) -> Float[Tensor, "n c h w"]:
        """Cross the nearest linearised boundary, 2 % too far: a start from which the nearest class is the next one.

        Costs a forward pass, and a backward pass for each of the likeliest wrong classes.
        """
        start = self.clean.clone()
        rows = rows_in_play(classifier, self.clean)
        if len(rows) == 0:
            return start
        here = self.clean[rows].requires_grad_()
        logits = classifier(here)
        step = nearest_crossing(here, logits, labels[rows], chosen(targets, rows), nearest_of, self.norm)
        self.offer(rows, here.detach(), logits, labels, targets)
        start[rows] = (here.detach() + 1.02 * step).clamp(0, 1)
        return start

    def approach(
        self,
        classifier: nn.Module,
        labels: Int64[Tensor, " n"],
        targets: Int64[Tensor, " n"] | None,
        passes: int,
        others: Float[Tensor, "n c h w"] | None = None,
    ) -> None:
        """Halve the way between the clean image and its nearest candidate, again and again.

        Parameters
        ----------
        passes
            Forward passes spent on each image.
        others
            Where to look along instead for images that have no candidate yet.
        """
        reach = self.images if others is None else torch.where(_wide(self.distance.isinf()), others, self.images)
        low, high = (torch.full_like(self.distance, value, dtype=reach.dtype) for value in (0.0, 1.0))
        for _ in range(passes):
            rows = rows_in_play(classifier, self.clean)
            if len(rows) == 0:
                return
            middle = (low[rows] + high[rows]) / 2
            candidates = torch.lerp(self.clean[rows], reach[rows], _wide(middle))
            with torch.no_grad():
                fools = self.offer(rows, candidates, classifier(candidates), labels, targets)
            high[rows], low[rows] = torch.where(fools, middle, high[rows]), torch.where(fools, low[rows], middle)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
