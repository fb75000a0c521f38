"""What corruptions share: separable filters and zooms as two matrix products, motion along a line, small constants."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SMALL = 64  # images up to this side use CIFAR-10-C's constants, larger ones ImageNet-C's


def constants(images: Float[Tensor, "n c h w"], severity: int, small: tuple, large: tuple):  # type: ignore[no-untyped-def, type-arg]
    """Give a corruption's constants at a severity of 1 to 5, by the size of the images."""
    if severity not in range(1, 6):
        raise ValueError(f"severity is {severity}; published corruptions have severities 1 to 5")
    return (small if max(images.shape[-2:]) <= SMALL else large)[severity - 1]


def both_ways(images: Float[Tensor, "... h w"], rows: Tensor, columns: Tensor) -> Float[Tensor, "... a b"]:
    """Apply a linear map to every column and another to every row: any separable filter, exact at the border."""
    return (rows.to(images) @ images) @ columns.to(images).T


@lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, truncate: float = 4.0, border: str = "nearest") -> Tensor:
    """Give the matrix of a Gaussian filter along one axis; the border is repeated (``nearest``) or mirrored."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / max(sigma, 1e-12)) ** 2)
    places = torch.arange(size)[:, None] + offsets
    if border == "nearest":
        places = places.clamp(0, size - 1)
    else:  # scipy's reflect: d c b a | a b c d | d c b a
        places = places % (2 * size)
        places = torch.where(places >= size, 2 * size - 1 - places, places)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add(1, places, (weights / weights.sum()).expand_as(places)).float()


def gaussian(
    images: Float[Tensor, "... h w"], sigma: tuple[float, float] | float, truncate: float = 4.0, border: str = "nearest"
) -> Float[Tensor, "... h w"]:
    """Blur with a Gaussian, as scipy and scikit-image do."""
    down, across = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    h, w = images.shape[-2:]
    return both_ways(images, gaussian_matrix(h, down, truncate, border), gaussian_matrix(w, across, truncate, border))


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """Give the matrix that zooms into the middle of an axis: crop, interpolate with corners aligned, crop again."""
    kept = math.ceil(size / factor)
    first, out = (size - kept) // 2, round(kept * factor)
    places = torch.arange(min(out, size), dtype=torch.float64) * ((kept - 1) / max(out - 1, 1))
    left = places.floor().clamp_max(kept - 1).long()
    right = (left + 1).clamp_max(kept - 1)
    share = (places - left)[:, None]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.zeros(len(places), size, dtype=torch.float64)
    rows = rows.scatter_add(1, first + left[:, None], 1 - share).scatter_add(1, first + right[:, None], share)
    matrix[: len(rows)] = rows
    return matrix.float()


def zoomed(images: Float[Tensor, "... h w"], factor: float) -> Float[Tensor, "... h w"]:
    """Zoom into the middle."""
    return both_ways(images, zoom_matrix(images.shape[-2], factor), zoom_matrix(images.shape[-1], factor))


def along_a_line(
    images: Float[Tensor, "n c h w"], radius: int, sigma: float, degrees: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Blur each image along its own direction with half a Gaussian, in whole pixels; the border is repeated."""
    width = 2 * radius + 1
    weights = torch.exp(-(torch.arange(width, dtype=torch.float64) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    h, w = images.shape[-2:]
    pad = min(width, max(h, w))
    padded = functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    out = torch.zeros_like(images)
    for picture, source, angle in zip(out, padded, torch.deg2rad(degrees.double()).tolist(), strict=True):
        for step, weight in enumerate(weights.tolist()):
            dy = -math.ceil(step * math.sin(angle) - 0.5)
            dx = -math.ceil(step * math.cos(angle) - 0.5)
            if abs(dy) >= h or abs(dx) >= w:
                break
            top, left = pad - dy, pad - dx
            picture.add_(source[:, top : top + h, left : left + w], alpha=weight)
    return out


def grey(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Give the luma of colour images (ITU-R 601); one channel stays what it is."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(1, keepdim=True)
