"""Averages of the weights over training steps, which are often more robust than any one of them."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Average = Literal["none", "ema", "swa"]
SWA_START = 0.75  # share of training after which equal averaging begins (Izmailov et al. 2018)


def averaged(classifier: nn.Module, kind: Average, decay: float) -> AveragedModel | None:
    """Begin an average of a classifier's weights and buffers; None where none is wanted.

    Parameters
    ----------
    kind
        ``ema``: exponential, with a decay that grows from 0.1 to ``decay`` over the first steps, so that the first
        weights are forgotten. ``swa``: equal, over the last quarter of training (Izmailov et al. 2018).
    """
    if kind == "none":
        return None
    return AveragedModel(classifier, avg_fn=_ema(decay) if kind == "ema" else None, use_buffers=True)


def _ema(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(mean: Tensor, new: Tensor, seen: Tensor | int) -> Tensor:
        keep = min(decay, (1 + float(seen)) / (10 + float(seen)))
        return mean + (1 - keep) * (new - mean)

    return average


def begins(kind: Average, progress: float) -> bool:
    """Tell whether the average takes part at this share of training."""
    return kind == "ema" or (kind == "swa" and progress >= SWA_START)
