"""Adversarial patch: one sticker for all images, or one for each, anywhere on the picture."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws
from robustcv.attacks.losses import margin
from robustcv.classifier import rows_in_play
from robustcv.errors import UserError

Shape = Literal["square", "round"]


def train_patch(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    size: float = 0.3,
    shape: Shape = "square",
    target: int | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    degrees: float = 20.0,
    scale: float = 0.1,
    steps: int = 200,
    step_size: float = 0.05,
    batch_size: int = 64,
    resolution: int | None = None,
) -> Float[Tensor, "c p p"]:
    """Train one patch on many images, each time elsewhere, turned and scaled (Brown et al. 2017, equation 1).

    Train it on training images; what it does is judged on others (`apply_patch`).

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Images in [0, 1] and their true classes. Images of the target class take no part.
    size
        Side of the patch as a share of the shorter side of the image.
    shape
        ``square`` or ``round``.
    target
        Class that every image shall be taken for; None: any wrong one.
    seeds
        One per image, for the places; None uses the position.
    degrees, scale
        Largest rotation either way, and largest share by which the side grows or shrinks.
    steps
        Gradient steps, each on one batch: one forward and one backward pass an image.
    step_size
        Length of a signed step, in units of [0, 1]; falls to a tenth.
    batch_size
        Images a step.
    resolution
        Pixels along the side of the patch; None: as many as it covers.

    Returns
    -------
    Tensor
        The patch, in [0, 1]; the corners of a round one are never shown.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    if target is not None:
        images, labels, seeds = images[labels != target], labels[labels != target], seeds[labels != target]
        if len(images) == 0:
            raise UserError(
                "RCV-E008",
                f"patch.target={target} cannot be used",
                "every image it would be trained on is of that class",
                "choose another target",
            )
    pixels = resolution or max(2, round(size * min(images.shape[-2:])))
    patch = torch.full((images.shape[1], pixels, pixels), 0.5, dtype=images.dtype, device=images.device)
    momentum = torch.zeros_like(patch)
    for step in range(steps):
        rows = torch.arange(step * batch_size, (step + 1) * batch_size, device=images.device) % len(images)
        rows = rows[: len(images)]
        here = patch.clone().requires_grad_()
        shown = apply_patch(
            images[rows], here, seeds=seeds[rows], size=size, shape=shape, degrees=degrees, scale=scale, stream=step
        )
        wanted = None if target is None else torch.full_like(labels[rows], target)
        gain = margin(classifier(shown), labels[rows], wanted).clamp_max(5.0)  # enough is enough for one image
        (slope,) = torch.autograd.grad(gain.mean(), here)
        momentum = 0.9 * momentum + slope / slope.abs().mean().clamp_min(1e-30)
        patch = (patch + step_size * (1 - 0.9 * step / steps) * momentum.sign()).clamp(0, 1)
    return patch


def apply_patch(
    images: Float[Tensor, "n c h w"],
    patch: Float[Tensor, "*n c p p"],
    *,
    seeds: Int64[Tensor, " n"],
    size: float = 0.3,
    shape: Shape = "square",
    degrees: float = 20.0,
    scale: float = 0.1,
    stream: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Put a patch on every image, at a place, angle and scale drawn from its seed; differentiable in the patch.

    Parameters
    ----------
    patch
        One for all images, or one for each.
    size, shape, degrees, scale
        As in `train_patch`.
    stream
        Another stream draws other places for the same seeds.
    """
    h, w = images.shape[-2:]
    drawn = draws.uniform(seeds, (4,), stream).to(images)
    angle = (2 * drawn[:, 0] - 1) * degrees * (math.pi / 180)
    half = size * min(h, w) * (1 + (2 * drawn[:, 1] - 1) * scale) / 2  # in pixels of the image
    reach = half * (angle.cos().abs() + angle.sin().abs() if shape == "square" else 1.0)
    x = torch.where(2 * reach < w, reach + drawn[:, 2] * (w - 2 * reach), w / 2)  # in the middle where it cannot fit
    y = torch.where(2 * reach < h, reach + drawn[:, 3] * (h - 2 * reach), h / 2)
    down, across = torch.meshgrid(torch.arange(h).to(images) + 0.5, torch.arange(w).to(images) + 0.5, indexing="ij")
    away_x, away_y = across - x[:, None, None], down - y[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u = (cos * away_x + sin * away_y) / half[:, None, None]
    v = (cos * away_y - sin * away_x) / half[:, None, None]
    inside = (u.abs().maximum(v.abs()) <= 1) if shape == "square" else (u.square() + v.square() <= 1)
    stickers = patch.expand(len(images), *patch.shape[-3:])
    grid = torch.stack([u, v], -1)
    shown = functional.grid_sample(stickers, grid, padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], shown, images).clamp(0, 1)


def patch_each(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    size: float = 0.3,
    shape: Shape = "square",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 40,
    step_size: float = 0.1,
    restarts: int = 3,
) -> Float[Tensor, "n c h w"]:
    """Fit a patch of its own to each image, at a few random places (Karmon, Zoran and Goldberg 2018).

    Parameters
    ----------
    classifier, images, labels
        As in `train_patch`.
    size, shape
        As in `train_patch`.
    targets
        Classes to reach; None moves away from the label.
    seeds
        One per image, for the places; None uses the position in the batch.
    steps, step_size
        Signed gradient steps at each place.
    restarts
        Places tried.

    Returns
    -------
    Tensor
        Images in [0, 1] with their patches.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    best, best_gain = images.clone(), torch.full((len(images),), -torch.inf).to(images)
    pixels = max(2, round(size * min(images.shape[-2:])))
    for restart in range(restarts):
        patches = torch.full((len(images), images.shape[1], pixels, pixels), 0.5).to(images)
        for step in range(steps):
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                return best
            here = patches[rows].requires_grad_()
            shown = apply_patch(
                images[rows], here, seeds=seeds[rows], size=size, shape=shape, degrees=0.0, scale=0.0, stream=restart
            )
            gain = margin(classifier(shown), labels[rows], None if targets is None else targets[rows])
            (slope,) = torch.autograd.grad(gain.sum(), here)
            patches[rows] = (here.detach() + step_size * (1 - step / steps) * slope.sign()).clamp(0, 1)
            better = gain.detach() > best_gain[rows]
            best[rows[better]], best_gain[rows[better]] = shown.detach()[better], gain.detach()[better]
    return best
