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
KERNEL = torch.tensor([[1 / 12, 1 / 6, 1 / 12], [1 / 6, 0.0, 1 / 6], [1 / 12, 1 / 6, 1 / 12]])


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

    The system is symmetric and positive definite, so conjugate gradients solve it for a whole batch at once, a
    convolution a step; the reference solves one sparse system for each image on the CPU.

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
    kernel = KERNEL.to(images)[None, None].repeat(images.shape[1], 1, 1, 1)

    def around(values: Tensor) -> Tensor:
        return functional.conv2d(values, kernel, padding=1, groups=values.shape[1])

    weight = around(torch.ones_like(images[:1]))
    x = images.mean((2, 3), keepdim=True) * hole
    right = around(images * (1 - hole)) * hole
    residual = right - (weight * x - around(x)) * hole
    step, energy = residual.clone(), _dot(residual, residual)
    for _ in range(4 * max(images.shape[2:]) + 20):
        if float(residual.abs().max()) <= tolerance:
            break
        moved = (weight * step - around(step)) * hole
        length = energy / _dot(step, moved).clamp_min(1e-30)
        x, residual = x + length * step, residual - length * moved
        after = _dot(residual, residual)
        step, energy = residual + after / energy.clamp_min(1e-30) * step, after
    x = torch.where(whole, images.mean((2, 3), keepdim=True).expand_as(images), x)
    if noise and seeds is not None:
        x = x + noise * draws.fill(seeds, tuple(images.shape[1:]), "normal", 5).to(images)
    return torch.where(gone, x, images)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)  # each image and channel is a system of its own
