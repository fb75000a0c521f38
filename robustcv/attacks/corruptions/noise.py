"""Noise: Gaussian, shot, impulse and speckle, value by value."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustcv import draws
from robustcv.attacks.corruptions.filters import constants


def gaussian_noise(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Add normal noise to every value (Hendrycks and Dietterich 2019)."""
    size = constants(images, severity, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return draws.fill(seeds, tuple(images.shape[1:]), "normal").to(images).mul_(size).add_(images).clamp_(0, 1)


def shot_noise(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Count photons: a Poisson number for every value (Hendrycks and Dietterich 2019)."""
    rate = constants(images, severity, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    out = torch.empty_like(images)
    generator = torch.Generator(images.device)
    for picture, image, seed in zip(out, images, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        picture.copy_(torch.poisson(image * rate, generator=generator))
    return out.div_(rate).clamp_(0, 1)


def impulse_noise(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Set a share of the values to black or white (Hendrycks and Dietterich 2019)."""
    share = constants(images, severity, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    drawn = draws.fill(seeds, tuple(images.shape[1:]), "uniform").to(images)
    salted = images.masked_fill(drawn < share / 2, 1.0)
    return salted.masked_fill_(drawn >= 1 - share / 2, 0.0)


def speckle_noise(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Add normal noise in proportion to every value (Hendrycks and Dietterich 2019)."""
    size = constants(images, severity, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6))
    noise = draws.fill(seeds, tuple(images.shape[1:]), "normal").to(images)
    return noise.mul_(size).add_(1).mul_(images).clamp_(0, 1)
