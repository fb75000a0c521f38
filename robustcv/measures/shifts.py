"""How far one heat map lies from another of the same image."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustcv.measures.randomisation import spearman
from robustcv.measures.ranking import ranks, relevance


def top_overlap(
    first: Float[Tensor, "n m h w"], second: Float[Tensor, "n m h w"], *, share: float = 0.1
) -> Float[Tensor, " n"]:
    """Compute how many of the most relevant pixels of one map are among those of the other; 1 where all are.

    Parameters
    ----------
    share
        Of the pixels that count as most relevant.
    """
    wanted = max(1, round(share * first[0, 0].numel()))
    both = (ranks(first) < wanted) & (ranks(second) < wanted)
    shared: Tensor = both.sum((1, 2)) / wanted
    return shared


def mass_shift(first: Float[Tensor, "n m h w"], second: Float[Tensor, "n m h w"]) -> Float[Tensor, " n"]:
    """Compute the share of the magnitude that lies elsewhere (total variation of the two as distributions); 0 to 1."""
    moved: Tensor = (_mass(first) - _mass(second)).abs().sum((1, 2)) / 2
    return moved


def centroid_shift(first: Float[Tensor, "n m h w"], second: Float[Tensor, "n m h w"]) -> Float[Tensor, " n"]:
    """Compute how far the centre of the magnitude moves, as a share of the image's diagonal."""
    h, w = first.shape[2:]
    y, x = torch.arange(h, device=first.device), torch.arange(w, device=first.device)
    moved = _mass(first) - _mass(second)
    across, down = (moved * x).sum((1, 2)), (moved * y[:, None]).sum((1, 2))
    distance: Tensor = torch.hypot(across, down) / (h**2 + w**2) ** 0.5
    return distance


def _mass(heatmaps: Tensor) -> Float[Tensor, "n h w"]:
    size = relevance(heatmaps).abs()
    total = size.sum((1, 2), keepdim=True)
    return torch.where(total > 0, size / total.clamp_min(1e-30), torch.full_like(size, 1 / size[0].numel()))


SHIFTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top_overlap": top_overlap,
    "spearman": spearman,
    "mass_shift": mass_shift,
    "centroid_shift": centroid_shift,
}
