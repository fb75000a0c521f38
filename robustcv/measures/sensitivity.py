"""Max-sensitivity: how far does the map move when the image hardly does?"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


def max_sensitivity(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    explain: Explain,
    samples: int = 8,
    radius: float = 0.02,
    seeds: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """Compute the largest relative change of the map among random images nearby (Yeh et al. 2019).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets, heatmaps
        What was explained, and the maps.
    explain
        ``explain(classifier, images, targets) -> heatmaps``: the method, with its options and seeds.
    samples
        Images nearby.
    radius
        Largest change of a pixel, in units of [0, 1].
    seeds
        One per image; None uses the position in the batch.

    Returns
    -------
    Tensor
        One number per image; lower is better. NaN for a map of zeros, of which nothing can be a share.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    length = heatmaps.flatten(1).norm(dim=1)
    worst = torch.zeros_like(length)
    for number in range(samples):
        shift = radius * (2 * draws.uniform(seeds, tuple(images.shape[1:]), 60 + number).to(images) - 1)
        moved = explain(classifier, (images + shift).clamp(0, 1), targets)
        worst = torch.maximum(worst, (moved - heatmaps).flatten(1).norm(dim=1))
    relative: Tensor = worst / length.clamp_min(1e-30)
    return relative.where(length > 0, torch.nan)
