"""Spatial: rotate and shift the picture, by trying a grid or by following the gradient."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws
from robustcv.attacks.climb import Best, chosen
from robustcv.attacks.losses import margin
from robustcv.classifier import rows_in_play


def spatial(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    degrees: float = 30.0,
    shift: float = 0.1,
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    search: Literal["grid", "gradient"] = "grid",
    angles: int = 31,
    places: int = 5,
    steps: int = 20,
) -> Float[Tensor, "n c h w"]:
    """Search rotations and shifts for one that fools (Engstrom et al. 2019, section 3).

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    degrees
        Largest rotation, either way.
    shift
        Largest shift along each axis, either way, as a share of the side. What comes in from outside is black.
    targets
        Classes to reach; None moves away from the label.
    seeds
        One per image, for the gradient's random start; None uses the position in the batch.
    search
        ``grid`` tries ``angles * places**2`` of them, smallest change first; ``gradient`` climbs the margin.
    angles, places
        Size of the grid.
    steps
        Steps of the gradient search: one forward and one backward pass each.

    Returns
    -------
    Tensor
        Rotated and shifted images in [0, 1].
    """
    best = Best(images)
    if search == "gradient":
        _climb(classifier, images, labels, targets, seeds, best, degrees, shift, steps)
        return best.images
    turns = torch.linspace(-degrees, degrees, angles).tolist() if angles > 1 else [0.0]
    moves = torch.linspace(-shift, shift, places).tolist() if places > 1 else [0.0]
    grid = [(turn, down, across) for turn in turns for down in moves for across in moves]
    grid.sort(key=lambda each: abs(each[0]) / max(degrees, 1e-9) + (abs(each[1]) + abs(each[2])) / max(shift, 1e-9))
    with torch.no_grad():
        for turn, down, across in grid:
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                break
            pose = torch.tensor([turn, down, across]).to(images).expand(len(rows), 3)
            candidates = moved(images[rows], pose)
            logits = classifier(candidates)
            best.offer(rows, candidates, margin(logits, labels[rows], chosen(targets, rows)), logits, labels, targets)
    return best.images


def moved(images: Float[Tensor, "n c h w"], pose: Float[Tensor, "n 3"]) -> Float[Tensor, "n c h w"]:
    """Rotate by degrees, then shift down and across by shares of the side; differentiable in the pose."""
    h, w = images.shape[-2:]
    angle = pose[:, 0] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # from places in the new picture to places in the old one, in units of half a side
    ratio = h / w
    down, across = 2 * pose[:, 1], 2 * pose[:, 2]
    rows = [
        torch.stack([cos, sin * ratio, -cos * across - sin * ratio * down], 1),
        torch.stack([-sin / ratio, cos, sin / ratio * across - cos * down], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _climb(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    seeds: Tensor | None,
    best: Best,
    degrees: float,
    shift: float,
    steps: int,
) -> None:
    """Follow the sign of the margin's gradient in the pose, from a random one."""
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    limits = torch.tensor([degrees, shift, shift]).to(images)
    pose = limits * (2 * draws.uniform(seeds, (3,)).to(images) - 1)
    for step in range(steps):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        here = pose[rows].requires_grad_()
        candidates = moved(images[rows], here)
        logits = classifier(candidates)
        gains = margin(logits, labels[rows], chosen(targets, rows))
        (slope,) = torch.autograd.grad(gains.sum(), here)
        best.offer(rows, candidates.detach(), gains.detach(), logits.detach(), labels, targets)
        size = 0.5 * limits * (1 - step / steps)
        pose[rows] = torch.minimum(torch.maximum(here.detach() + size * slope.sign(), -limits), limits)
