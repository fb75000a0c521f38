"""The gradient at the image: saliency, and gradient times input."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation
from robustcv.explainers.passes import target_gradients
from robustcv.runtime import chunk_size


def saliency(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    rows: int | None = None,
) -> Explanation:
    """Take the gradient of the target's logit, with its sign (Simonyan et al. 2013; captum drops the sign by default).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    gradient = target_gradients(classifier, lambda part: images[part], targets, chunk_size(images, rows))
    return _exact(gradient, "none: the slope at the image")


def input_x_gradient(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    rows: int | None = None,
) -> Explanation:
    """Multiply the gradient by the pixels: the share of a linear model's logit (Shrikumar et al. 2016).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    gradient = target_gradients(classifier, lambda part: images[part], targets, chunk_size(images, rows))
    return _exact(gradient * images.detach(), "black")


def _exact(heatmaps: Tensor, baseline: str) -> Explanation:
    n = len(heatmaps)
    return Explanation(
        heatmaps=heatmaps.float(),
        error=torch.zeros(n, device=heatmaps.device),
        forwards=torch.full((n,), 2),
        details={"target": "logit", "baseline": baseline},
    )
