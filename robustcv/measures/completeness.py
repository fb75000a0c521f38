"""Completeness: does the map add up to the change of the logit?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.measures.asking import References, answers, filled
from robustcv.runtime import chunk_size


def completeness(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    baseline: References = 0.0,
    rows: int | None = None,
) -> Float[Tensor, " n"]:
    """Compute |sum of the map - change of the logit from the baseline| as a share of that change.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images, targets, heatmaps
        What was explained, and the maps.
    baseline
        What the change is measured from: ``mean``, a grey level, or an image for each image.
    rows
        Images sent through the classifier at a time; None suits their size.

    Returns
    -------
    Tensor
        One share per image; lower is better.
    """
    every, size = torch.arange(len(images), device=images.device), chunk_size(images, rows)
    start = filled(images, baseline)
    after = answers(classifier, lambda part: images[part], every, targets, "logit", size)
    before = answers(classifier, lambda part: start[part], every, targets, "logit", size)
    change = after - before
    return (heatmaps.flatten(1).sum(1) - change).abs() / change.abs().clamp_min(1e-6)
