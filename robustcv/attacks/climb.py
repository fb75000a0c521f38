"""What gradient attacks share: the loss and its gradient at some images, and the best candidate so far."""

from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.losses import LOSSES, Loss, margin


def gradient_at(
    classifier: nn.Module,
    candidates: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    targets: Int64[Tensor, " n"] | None,
    loss: Loss,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """Compute gradient, loss and logits with one forward and one backward pass; zero where a gradient is not finite."""
    candidates = candidates.detach().requires_grad_()
    logits = classifier(candidates).to(candidates.dtype)
    losses = LOSSES[loss](logits, labels, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), candidates)
    return gradient.nan_to_num(0.0, 0.0, 0.0), losses.detach(), logits.detach()


Given = TypeVar("Given")


def chosen(values: Given, rows: Int64[Tensor, " m"]) -> Given:
    """Take some rows of what is given for each image; None, one number for all, or all rows, stays what it is."""
    if not isinstance(values, Tensor) or len(rows) == len(values):  # rows are in order, so all of them are the whole
        return values
    return cast(Given, values[rows])


class Best:
    """Remembers each image's best candidate: one that fools the classifier, then the one with the highest loss.

    Parameters
    ----------
    images
        What is kept where no candidate was ever offered.
    """

    def __init__(self, images: Float[Tensor, "n c h w"]) -> None:
        self.images = images.clone()
        self.loss = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        self.fools = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def offer(
        self,
        rows: Int64[Tensor, " m"],
        candidates: Float[Tensor, "m c h w"],
        losses: Float[Tensor, " m"],
        logits: Float[Tensor, "m k"],
        labels: Int64[Tensor, " n"],
        targets: Int64[Tensor, " n"] | None,
    ) -> None:
        """Take over the candidates of some rows where they are better."""
        fools = margin(logits, labels[rows], chosen(targets, rows)) > 0
        better = (fools & ~self.fools[rows]) | ((fools == self.fools[rows]) & (losses > self.loss[rows]))
        places = rows[better]
        self.images[places] = candidates[better]
        self.loss[places], self.fools[places] = losses[better].to(self.loss), fools[better]
