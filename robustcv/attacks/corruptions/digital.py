"""Digital: contrast, elastic, pixelate, JPEG and saturate."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from robustcv import draws
from robustcv.attacks.corruptions.filters import both_ways, constants, gaussian


def contrast(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Pull every channel towards its mean; deterministic (Hendrycks and Dietterich 2019)."""
    share = constants(images, severity, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    return torch.lerp(images.mean((2, 3), keepdim=True), images, share).clamp_(0, 1)


def saturate(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Scale the saturation of hue, saturation and value; deterministic (Hendrycks and Dietterich 2019, extra)."""
    factor, more = constants(
        images,
        severity,
        ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
    )
    if images.shape[1] == 1:
        return images.clone()
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    old = spread / value.clamp_min(1e-12)
    new = (old * factor + more).clamp(0, 1)
    # each channel's distance below the value scales with the saturation; grey has hue 0, so it turns red
    red = torch.cat([torch.zeros_like(value), *[value] * (images.shape[1] - 1)], 1)
    below = torch.where(spread > 0, (value - images) / old.clamp_min(1e-12), red)
    out: Tensor = (value - below * new).clamp_(0, 1)
    return out


@lru_cache(maxsize=64)
def _box(size: int, out: int) -> Tensor:
    """Give the matrix that averages an axis down to ``out`` values (Pillow's box filter)."""
    scale = size / out
    centres = (torch.arange(out, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(size, dtype=torch.float64) + 0.5
    inside = (((places - centres[:, None]) / max(scale, 1)).abs() <= 0.5).double()
    first = ((places - centres[:, None]) / max(scale, 1)) > -0.5  # Pillow's box is open on its left side
    inside = inside * first
    return (inside / inside.sum(1, keepdim=True)).float()


@lru_cache(maxsize=64)
def _nearest(size: int, out: int) -> Tensor:
    """Give the matrix that repeats values up to ``out`` of them; sums up steps, as Pillow does."""
    steps = np.full(out, size / out)
    steps[0] /= 2
    places = torch.from_numpy(np.add.accumulate(steps)).long().clamp_max(size - 1)
    return torch.zeros(out, size).scatter(1, places[:, None], 1.0)


def pixelate(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Shrink by averaging and enlarge by repeating; deterministic (Hendrycks and Dietterich 2019)."""
    share = constants(images, severity, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    h, w = images.shape[-2:]
    a, b = max(1, int(h * share)), max(1, int(w * share))
    return both_ways(images, _nearest(a, h) @ _box(h, a), _nearest(b, w) @ _box(w, b)).clamp_(0, 1)


def jpeg_compression(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Write and read as JPEG; deterministic, by Pillow on the CPU (Hendrycks and Dietterich 2019)."""
    from PIL import Image

    quality = constants(images, severity, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    colour = images.shape[1] == 3
    pixels = (images * 255).round_().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def there_and_back(picture: Any) -> Any:
        buffer = io.BytesIO()
        Image.fromarray(picture if colour else picture.repeat(3, 2)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as read:
            return np.asarray(read if colour else read.convert("L"))

    decoded = np.stack([there_and_back(picture) for picture in pixels])
    decoded = decoded if colour else decoded[..., None]
    return torch.from_numpy(decoded).to(images.device).permute(0, 3, 1, 2).to(images.dtype).div_(255).contiguous()


def elastic_transform(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Shift pixels along a smooth random field, small images also by a random affine map (Simard et al. 2003)."""
    h, w = images.shape[-2:]
    large = 250.0 * 0.005 * h
    alpha, sigma, bend = constants(
        images,
        severity,
        ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        tuple((large * share, 0.01, 0.0) for share in (0.05, 0.065, 0.085, 0.1, 0.12)),
    )
    if bend > 0:
        alpha = alpha * min(h, w)
    field = draws.fill(seeds, (2, h, w), "uniform").to(images) * 2 - 1
    field = gaussian(field, (sigma * h, sigma * w), truncate=3.0, border="reflect") * alpha
    y, x = torch.meshgrid(torch.arange(h).to(images), torch.arange(w).to(images), indexing="ij")
    if bend > 0:
        images = _bent(images, seeds, bend * min(h, w), x, y)
    return _sampled(images, x + field[:, 0], y + field[:, 1])


def _sampled(images: Tensor, x: Tensor, y: Tensor, padding: str = "reflection", half: bool = True) -> Tensor:
    """Read images between pixels; beyond the border they are mirrored, at the edge (``half``) or at the last pixel."""
    h, w = images.shape[-2:]
    if half:
        grid = torch.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1], -1)
    else:
        grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], -1)
    out = functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=not half)
    return out.clamp_(0, 1)


def _bent(images: Tensor, seeds: Tensor, reach: float, x: Tensor, y: Tensor) -> Tensor:
    """Map three points of the middle to places up to ``reach`` away, and the picture with them."""
    h, w = images.shape[-2:]
    side = min(h, w) // 3
    centre = torch.tensor([h // 2, w // 2]).to(images)
    corners = torch.stack([centre + side, centre + side * torch.tensor([1, -1]).to(images), centre - side])
    moved = corners + reach * (2 * draws.uniform(seeds, (3, 2), stream=5).to(images) - 1)
    ones = torch.ones(3, 1).to(images)
    # the map from the new places back to the old ones: old = [new, 1] @ back
    back = torch.linalg.solve(torch.cat([moved, ones.expand(len(images), 3, 1)], 2), corners.expand(len(images), 3, 2))
    points = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)
    old = (points @ back).reshape(len(images), *x.shape, 2)
    return _sampled(images, old[..., 0], old[..., 1], half=False)
