"""Random changes of training images, for a whole batch at once, on its device."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


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


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"crop": crop, "flip": flip, "rotate": rotate}
