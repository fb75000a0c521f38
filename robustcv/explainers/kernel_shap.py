"""KernelSHAP: Shapley values of an image's regions by weighted least squares."""

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv.explainers.coalitions import Masks
from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.pool import Pool
from robustcv.explainers.references import Reference
from robustcv.explainers.regions import Regions
from robustcv.explainers.sampled import sample


def kernel_shap(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 256,
    regions: Regions = "slic:16",
    fill: Reference = "mean",
    rows: int | None = None,
    pool: Pool | None = None,
) -> Explanation:
    """Estimate Shapley values by least squares under the Shapley kernel (Lundberg and Lee 2017, theorem 2).

    Coalitions are paired and drawn by size without replacement (Leverage SHAP, Musco and Witter 2025), and that the
    values sum to the change of the logit is a constraint, not a large weight. `shapley` needs fewer passes.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried, never differentiated.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        One per image; None uses the position in the batch.
    samples
        Masked images per image.
    regions
        ``grid:4``, ``grid:3x4``, ``slic:16`` or numbers ``h w`` or ``n h w``; see `regions.regions_of`.
    fill
        What hidden regions show: ``mean``, ``blur``, a grey level or other images; see `references`.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    pool
        Masked passes to share with other methods; None begins one.
    """
    found = sample(
        classifier, images, targets, seeds=seeds, samples=samples, regions=regions, fill=fill, rows=rows, pool=pool
    )
    heatmaps, error = found.solved(least_squares)
    return Explanation(
        heatmaps=heatmaps.to(images.device).float(),
        error=error.to(images.device),
        forwards=found.forwards,
        details=found.details,
        gap=completeness_gap(heatmaps.flatten(1).sum(1), found.change).to(images.device),
    )


def least_squares(masks: Masks, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve for the values under the Shapley kernel, with their sum held at v(all) - v(none)."""
    k = masks.shape[1]
    whole = values[1] - values[0]
    size = masks.sum(1)
    inner = (size > 0) & (size < k)
    if k == 1 or not inner.any():
        return np.full(k, whole / k)
    weight = 1 / np.bincount(size)[size[inner]] / (size[inner] * (k - size[inner]))  # of all of a size, among the drawn
    centred = masks[inner] - size[inner][:, None] / k  # the part of a mask that the constraint leaves free
    left = values[inner] - values[0] - whole * size[inner] / k
    root = np.sqrt(weight)[:, None]
    free = np.linalg.lstsq(centred * root, left * root[:, 0], rcond=None)[0]
    solved: NDArray[np.float64] = free - free.mean() + whole / k
    return solved
