"""Random changes of training images, for a whole batch at once, on its device."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustcv.data import operations


def flip(images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def crop(images: Float[Tensor, "n c h w"], generator: torch.Generator, padding: int = 2) -> Float[Tensor, "n c h w"]:
    """Shift each image by up to ``padding`` pixels each way; what comes in from outside is black.

    All images with the same shift are copied at once: at most (2 padding + 1)^2 slices, however large the batch.
    """
    n, _, h, w = images.shape
    padded = functional.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    rows = (top[:, None] + torch.arange(h)).to(images.device)
    columns = (left[:, None] + torch.arange(w)).to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized_crop(
    images: Float[Tensor, "n c h w"], generator: torch.Generator, least: float = 0.08
) -> Float[Tensor, "n c h w"]:
    """Enlarge a random part of each image to all of it: ``least`` to 1 of its area, its sides 3:4 to 4:3.

    So are networks for ImageNet trained (Szegedy et al. 2015); bilinear, boxes drawn as torchvision draws them. Images
    that are decoded as they are needed are cropped then, from all their pixels: `ImageStream.cropped`.
    """
    n, _, h, w = images.shape
    top, left, height, width = (side.to(images)[:, None] for side in _boxes(n, h, w, generator, least))
    y = top + (((torch.arange(h).to(images) + 0.5) * height / h - 0.5).clamp_min(0)).minimum(height - 1)
    x = left + (((torch.arange(w).to(images) + 0.5) * width / w - 0.5).clamp_min(0)).minimum(width - 1)
    y, x = (2 * y + 1) / h - 1, (2 * x + 1) / w - 1
    grid = torch.stack([x[:, None, :].expand(n, h, w), y[:, :, None].expand(n, h, w)], -1)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _boxes(n: int, h: int, w: int, generator: torch.Generator, least: float) -> tuple[Tensor, ...]:
    """Draw top, left, height and width of n boxes: the first of ten that fits, or else the largest in the middle."""
    area = h * w * (least + (1 - least) * torch.rand(n, 10, generator=generator))
    ratio = torch.exp(math.log(4 / 3) * (2 * torch.rand(n, 10, generator=generator) - 1))
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width > 0) & (width <= w) & (height > 0) & (height <= h)
    first = torch.cat([fits, torch.ones(n, 1, dtype=torch.bool)], 1).int().argmax(1, keepdim=True)
    whole = torch.tensor([min(h, round(w * 4 / 3)), min(w, round(h * 4 / 3))]).expand(n, 2)
    height, width = (
        torch.cat([drawn, whole[:, k, None]], 1).gather(1, first).squeeze(1) for k, drawn in enumerate((height, width))
    )
    room = torch.rand(2, n, generator=generator)
    places = [torch.where(first[:, 0] == 10, side // 2, (share * (side + 1)).long())
              for share, side in zip(room, (h - height, w - width), strict=True)]  # fmt: skip
    return places[0], places[1], height, width


def rotate(
    images: Float[Tensor, "n c h w"], generator: torch.Generator, degrees: float = 10.0
) -> Float[Tensor, "n c h w"]:
    """Turn each image about its centre by a uniform angle of up to ``degrees``, bilinearly; corners come in black."""
    angle = (2 * torch.rand(len(images), generator=generator) - 1).to(images) * math.radians(degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    h, w = images.shape[2:]
    theta = torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def jitter(images: Float[Tensor, "n c h w"], generator: torch.Generator, size: float = 0.3) -> Float[Tensor, "n c h w"]:
    """Change brightness, contrast and colour of each image by a uniform share of up to ``size`` either way."""
    for change in (operations.brightness, operations.contrast, operations.colour):
        images = change(images, size * (2 * _uniform(images, generator) - 1))
    return images


def cutout(images: Float[Tensor, "n c h w"], generator: torch.Generator, size: float = 0.5) -> Float[Tensor, "n c h w"]:
    """Grey out a square with sides of ``size`` times the image's, its centre anywhere (DeVries and Taylor 2017)."""
    h, w = images.shape[2:]
    y, x = _uniform(images, generator) * h, _uniform(images, generator) * w
    rows = (torch.arange(h).to(images) + 0.5 - y[:, None]).abs() < size * h / 2
    columns = (torch.arange(w).to(images) + 0.5 - x[:, None]).abs() < size * w / 2
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(hole, 0.5, images)


# torchvision's TrivialAugmentWide: operation, least and greatest strength, and whether its sign is drawn
_WIDE: list[tuple[Callable[[Tensor, Tensor], Tensor], float, float, bool]] = [
    (operations.identity, 0, 0, False),
    (operations.shear_x, 0, 0.99, True),
    (operations.shear_y, 0, 0.99, True),
    (operations.translate_x, 0, 32, True),
    (operations.translate_y, 0, 32, True),
    (operations.turn, 0, 135, True),
    (operations.brightness, 0, 0.99, True),
    (operations.colour, 0, 0.99, True),
    (operations.contrast, 0, 0.99, True),
    (operations.sharpness, 0, 0.99, True),
    (operations.posterize, 8, 2, False),
    (operations.solarize, 1, 0, False),
    (operations.autocontrast, 0, 0, False),
    (operations.equalize, 0, 0, False),
]


def trivial(images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Change each image by one operation at one strength, both uniform (TrivialAugment, wide; Mueller 2021)."""
    n = len(images)
    which = torch.randint(len(_WIDE), (n,), generator=generator).to(images.device)
    level = torch.randint(31, (n,), generator=generator).to(images) / 30
    sign = 2 * torch.randint(2, (n,), generator=generator).to(images) - 1
    return operations.apply_each(images, which, _strengths(_WIDE, which, level, sign), [each[0] for each in _WIDE])


def _strengths(space: list[tuple[Any, float, float, bool]], which: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    low, high, signed = (torch.tensor([float(each[k]) for each in space]).to(level)[which] for k in (1, 2, 3))
    return (low + (high - low) * level) * torch.where(signed > 0, sign, 1.0)


# the operations of AugMix, which leaves out those that the corruption benchmarks test
_MIXED: list[tuple[Callable[[Tensor, Tensor], Tensor], float, float, bool]] = [
    (operations.autocontrast, 0, 0, False),
    (operations.equalize, 0, 0, False),
    (operations.posterize, 4, 0, False),
    (operations.turn, 0, 30, True),
    (operations.solarize, 1, 0, False),
    (operations.shear_x, 0, 0.3, True),
    (operations.shear_y, 0, 0.3, True),
    (operations.translate_x, 0, 1 / 3, True),
    (operations.translate_y, 0, 1 / 3, True),
]


def augmix(
    images: Float[Tensor, "n c h w"], generator: torch.Generator, severity: float = 3.0, chains: int = 3
) -> Float[Tensor, "n c h w"]:
    """Mix each image with chains of one to three operations on it (Hendrycks et al. 2020, without the JSD loss).

    Weights of the chains are Dirichlet(1, 1, 1), that of the image itself uniform: Beta(1, 1).
    """
    n, size = len(images), max(images.shape[2:])
    weights = -torch.rand(n, chains, generator=generator).clamp_min(1e-7).log()
    weights = (weights / weights.sum(1, keepdim=True)).to(images)
    own = _uniform(images, generator)
    mixed = torch.zeros_like(images)
    for chain in range(chains):
        changed, depth = images, torch.randint(1, 4, (n,), generator=generator).to(images.device)
        for step in range(3):
            which = torch.randint(len(_MIXED), (n,), generator=generator).to(images.device)
            level = _uniform(images, generator) * severity / 10
            sign = 2 * torch.randint(2, (n,), generator=generator).to(images) - 1
            strength = _strengths(_MIXED, which, level, sign)
            strength = torch.where(which >= len(_MIXED) - 2, strength * size, strength)  # shares of the side to pixels
            moved = operations.apply_each(changed, which, strength, [each[0] for each in _MIXED])
            changed = torch.where((depth > step)[:, None, None, None], moved, changed)
        mixed += weights[:, chain, None, None, None] * changed
    return own[:, None, None, None] * images + (1 - own[:, None, None, None]) * mixed


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator).to(images)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "crop": crop,
    "resized-crop": resized_crop,
    "flip": flip,
    "rotate": rotate,
    "colour": jitter,
    "cutout": cutout,
    "trivial": trivial,
    "augmix": augmix,
}
