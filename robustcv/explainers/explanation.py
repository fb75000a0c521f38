"""What every explanation method returns."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Explanation:
    """Signed heat maps with what is known about their error and their cost.

    Parameters
    ----------
    heatmaps
        ``n c h w`` or ``n 1 h w``, float32; positive speaks for the target.
    error
        ``n``: how far the map's sum is from the change in the target's logit between baseline and image, as a share
        of that change; NaN where a method has none.
    forwards
        ``n``: cost in forward-equivalents (a backward pass counts as one more).
    details
        Plain scalars and strings: baseline, target kind, number of steps.
    """

    heatmaps: Float[Tensor, "n c h w"]
    error: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    details: dict[str, str | int | float] = field(default_factory=dict)


def completeness_gap(total: Float[Tensor, " n"], change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Compute |sum of the map - change of the logit| / |change of the logit| (Sundararajan et al. 2017, axiom 1)."""
    return (total - change).abs() / change.abs().clamp_min(1e-6)
