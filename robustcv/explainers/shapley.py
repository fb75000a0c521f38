"""Shapley values of an image's regions, with 95 % intervals."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.design import choose
from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.odd_process import shapley_values
from robustcv.explainers.pool import Pool
from robustcv.explainers.references import Reference
from robustcv.explainers.regions import Regions, neighbours, painted
from robustcv.explainers.sampled import sample


def shapley(
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
    """Share the target's logit among regions by their Shapley values (Shapley 1953), estimated with intervals.

    The game shows some regions and fills the others. The estimate and its interval come from a Gaussian process over
    odd functions that knows which regions touch (`odd_process`), and the coalitions asked about are those that tell
    most of it (`design`): for the same error that takes a fourth to an eighth of the passes of shap's explainers. With
    as many samples as there are coalitions it is exact.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried, never differentiated.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        One per image; None uses the position in the batch.
    samples
        Masked images per image; chosen where they are about 2.5 to a region and more, and at most 2,048.
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
        classifier,
        images,
        targets,
        seeds=seeds,
        samples=samples,
        regions=regions,
        fill=fill,
        rows=rows,
        pool=pool,
        drawing=choose,
    )
    maps, margins, errors = [], [], []
    for each, own, where in zip(found.drawn, found.values, found.places, strict=True):
        estimate, margin = shapley_values(each, own, neighbours(where))
        maps.append(painted(torch.from_numpy(estimate), where))
        margins.append(painted(torch.from_numpy(margin), where))
        length = float(np.linalg.norm(estimate))
        errors.append(float(np.linalg.norm(margin)) / 1.96 / length if length else 0.0)
    heatmaps = torch.stack(maps).to(images.device)
    return Explanation(
        heatmaps=heatmaps.float(),
        error=torch.tensor(errors, device=images.device),
        forwards=found.forwards,
        details=found.details,
        gap=completeness_gap(heatmaps.flatten(1).sum(1), found.change.to(heatmaps)),
        margin=torch.stack(margins).to(images.device).float(),
    )
