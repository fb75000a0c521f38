"""Maps that know nothing of the model: what a method must beat."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws


def random_map(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, "n 1 h w"]:
    """Draw every pixel's relevance at random."""
    seeds = draws.fresh_seeds(len(images)) if seeds is None else seeds
    return draws.uniform(seeds.to(images.device), (1, *images.shape[2:]), 33)


def sobel(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, "n 1 h w"]:
    """Take the strength of edges (Sobel's operator on the mean of the channels)."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).to(images)[None, None]
    grey = functional.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across, down = functional.conv2d(grey, kernel), functional.conv2d(grey, kernel.transpose(2, 3))
    return torch.hypot(across, down)


def centre(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, "n 1 h w"]:
    """Take a Gaussian in the middle, a quarter of each side wide."""
    h, w = images.shape[2:]
    y = (torch.arange(h, device=images.device) + 0.5) / h - 0.5
    x = (torch.arange(w, device=images.device) + 0.5) / w - 0.5
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2)).to(images).expand(len(images), 1, h, w)
