"""FAB: steps to the linearised boundary, pulled back towards the image."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.halfspace import cross
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import NORMS
from robustcv.attacks.targeting import towards_each
from robustcv.classifier import rows_in_play

LAST = 2  # forward passes on the way back to the image, after each run


def fab(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    norm: Literal["linf", "l2", "l1"] = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    towards: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    classes: int = 9,
    pull: float = 0.1,
    overshoot: float = 0.05,
    backward: float = 0.9,
) -> Float[Tensor, "n c h w"]:
    """Find a near candidate across the boundary to each wrong class (Croce and Hein 2020, "FAB", alg. 1).

    Each step crosses the linearised boundary from where it is and from the clean image, and goes between the two;
    a candidate that fools is pulled back towards the image.

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    norm
        ``linf``, ``l2`` or ``l1``.
    targets
        Classes whose boundary is sought; None tries the likeliest wrong ones.
    towards
        Classes to go towards in one run, while any wrong answer is a success: how a caller takes the classes in turn.
    seeds
        Not used: the attack is deterministic.
    steps
        Steps towards each class: two forward and one backward pass each.
    classes
        How many wrong classes, at most all of them.
    pull
        Largest weight of the crossing from the clean image.
    overshoot
        How much further than the linearised boundary, as a share.
    backward
        Share of the change that is left after pulling a fooling candidate back.

    Returns
    -------
    Tensor
        Images in [0, 1], near to the clean ones where they fool; the clean ones where nothing was found.
    """
    nearest = Nearest(images, norm)

    def run(wanted: Tensor, rank: int) -> Tensor:
        last = _run(classifier, images, labels, wanted, targets, nearest, steps, pull, 1 + overshoot, backward)
        nearest.approach(classifier, labels, targets, LAST, others=last)
        return nearest.images.clone()

    towards_each(classifier, images, labels, targets, towards, classes, run)
    return nearest.images


def _run(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    wanted: Tensor,
    targets: Tensor | None,
    nearest: Nearest,
    steps: int,
    pull: float,
    further: float,
    backward: float,
) -> Tensor:
    """Go towards one class; what fools is offered to ``nearest``, the last iterates are returned."""
    norm = nearest.norm
    current = images.clone()
    for _ in range(steps):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        clean, here = images[rows], current[rows].requires_grad_()
        logits = classifier(here)
        behind = (logits.gather(1, labels[rows, None]) - logits.gather(1, wanted[rows, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(behind.sum(), here)
        here, way = here.detach(), -gradient.nan_to_num(0.0, 0.0, 0.0)
        behind = behind.detach().nan_to_num(0.0, 0.0, 0.0)
        from_here = cross(here, way, behind, norm)
        from_clean = cross(clean, way, behind + (way * (here - clean)).flatten(1).sum(1), norm)
        a, b = (NORMS[norm].distance(x, torch.zeros_like(x)).clamp_min(1e-8) for x in (from_here, from_clean))
        weight = (a / (a + b)).clamp(0, pull).to(images.dtype)[:, None, None, None]
        moved = (here + further * from_here) * (1 - weight) + (clean + further * from_clean) * weight
        current[rows] = moved.clamp(0, 1)
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        with torch.no_grad():
            fools = nearest.offer(rows, current[rows], classifier(current[rows]), labels, targets)
        back = rows[fools]
        current[back] = images[back] + backward * (current[back] - images[back])
    return current
