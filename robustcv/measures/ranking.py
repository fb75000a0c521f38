"""Pixels in order of what a heat map says of them."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustcv import draws


def relevance(heatmaps: Float[Tensor, "n m h w"]) -> Float[Tensor, "n h w"]:
    """Add up a signed map's channels: what speaks for the target is high, what speaks against it low."""
    return heatmaps.sum(1)


def ranks(heatmaps: Float[Tensor, "n m h w"]) -> Int64[Tensor, "n h w"]:
    """Number each image's pixels from 0, the most relevant first; ties, of superpixels say, in a random order.

    Ties in raster order would hide a region from its upper left corner on, which is information the map does not have.
    """
    flat = relevance(heatmaps).flatten(1)
    shuffle = draws.uniform(torch.zeros(1, dtype=torch.int64, device=flat.device), (flat.shape[1],), 77)[0].argsort()
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(relevance(heatmaps).shape)
