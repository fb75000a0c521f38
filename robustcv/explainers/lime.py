"""LIME: the linear model of regions that fits best near the image."""

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv.explainers.coalitions import Masks, stands_for
from robustcv.explainers.explanation import Explanation
from robustcv.explainers.pool import Pool
from robustcv.explainers.references import Reference
from robustcv.explainers.regions import Regions
from robustcv.explainers.sampled import sample


def lime(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 256,
    regions: Regions = "slic:16",
    fill: Reference = "mean",
    ridge: float = 1e-3,
    width: float = 0.25,
    rows: int | None = None,
    pool: Pool | None = None,
) -> Explanation:
    """Fit a weighted ridge regression of the target's logit on which regions are shown (Ribeiro et al. 2016).

    Weights are sqrt(exp(-d^2 / width^2)) of the cosine distance d of a mask from the whole image, as in lime. Masks are
    drawn by size and each weighted by how many it stands for, so that what is fitted is the regression over all masks,
    equally likely, whatever was drawn; the passes are the ones that `kernel_shap` uses too.

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
    ridge
        Strength of the penalty, as a share of the weight of all masks (lime's own is 1 in units of one mask).
    width
        Width of the kernel.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    pool
        Masked passes to share with other methods; None begins one.
    """
    found = sample(
        classifier, images, targets, seeds=seeds, samples=samples, regions=regions, fill=fill, rows=rows, pool=pool
    )
    heatmaps, error = found.solved(lambda drawn, values: coefficients(drawn, values, ridge, width))
    return Explanation(
        heatmaps=heatmaps.to(images.device).float(),
        error=error.to(images.device),
        forwards=found.forwards,
        details={**found.details, "kernel_width": width, "ridge": ridge},
    )


def coefficients(drawn: Masks, values: NDArray[np.float64], ridge: float, width: float) -> NDArray[np.float64]:
    """Solve the weighted ridge regression with a free intercept."""
    if not np.ptp(values):
        return np.zeros(drawn.shape[1])
    masks = drawn.astype(float)
    k = masks.shape[1]
    size = masks.sum(1)
    weight = stands_for(drawn) * np.exp(-((1 - np.sqrt(size / k)) ** 2) / width**2 / 2)
    weight = weight / weight.sum()
    x, y = masks - weight @ masks, values - weight @ values
    solved: NDArray[np.float64] = np.linalg.lstsq(
        (x.T * weight) @ x + ridge * np.eye(k), (x.T * weight) @ y, rcond=None
    )[0]
    return solved
