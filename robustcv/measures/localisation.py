"""Localisation: does the map lie where the deciding pixels are known to be?"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv.measures.ranking import ranks, relevance


def relevance_mass(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, " n"]:
    """Compute the share of the positive relevance that lies inside the mask (Arras et al. 2022).

    Parameters
    ----------
    classifier, images, targets
        Not used.
    heatmaps
        The maps.
    masks
        True on the pixels that decide.

    Returns
    -------
    Tensor
        One share per image, 0 where nothing is positive; higher is better.
    """
    positive = relevance(heatmaps).clamp_min(0)
    return (positive * masks).sum((1, 2)) / positive.sum((1, 2)).clamp_min(1e-30)


def relevance_rank(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, " n"]:
    """Compute the share of the mask among its size's worth of most relevant pixels (Arras et al. 2022).

    Parameters
    ----------
    classifier, images, targets
        Not used.
    heatmaps
        The maps.
    masks
        True on the pixels that decide.

    Returns
    -------
    Tensor
        One share per image; higher is better.
    """
    sizes = masks.sum((1, 2))
    return ((ranks(heatmaps) < sizes[:, None, None]) & masks).sum((1, 2)) / sizes.clamp_min(1)


def pointing(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, " n"]:
    """Tell whether the most relevant pixel lies inside the mask (Zhang et al. 2018); ties count in part.

    Parameters
    ----------
    classifier, images, targets
        Not used.
    heatmaps
        The maps.
    masks
        True on the pixels that decide.

    Returns
    -------
    Tensor
        1 or 0 per image, or the share of equally relevant top pixels that lie inside; higher is better.
    """
    values = relevance(heatmaps)
    top = values == values.amax((1, 2), keepdim=True)
    return (top & masks).sum((1, 2)) / top.sum((1, 2))


def average_precision(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, " n"]:
    """Compute the average precision of the map as a detector of the mask's pixels.

    Parameters
    ----------
    classifier, images, targets
        Not used.
    heatmaps
        The maps.
    masks
        True on the pixels that decide.

    Returns
    -------
    Tensor
        One number per image; the mask's share of the image by chance; higher is better.
    """
    order = ranks(heatmaps).flatten(1).argsort(dim=1)
    hits = masks.flatten(1).gather(1, order).double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return ((precision * hits).sum(1) / hits.sum(1).clamp_min(1)).float()
