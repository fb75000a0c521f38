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
        ``n``: estimated distance of the map from what the method would give with unlimited steps or samples, as a share
        of the map's length (L2); 0 where it is exact, NaN where nobody knows.
    forwards
        ``n``: cost in forward-equivalents (a backward pass counts as one more) of the map alone, although methods may
        share passes.
    details
        Plain scalars and strings: target kind, baseline or fill, layer, number of steps. ``shared_forwards`` counts
        passes that are made once for all images.
    gap
        ``n``: completeness gap, |sum of the map - change of the logit| as a share of that change; None where the
        method promises no sum.
    margin
        Half-width of the 95 % interval of each value, of the heat maps' shape; None where the method has none.
    """

    heatmaps: Float[Tensor, "n c h w"]
    error: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    details: dict[str, str | int | float] = field(default_factory=dict)
    gap: Float[Tensor, " n"] | None = None
    margin: Float[Tensor, "n c h w"] | None = None


def completeness_gap(total: Float[Tensor, " n"], change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Compute |sum of the map - change of the logit| / |change of the logit| (Sundararajan et al. 2017, axiom 1)."""
    return ((total - change).abs() / change.abs().clamp_min(1e-6)).float()


def half_error(first: Float[Tensor, "n ..."], second: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Estimate the relative error of the mean of two maps, each from half of the steps or samples.

    Half their difference, over the length of their mean: for independent halves this is the expected error of the mean.
    Zero maps have error 0.
    """
    mean, difference = (first + second) / 2, (first - second) / 2
    length = mean.flatten(1).norm(dim=1)
    share: Tensor = difference.flatten(1).norm(dim=1) / length.clamp_min(1e-30)
    return share.where(length > 0, 0.0).float()
