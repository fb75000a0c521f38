"""Sparseness: how unevenly is the relevance spread?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.measures.ranking import relevance


def sparseness(
    classifier: nn.Module | None,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
) -> Float[Tensor, " n"]:
    """Compute the Gini index of the magnitudes of the map (Chalasani et al. 2020).

    Parameters
    ----------
    classifier, images, targets
        Not used.
    heatmaps
        The maps.

    Returns
    -------
    Tensor
        One number per image: 0 where all pixels matter equally, near 1 where one does; higher is sparser, which is
        easier to read, not more faithful.
    """
    values = relevance(heatmaps).abs().flatten(1).double().sort(dim=1).values
    n = values.shape[1]
    weight = 2 * torch.arange(1, n + 1, device=values.device) - n - 1
    return ((weight * values).sum(1) / (n * values.sum(1)).clamp_min(1e-30)).float()
