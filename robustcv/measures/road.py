"""ROAD: remove pixels by linear imputation, so that the hole itself tells nothing, and see what the answer does."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws
from robustcv.measures.asking import answers
from robustcv.measures.ranking import ranks
from robustcv.runtime import chunk_size

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHECKED_EVERY = 4  # steps of conjugate gradients between looks at who is done


def road(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    levels: tuple[float, ...] = LEVELS,
    noise: float = 0.01,
    seeds: Int64[Tensor, " n"] | None = None,
    rows: int | None = None,
) -> Float[Tensor, " n"]:
    """Compare removing the least with removing the most relevant pixels, by noisy linear imputation (Rong et al. 2022).

    The mean over ``levels`` of half the difference of the target's probability, as pytorch-grad-cam's combined score.
    Blurred maps are favoured, as by every removal measure (arXiv 2304.13836).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images, targets, heatmaps
        What was explained, and the maps.
    levels
        Shares of the pixels that are removed.
    noise
        Standard deviation of what is added to imputed pixels.
    seeds
        One per image, for the noise; None uses the position in the batch.
    rows
        Images sent through the classifier at a time; None suits their size.

    Returns
    -------
    Tensor
        One number per image, from -0.5 to 0.5; higher is better.
    """
    n, rank = len(images), ranks(heatmaps)
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds
    pixels = rank[0].numel()
    cuts = torch.tensor([round(level * pixels) for level in levels], device=images.device)

    def make(part: Tensor) -> Tensor:
        image, rest = part // (2 * len(cuts)), part % (2 * len(cuts))
        order = torch.where((rest % 2 == 0)[:, None, None], rank[image], pixels - 1 - rank[image])
        gone = order < cuts[rest // 2, None, None]
        return imputed(images[image], gone, noise=noise, seeds=seeds[image] * 64 + rest)

    which = torch.arange(n * 2 * len(cuts), device=images.device)
    owners = targets.repeat_interleave(2 * len(cuts))
    found = answers(classifier, make, which, owners, "probability", chunk_size(images, rows)).reshape(n, len(cuts), 2)
    return ((found[..., 1] - found[..., 0]) / 2).mean(1)


def imputed(
    images: Float[Tensor, "m c h w"],
    gone: Bool[Tensor, "m h w"],
    *,
    noise: float = 0.01,
    seeds: Int64[Tensor, " m"] | None = None,
    tolerance: float = 1e-5,
) -> Float[Tensor, "m c h w"]:
    """Replace pixels by the weighted mean of their eight neighbours, solved for all of them together.

    The system is symmetric and positive definite, so conjugate gradients solve it for a whole batch at once; the
    reference solves one sparse system for each image on the CPU.

    Parameters
    ----------
    images
        In [0, 1].
    gone
        True where a pixel is to be replaced; with all gone, the image's mean colour.
    noise
        Standard deviation of what is added to replaced pixels.
    seeds
        One per image, for the noise.
    tolerance
        Largest residual that is left, in units of [0, 1].
    """
    gone = gone[:, None]
    whole = gone.flatten(1).all(1)[:, None, None, None]
    hole = gone.to(images)
    weight = _around(torch.ones_like(images[:1]))
    solved = images.mean((2, 3), keepdim=True) * hole
    right = _around(images * (1 - hole)) * hole
    rows, x = torch.arange(len(images), device=images.device), solved.clone()
    residual = right - (weight * x - _around(x)) * hole
    step, energy = residual.clone(), _dot(residual, residual)
    for number in range(4 * max(images.shape[2:]) + 20):
        if number % CHECKED_EVERY == 0:
            going = residual.abs().amax((1, 2, 3)) > tolerance
            if not bool(going.all()):  # an image ends by its own residual, whoever is beside it
                solved[rows] = x
                rows, x, residual, step, energy, hole = (
                    each[going] for each in (rows, x, residual, step, energy, hole)
                )
            if len(rows) == 0:
                break
        moved = (weight * step - _around(step)) * hole
        length = energy / _dot(step, moved).clamp_min(1e-30)
        x, residual = x + length * step, residual - length * moved
        after = _dot(residual, residual)
        step, energy = residual + after / energy.clamp_min(1e-30) * step, after
    solved[rows] = x
    x = torch.where(whole, images.mean((2, 3), keepdim=True).expand_as(images), solved)
    if noise and seeds is not None:
        x = x + noise * draws.fill(seeds, tuple(images.shape[1:]), "normal", 5).to(images)
    return torch.where(gone, x, images)


def _around(values: Tensor) -> Tensor:
    """Sum the eight neighbours, 1/6 each beside and 1/12 each across: [1 2 1] down and along, less the middle, / 12."""
    down = functional.pad(values, (0, 0, 1, 1))
    down = down[:, :, :-2] + down[:, :, 2:] + 2 * values
    along = functional.pad(down, (1, 1))
    return (along[..., :-2] + along[..., 2:] + 2 * down - 4 * values) / 12


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)  # each image and channel is a system of its own
