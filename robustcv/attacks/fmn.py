"""FMN: gradient steps projected to a ball whose radius follows the boundary."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.climb import chosen, gradient_at
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import NORMS, NormName, l2_ascend
from robustcv.classifier import rows_in_play

LAST = 6  # forward passes on the way back to the image


def fmn(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    nearest_of: int = 9,
    step_size: float = 1.0,
    gamma: float = 0.05,
) -> Float[Tensor, "n c h w"]:
    """Shrink the ball where the candidate fools, let it reach the linearised boundary where not (Pintor et al. 2021).

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    targets
        Classes to reach; None moves away from the label.
    seeds
        Not used: the attack is deterministic.
    steps
        Gradient steps: one forward and one backward pass each.
    nearest_of
        How many of the likeliest wrong classes the start considers: one backward pass each.
    step_size
        L2 length of the first step; annealed to a hundredth.
    gamma
        Share by which the radius shrinks or grows; annealed to a fiftieth.

    Returns
    -------
    Tensor
        Images in [0, 1], near to the clean ones where they fool; the clean ones where nothing was found.
    """
    nearest = Nearest(images, norm)
    current = nearest.first(classifier, labels, targets, nearest_of)
    radius = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    for step in range(steps):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        cooling = (1 + math.cos(math.pi * step / steps)) / 2
        rate, size = gamma * (0.02 + 0.98 * cooling), step_size * (0.01 + 0.99 * cooling)
        candidates, clean = current[rows], images[rows]
        gradient, margins, logits = gradient_at(classifier, candidates, labels[rows], chosen(targets, rows), "margin")
        fools = nearest.offer(rows, candidates, logits, labels, targets)
        radius[rows] = _radius(
            radius[rows], fools, nearest.distance[rows], NORMS[norm].distance(candidates, clean), margins, gradient,
            norm, rate,
        )  # fmt: skip
        moved = candidates + size * l2_ascend(gradient)
        current[rows] = NORMS[norm].project(moved, clean, radius[rows])
    nearest.approach(classifier, labels, targets, LAST)
    return nearest.images


DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def _radius(
    radius: Tensor,
    fools: Tensor,
    nearest: Tensor,
    distance: Tensor,
    margins: Tensor,
    gradient: Tensor,
    norm: NormName,
    rate: float,
) -> Tensor:
    """Shrink where the candidate fools; elsewhere go to the linearised boundary until one was found, then grow."""
    shrunk = torch.minimum(radius, nearest) * (1 - rate)
    if norm == "l0":
        to_go = torch.full_like(distance, torch.inf)
        shrunk, grown = (
            torch.minimum(radius - 1, shrunk).floor(),
            torch.maximum(radius + 1, radius * (1 + rate)).floor(),
        )
    else:
        to_go = -margins / torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm], dim=1).clamp_min(1e-30)
        grown = radius * (1 + rate)
    onwards = torch.where(nearest.isinf(), (distance + to_go) * (1 + rate), grown)
    return torch.where(fools, shrunk, onwards).clamp_min(0)
