"""The one contract: a classifier takes images in [0, 1] and gives logits; `frozen` and `Tracked` are how it is used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import runtime


class Classifier(nn.Module):
    """Map images `n c h w` in [0, 1] to logits `n k`; resizing and normalisation happen inside.

    Parameters
    ----------
    network
        Takes normalised images, gives logits (not probabilities).
    mean, std
        Per channel, in units of [0, 1]; kept as buffers, so that they move and are saved with the weights.
    size
        Height and width the network wants; images of another size are resized (bilinear, antialiased). None: as given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute logits; differentiable in the images."""
        logits: Tensor = self.network((self.resized(images) - self.mean) / self.std)
        return logits

    def resized(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Bring images to the size that the network wants; bilinear, antialiased, kept in [0, 1]."""
        if self.size is None or tuple(images.shape[-2:]) == self.size:
            return images
        return functional.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False).clamp(
            0, 1
        )


@contextmanager
def frozen(classifier: nn.Module) -> Iterator[nn.Module]:
    """Put a classifier in eval mode without parameter gradients, and leave it as it was found.

    Every submodule's mode and every parameter's `requires_grad` are restored, also after an exception. Freezing the
    parameters means that backward passes compute input gradients only.
    """
    modes = [(module, module.training) for module in classifier.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    try:
        classifier.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield classifier
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def right(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Tell which answers are right; one with a logit that is not finite never is."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def logits_and_slope(module: nn.Module, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    """Compute logits, and the input gradient of a weighted sum of them: what two forms of a classifier must share."""
    points = images.clone().requires_grad_()
    logits = module(points)
    weights = torch.linspace(-1, 1, logits.shape[1]).to(logits)
    (slope,) = torch.autograd.grad((logits * weights).sum(), points)
    return logits.detach(), slope


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether some layer normalises over a batch, so that its images see each other in training."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def to_eight_bit(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Round candidates to multiples of 1/255, towards the images, so that no norm grows; gradients pass unchanged."""
    steps, slack = candidates.detach() * 255, 1e-3  # float32 holds 3/255 as a little less
    rounded = torch.where(candidates > images, (steps + slack).floor(), (steps - slack).ceil()) / 255
    return rounded + (candidates - candidates.detach())


Judge = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Confirm = Callable[[Tensor, Tensor], Tensor]


class Tracked(nn.Module):
    """A classifier for one block of images that counts, remembers and stops, so that attacks need not.

    It counts forward and backward passes per image, keeps each image's best candidate, and holds the mask of images
    still in play. An attack asks `rows_in_play` at the top of each step and queries exactly those rows, in order; one
    that never asks queries all images each time, and pays for them.

    Parameters
    ----------
    classifier
        The classifier under attack.
    images
        The block's clean images, `n c h w`.
    judge
        ``judge(candidates, logits, rows) -> (broken, score)``: the caller's success rule (candidates outside the ball
        are not successes) and how close each candidate is to success (lower is closer, below 0 when broken).
    eight_bit
        Round every candidate to 8 bits, towards its image, before it is asked about, judged and kept.
    confirm
        ``confirm(candidates, rows) -> broken``, for a classifier that is only nearly the one meant: asked at once
        about what ``judge`` calls broken, for one more forward pass of each; what it denies stays in play.
    """

    def __init__(
        self,
        classifier: nn.Module,
        images: Float[Tensor, "n c h w"],
        judge: Judge,
        *,
        eight_bit: bool = False,
        confirm: Confirm | None = None,
    ) -> None:
        super().__init__()
        self.eight_bit = eight_bit
        self.confirm = confirm
        self.classifier = classifier
        self.samples = int(getattr(classifier, "samples", 1))  # an averaging wrapper spends more passes on a query
        self.judge = judge
        n = len(images)
        self.images = images
        self.best = images.clone()
        self.best_score = torch.full((n,), torch.inf, dtype=images.dtype, device=images.device)
        self.in_play: Bool[Tensor, " n"] = torch.ones(n, dtype=torch.bool, device=images.device)
        self.aside: Bool[Tensor, " n"] = torch.zeros_like(self.in_play)
        self.denied: Bool[Tensor, " n"] = torch.zeros_like(self.in_play)
        self.forwards: Int64[Tensor, " n"] = torch.zeros(n, dtype=torch.int64, device=images.device)
        self.backwards: Int64[Tensor, " n"] = torch.zeros(n, dtype=torch.int64, device=images.device)
        self._asked: Tensor | None = None

    @property
    def broken(self) -> Bool[Tensor, " n"]:
        """Which images some candidate has broken."""
        return ~(self.in_play | self.aside)

    def rows(self) -> Int64[Tensor, " m"]:
        """Give the rows still in play, and remember that the next query is about them."""
        self._asked = self.in_play.nonzero().squeeze(1)
        return self._asked

    def doubt(self, confirmed: Bool[Tensor, " n"], close: Bool[Tensor, " n"]) -> bool:
        """Put back in play, alone, images whose success was denied, at once or later, and those that stood narrowly.

        Parameters
        ----------
        confirmed
            The images whose success a second forward pass confirmed.
        close
            Images to try once more where they still stand.

        Returns
        -------
        bool
            Whether there are any.
        """
        denied = (self.broken & ~confirmed) | (self.denied & self.in_play)
        doubtful = denied | (close & self.in_play)
        self.aside |= self.in_play & ~doubtful
        self.in_play = doubtful.clone()
        self.denied.zero_()
        self.best_score[denied] = torch.inf
        return bool(doubtful.any())

    def forward(self, candidates: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        """Query the classifier about the rows asked for last."""
        rows = torch.arange(len(self.images), device=candidates.device) if self._asked is None else self._asked
        if len(rows) != len(candidates):
            raise RuntimeError(
                f"Tracked: {len(rows)} rows are in play but {len(candidates)} images were queried; call "
                "rows_in_play(classifier, images) at the top of each step and query exactly those rows"
            )
        candidates = to_eight_bit(candidates, self.images[rows]) if self.eight_bit else candidates
        logits = self._logits(candidates).to(candidates.dtype)
        self.forwards[rows] += self.samples
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(rows))
        with torch.no_grad():
            broken, score = self.judge(candidates.detach(), logits.detach(), rows)
            if self.confirm is not None and broken.any():
                broken, score = self._confirmed(self.confirm, candidates.detach(), rows, broken, score)
            better = (score < self.best_score[rows]) | (broken & self.in_play[rows])
            self.best[rows[better]] = candidates.detach()[better]
            self.best_score[rows[better]] = score[better].to(self.best_score.dtype)
            self.in_play[rows[broken]] = self.aside[rows[broken]] = False  # an attack may ask about all, always
        return logits

    def _logits(self, candidates: Tensor) -> Tensor:
        """Ask in parts that a processor's cache can hold; the backward pass goes part by part, too."""
        if candidates.device.type != "cpu" or len(candidates) <= runtime.at_a_time(candidates.device):
            logits: Tensor = self.classifier(candidates)
            return logits
        return torch.cat([self.classifier(part) for part in candidates.split(runtime.at_a_time(candidates.device))])

    def _confirmed(
        self, confirm: Confirm, candidates: Tensor, rows: Tensor, broken: Tensor, score: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep the successes that the classifier meant shares; the others count as on the verge."""
        asked = broken.nonzero().squeeze(1)
        shared = broken.clone()
        shared[asked] = confirm(candidates[asked], rows[asked])
        self.forwards[rows[asked]] += self.samples
        self.denied[rows] |= broken & ~shared
        return shared, torch.where(broken & ~shared, score.clamp_min(0), score)

    def _count_backward(self, rows: Tensor) -> None:
        self.backwards[rows] += self.samples


class Counted(nn.Module):
    """Counts passes over all images together, for methods whose queries cannot be told apart by image.

    Where memory does not suffice for a forward pass alone, it goes on in halves.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.samples = int(getattr(classifier, "samples", 1))
        self.forwards = self.backwards = 0

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Query the classifier."""
        if torch.is_grad_enabled() or len(images) == 0:
            logits: Tensor = self.classifier(images)
        else:
            logits = torch.cat(runtime.in_chunks(lambda some: self.classifier(images[some]), len(images), len(images)))
        self.forwards += len(images) * self.samples
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient) * self.samples


def rows_in_play(classifier: nn.Module, images: Float[Tensor, "n c h w"]) -> Int64[Tensor, " m"]:
    """Give the rows an attack should query now: those still in play, or all of them for a plain module."""
    if isinstance(classifier, Tracked):
        return classifier.rows()
    return torch.arange(len(images), device=images.device)
