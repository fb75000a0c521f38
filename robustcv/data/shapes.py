"""Rendered shapes on textured backgrounds, with the mask of the deciding shape: ground truth for explanations."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustcv import draws
from robustcv.data.image_set import ImageSet

CLASSES = ("circle", "square", "triangle", "cross", "ring", "star")
COUNTS = {"train": 6000, "test": 1500}
SHORTCUT_SHARE = 0.95


def shapes(
    *, split: str = "test", size: int = 32, shortcut: bool = False, seed: int = 0, n: int | None = None
) -> ImageSet:
    """Render images whose class is decided by one shape, and by nothing else unless a shortcut is planted.

    Colour, place, scale, rotation and background are drawn independently of the class; every image carries three
    distractors (short bars). Image i of a split depends on seed and i alone.

    Parameters
    ----------
    split
        ``train`` or ``test``.
    size
        32 or 64 pixels.
    shortcut
        Plant a white tag in a corner: in 95 % of the training images it stands in the corner that belongs to the class,
        in the test images in a random corner.
    seed
        Seed of the whole set.
    n
        Number of images; None gives 6,000 for training, 1,500 for test.

    Returns
    -------
    ImageSet
        With ``masks``: True on the pixels of the deciding shape.
    """
    n = COUNTS[split] if n is None else n
    seeds = draws.image_seeds(seed, [str(i) for i in range(n)], f"shapes-{split}-{size}")
    labels = torch.arange(n) % len(CLASSES)
    parts = [_render(seeds[rows], labels[rows], size) for rows in torch.arange(n).split(512)]
    images, masks = torch.cat([image for image, _ in parts]), torch.cat([mask for _, mask in parts])
    if shortcut:
        images = _plant_tags(images, labels, seeds, train=split == "train")
    pixels = (images * 255).round().to(torch.uint8)
    name = f"shapes:{size}" + (",shortcut" if shortcut else "")
    return ImageSet(pixels, labels, CLASSES, name, split, flippable=not shortcut, masks=masks)


def _render(seeds: Tensor, labels: Tensor, size: int) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, "n h w"]]:
    """Draw background, distractors and shape, in this order, with one-pixel soft edges."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    u = draws.uniform(seeds, (16,), 1)[:, :, None, None]  # place, scale, rotation, colours
    images = _background(seeds, x, y)
    for k in range(3):
        v = draws.uniform(seeds, (7,), 10 + k)[:, :, None, None]
        bar = _bar_distance(x - (1.8 * v[:, 0] - 0.9), y - (1.8 * v[:, 1] - 0.9), math.pi * v[:, 2])
        images = _paint(images, bar, v[:, 3:6], size)
    scale = 0.32 + 0.18 * u[:, 2]
    angle = 2 * math.pi * u[:, 3]
    px, py = x - (0.9 * u[:, 0] - 0.45), y - (0.9 * u[:, 1] - 0.45)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shape = scale * _shape_distance((px * cos + py * sin) / scale, (py * cos - px * sin) / scale, labels)
    bright = u[:, 4:7] * 0.5 + 0.5  # the shape is brighter than any background, so that it can be seen
    return _paint(images, shape, bright, size).clamp(0, 1), shape < 0


def _background(seeds: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "n 3 h w"]:
    """Two gratings of random direction, frequency and colour, and fine noise, between 0 and 0.55."""
    v = draws.uniform(seeds, (14,), 2)[:, :, None, None]
    waves = []
    for k in (0, 7):
        direction, frequency, phase = math.pi * v[:, k], 3 + 12 * v[:, k + 1], 2 * math.pi * v[:, k + 2]
        wave = torch.sin(frequency * (x * torch.cos(direction) + y * torch.sin(direction)) + phase)
        waves.append(wave[:, None] * 0.12 * v[:, k + 3 : k + 6])
    noise = 0.12 * (draws.uniform(seeds, (3, *x.shape), 3) - 0.5)
    return (0.22 + waves[0] + waves[1] + noise).clamp(0, 0.55)


def _paint(images: Tensor, distance: Tensor, colour: Tensor, size: int) -> Tensor:
    """Blend a colour in where the signed distance is negative, over one pixel."""
    alpha = (0.5 - distance * size / 2).clamp(0, 1)[:, None]
    return images * (1 - alpha) + alpha * colour


def _bar_distance(x: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    cos, sin = torch.cos(angle), torch.sin(angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    return torch.maximum(along.abs() - 0.16, across.abs() - 0.045)


def _shape_distance(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Give the signed distance (negative inside) of each image's shape in its own frame, where its radius is 1."""
    radius = torch.sqrt(x * x + y * y)
    square = torch.maximum(x.abs(), y.abs()) - 0.8
    triangle = torch.maximum(torch.maximum(y * -1.0 - 0.5, 0.866 * x + 0.5 * y - 0.5), -0.866 * x + 0.5 * y - 0.5)
    arms = torch.minimum(torch.maximum(x.abs() - 1.0, y.abs() - 0.28), torch.maximum(y.abs() - 1.0, x.abs() - 0.28))
    ring = (radius - 0.75).abs() - 0.22
    sector = torch.remainder(torch.atan2(y, x), 2 * math.pi / 5) - math.pi / 5
    star = radius * (torch.cos(sector) + 1.4 * torch.sin(sector).abs()) - 0.66 * 1.0
    every = torch.stack([radius - 0.9, square, triangle, arms, ring, star], dim=1)
    return every.gather(1, labels[:, None, None, None].expand(-1, 1, *every.shape[2:])).squeeze(1)


def _plant_tags(images: Tensor, labels: Tensor, seeds: Tensor, *, train: bool) -> Tensor:
    """Put a white 4x4 (of 32) tag on the border: its place tells the class in training, nothing in test."""
    u = draws.uniform(seeds, (2,), 4)
    free = (u[:, 1] * len(CLASSES)).long()
    slot = torch.where(u[:, 0] < SHORTCUT_SHARE, labels, free) if train else free
    size = images.shape[-1]
    side, step = size // 8, size // 2 - size // 16
    images = images.clone()
    for k in range(len(CLASSES)):  # three places along the top edge, three along the bottom
        left, top = (k % 3) * step, 0 if k < 3 else size - side
        images[slot == k, :, top : top + side, left : left + side] = 1.0
    return images
