"""DDN: the direction from the gradient, the length from whether the last candidate fooled."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.climb import chosen, gradient_at
from robustcv.attacks.losses import Loss
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import l2_ascend
from robustcv.classifier import rows_in_play

LAST = 6  # forward passes on the way back to the image


def ddn(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    norm: Literal["l2"] = "l2",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    nearest_of: int = 9,
    gamma: float = 0.05,
    loss: Loss = "margin",
) -> Float[Tensor, "n c h w"]:
    """Grow or shrink the change by a factor, depending on whether it fools (Rony et al. 2019, algorithm 1).

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    norm
        ``l2``.
    targets
        Classes to reach; None moves away from the label.
    seeds
        Not used: the attack is deterministic.
    steps
        Gradient steps: one forward and one backward pass each.
    nearest_of
        How many of the likeliest wrong classes the start considers: one backward pass each.
    gamma
        The length grows by ``1 + gamma`` or shrinks by ``1 - gamma``; annealed to a tenth towards the end.
    loss
        What gives the direction; the margin's direction is exact on a linear model, cross-entropy's is a mixture.

    Returns
    -------
    Tensor
        Images in [0, 1], near to the clean ones where they fool; the clean ones where nothing was found.
    """
    nearest = Nearest(images, norm)
    change = nearest.first(classifier, labels, targets, nearest_of) - images
    length = change.flatten(1).norm(dim=1)
    for step in range(steps):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        cooling = (1 + math.cos(math.pi * step / steps)) / 2
        candidates = images[rows] + change[rows]
        gradient, _, logits = gradient_at(classifier, candidates, labels[rows], chosen(targets, rows), loss)
        fools = nearest.offer(rows, candidates, logits, labels, targets)
        rate = gamma * (0.1 + 0.9 * cooling)
        if step > 0:
            length[rows] *= torch.where(fools, 1 - rate, 1 + rate)
        pushed = l2_ascend(change[rows] + length[rows, None, None, None] * (0.01 + cooling) * l2_ascend(gradient))
        change[rows] = (images[rows] + length[rows, None, None, None] * pushed).clamp(0, 1) - images[rows]
    nearest.approach(classifier, labels, targets, LAST)
    return nearest.images
