"""Changes of pictures with a strength of its own for each image of a batch; what the augmentation policies draw from.

Images are `n c h w` in [0, 1]; strengths are `n`. What comes in from outside is black.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "n c h w"]
Strength = Float[Tensor, " n"]


def _warped(images: Tensor, matrix: Tensor) -> Tensor:
    """Take each output pixel (x, y) from ``matrix @ (x, y, 1)`` of the image, nearest; pixels count from centres."""
    h, w = images.shape[2:]
    y, x = torch.meshgrid(torch.arange(h).to(images), torch.arange(w).to(images), indexing="ij")
    places = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], -1)
    source = torch.einsum("nij,hwj->nhwi", matrix, places)
    grid = torch.stack([2 * source[..., 0] / w - 1, 2 * source[..., 1] / h - 1], -1)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    return torch.stack([a, b, c, d, e, f], 1).reshape(-1, 2, 3)


def shear_x(images: Images, strength: Strength) -> Images:
    """Lean to the side: move each row by ``strength`` times its distance from the top."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(images, _matrix(one, strength, zero, zero, one, zero))


def shear_y(images: Images, strength: Strength) -> Images:
    """Lean down: move each column by ``strength`` times its distance from the left."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(images, _matrix(one, zero, zero, strength, one, zero))


def translate_x(images: Images, strength: Strength) -> Images:
    """Shift to the right by ``strength`` pixels."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(images, _matrix(one, zero, -strength, zero, one, zero))


def translate_y(images: Images, strength: Strength) -> Images:
    """Shift down by ``strength`` pixels."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(images, _matrix(one, zero, zero, zero, one, -strength))


def turn(images: Images, strength: Strength) -> Images:
    """Turn about the centre by ``strength`` degrees, counter-clockwise."""
    h, w = images.shape[2:]
    cos, sin = torch.cos(torch.deg2rad(strength)), torch.sin(torch.deg2rad(strength))
    x, y = w / 2, h / 2
    return _warped(images, _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    share = 1 + strength[:, None, None, None]
    return (share * images + (1 - share) * other).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = torch.tensor([0.2989, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def brightness(images: Images, strength: Strength) -> Images:
    """Scale by ``1 + strength``."""
    return _blend(images, torch.zeros_like(images), strength)


def colour(images: Images, strength: Strength) -> Images:
    """Move away from grey by ``strength`` (-1: grey)."""
    return _blend(images, _grey(images).expand_as(images), strength)


def contrast(images: Images, strength: Strength) -> Images:
    """Move away from the mean grey by ``strength`` (-1: one grey)."""
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return _blend(images, mean.expand_as(images), strength)


def sharpness(images: Images, strength: Strength) -> Images:
    """Move away from a smoothed picture by ``strength``; the border keeps its pixels."""
    c = images.shape[1]
    kernel = torch.ones(3, 3).to(images)
    kernel[1, 1] = 5
    inner = functional.conv2d(images, (kernel / kernel.sum()).expand(c, 1, 3, 3), groups=c)
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return _blend(images, smooth, strength)


def posterize(images: Images, strength: Strength) -> Images:
    """Keep the first ``strength`` bits of each 8-bit value."""
    step = 2 ** (8 - strength.round().clamp(1, 8))[:, None, None, None]
    return ((images * 255).round() / step).floor() * step / 255


def solarize(images: Images, strength: Strength) -> Images:
    """Invert what is at or above ``strength``."""
    return torch.where(images >= strength[:, None, None, None], 1 - images, images)


def autocontrast(images: Images, strength: Strength) -> Images:
    """Stretch each channel to all of [0, 1]; a flat one stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, images, ((images - low) / torch.where(flat, 1.0, high - low)).clamp(0, 1))


def equalize(images: Images, strength: Strength) -> Images:
    """Spread each channel's 8-bit values evenly."""
    from torchvision.transforms.v2 import functional as vision

    eight_bit = (images * 255).round().to(torch.uint8)
    spread: Tensor = vision.equalize(eight_bit)
    return spread.to(images) / 255


def identity(images: Images, strength: Strength) -> Images:
    """Change nothing."""
    return images


def apply_each(
    images: Images, which: Tensor, strength: Strength, operations: list[Callable[[Tensor, Tensor], Tensor]]
) -> Images:
    """Change each image by the operation of its number, all images of one operation at once."""
    out = images.clone()
    for k, operation in enumerate(operations):
        rows = (which == k).nonzero()[:, 0]
        if len(rows):
            out[rows] = operation(images[rows], strength[rows])
    return out
