"""Blur: Gaussian, defocus, glass, motion and zoom."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from robustcv import draws
from robustcv.attacks.corruptions.filters import along_a_line, constants, gaussian, zoom_matrix


def gaussian_blur(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Blur with a Gaussian; deterministic (Hendrycks and Dietterich 2019, extra)."""
    sigma = constants(images, severity, (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0))
    return gaussian(images, sigma).clamp(0, 1)


@lru_cache(maxsize=16)
def disk(radius: float, alias: float) -> Tensor:
    """Give a disk of unit sum whose edge is softened by a small Gaussian, as the published generator makes it."""
    half = 8 if radius <= 8 else int(radius)
    soft = 1 if radius <= 8 else 2
    line = torch.arange(-half, half + 1, dtype=torch.float64)
    shape = ((line**2)[:, None] + line**2 <= radius**2).double()
    bump = torch.exp(-(torch.arange(-soft, soft + 1, dtype=torch.float64) ** 2) / (2 * alias**2))
    bump = (bump / bump.sum())[:, None] * (bump / bump.sum())
    padded = functional.pad((shape / shape.sum())[None, None], (soft, soft, soft, soft), mode="reflect")
    return functional.conv2d(padded, bump[None, None])[0, 0].float()


def defocus_blur(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Blur with a disk; deterministic (Hendrycks and Dietterich 2019)."""
    radius, alias = constants(
        images,
        severity,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    )
    kernel = disk(radius, alias)
    reach = int((kernel.sum(0) > 1e-9).nonzero().abs().sub(kernel.shape[0] // 2).abs().max())  # the rest is zero
    middle = kernel.shape[0] // 2
    kernel = kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1].to(images)
    flat = images.flatten(0, 1)[:, None]
    border = "reflect" if reach < min(images.shape[-2:]) else "replicate"  # very thin pictures cannot be mirrored
    padded = functional.pad(flat, (reach, reach, reach, reach), mode=border)
    if reach <= 1:
        return functional.conv2d(padded, kernel[None, None]).reshape_as(images).clamp_(0, 1)
    shape = (padded.shape[-2], padded.shape[-1])
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, shape)
    blurred: Tensor = torch.fft.irfft2(spectrum, shape)[..., 2 * reach :, 2 * reach :]
    blurred = blurred.reshape_as(images).clamp_(0, 1)
    return blurred


def glass_blur(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Copy pixels from places nearby, between two Gaussian blurs (Hendrycks and Dietterich 2019).

    The published code means to swap two pixels, but on colour images it copies one over the other, and its test sets
    were made so; this does the same. The order matters, so pixels are taken in turn, all images at once.
    """
    sigma, reach, rounds = constants(
        images,
        severity,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    )
    n, c, h, w = images.shape
    softened = (gaussian(images, sigma) * 255).floor_().div_(255)
    drawn = draws.fill(seeds, (rounds, h, w, 2), "uniform")
    shifts = (drawn * (2 * reach)).floor_().clamp_max_(2 * reach - 1).long() - reach
    here = torch.arange(h * w, device=images.device).reshape(h, w)
    places = (here[..., None, None] + (shifts[..., 1] * w + shifts[..., 0]).permute(2, 3, 1, 0)).flatten(0, 1)
    source = torch.arange(h * w, device=images.device)[:, None].repeat(1, n)  # pixel first: a row is contiguous
    for turn in range(rounds):
        steps = places[:, turn]
        for y in range(h - reach, reach, -1):
            for x in range(w - reach, reach, -1):
                place = y * w + x
                source[place] = source.gather(0, steps[place : place + 1])[0]
    moved = softened.flatten(2).gather(2, source.T[:, None].expand(n, c, h * w)).reshape_as(images)
    return gaussian(moved, sigma).clamp_(0, 1)


def motion_blur(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Blur along a line up to 45 degrees from level (Hendrycks and Dietterich 2019)."""
    radius, sigma = constants(
        images,
        severity,
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    )
    degrees = 90 * draws.uniform(seeds, (1,)).squeeze(1) - 45
    return along_a_line(images, radius, sigma, degrees).clamp_(0, 1)


def zoom_blur(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Average zooms into the middle; deterministic (Hendrycks and Dietterich 2019)."""
    end, step = constants(
        images,
        severity,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    )
    h, w = images.shape[-2:]
    factors = np.arange(1, end, step).tolist()  # numpy's own rounding decides whether the end is in, as published
    down = torch.stack([zoom_matrix(h, factor) for factor in factors]).to(images)
    across = torch.stack([zoom_matrix(w, factor) for factor in factors]).to(images)
    out = images.clone()
    for rows, columns in zip(down, across, strict=True):
        out += (rows @ images) @ columns.T
    return out.div_(len(factors) + 1).clamp_(0, 1)
