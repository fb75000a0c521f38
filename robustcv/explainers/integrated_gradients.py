"""Integrated gradients: the midpoint rule, with as many points as a stated error needs."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap, half_error
from robustcv.explainers.passes import chunk_size, target_gradients, target_logits
from robustcv.explainers.references import Reference, describe, references

MOST = 320


def integrated_gradients(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    error: float = 0.05,
    steps: int | None = None,
    baseline: Reference = 0.0,
    rows: int | None = None,
) -> Explanation:
    """Integrate the gradient of the target's logit from a baseline to the image (Sundararajan, Taly and Yan 2017).

    ``(x - b) * integral over t of dz(b + t (x - b))/dx``. Each part of the path is asked about at its middle; on ReLU
    networks, whose gradient is piecewise constant, that beats the Gauss-Legendre rule at equal cost. Without ``steps``
    the parts between which the gradient turns most are cut in three, which keeps the old middle, until the map's
    estimated error is below ``error``: so a path that is mostly straight costs little, and none is paid for twice.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    error
        Stop each image when the estimated relative error of its map is at most this; 320 points at most. The estimate
        compares the maps of the even and the odd points, which on the models we tried is 1.1 to 3 times the true error.
    steps
        Exactly so many equal parts instead.
    baseline
        A grey level, or another of `references`; over several the maps are averaged.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    rows = chunk_size(images, rows)
    starts = references(images, baseline)
    own = target_logits(classifier, images.detach(), targets, rows)
    maps, errors, costs, change = torch.zeros_like(images), torch.zeros_like(own), torch.ones(len(images), dtype=torch.int64), own
    for start in starts:
        path = _Path(classifier, images.detach(), start, targets, rows)
        found, uncertain, points = path.midpoint(steps) if steps else path.refined(error)
        maps += found / len(starts)
        errors += uncertain / len(starts)
        costs += 2 * points + len(start) // len(images)
        base_targets = targets if len(start) == len(images) else torch.arange(int(targets.max()) + 1).to(targets)
        change = change - _at_start(classifier, start, targets, base_targets, rows) / len(starts)
    shared = sum(len(start) for start in starts if len(start) != len(images))
    return Explanation(
        heatmaps=maps.float(),
        error=errors.float(),
        forwards=costs,
        details={
            "target": "logit",
            "baseline": describe(baseline),
            "steps": steps or "as the error needs",
            "rule": "midpoint",
            "shared_forwards": shared,
        },
        gap=completeness_gap(maps.flatten(1).sum(1), change),
    )
