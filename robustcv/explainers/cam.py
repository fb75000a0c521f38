"""Class activation maps: a layer's features, weighed by the logit's gradient there, enlarged to the image."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv.explainers.explanation import Explanation
from robustcv.explainers.spatial_layer import features_at, find_layer
from robustcv.runtime import chunk_size, in_chunks

Weigh = Callable[[Tensor, Tensor], Tensor]


def grad_cam(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    layer: str = "auto",
    signed: bool = False,
    rows: int | None = None,
) -> Explanation:
    """Weigh each channel by the mean of its gradient (Selvaraju et al. 2017).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    layer
        Name of a module; ``auto`` is the last one whose output is spatial and reaches the logit (the result names it).
    signed
        Keep what speaks against the target too; the paper cuts it off.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    return _cam(classifier, images, targets, _mean_gradient, layer, signed, rows)


def grad_cam_pp(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    layer: str = "auto",
    signed: bool = False,
    rows: int | None = None,
) -> Explanation:
    """Weigh each channel by its positive gradients, more where few places have them (Chattopadhay et al. 2018).

    Second and third derivatives are taken as powers of the first, as in the paper (of an exponential of the logit).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    layer
        Name of a module; ``auto`` is the last one whose output is spatial and reaches the logit (the result names it).
    signed
        Keep what speaks against the target too; the paper cuts it off.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    return _cam(classifier, images, targets, _plus_plus, layer, signed, rows)


def hires_cam(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    layer: str = "auto",
    signed: bool = False,
    rows: int | None = None,
) -> Explanation:
    """Weigh each place of each channel by its own gradient (Draelos and Carin 2020).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    layer
        Name of a module; ``auto`` is the last one whose output is spatial and reaches the logit (the result names it).
    signed
        Keep what speaks against the target too; the paper cuts it off.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    return _cam(classifier, images, targets, lambda features, gradient: gradient, layer, signed, rows)


def layer_cam(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    layer: str = "auto",
    signed: bool = False,
    rows: int | None = None,
) -> Explanation:
    """Weigh each place of each channel by its positive gradient (Jiang et al. 2021).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    layer
        Name of a module; ``auto`` is the last one whose output is spatial and reaches the logit (the result names it).
    signed
        Keep what speaks against the target too; the paper cuts it off.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    return _cam(classifier, images, targets, lambda features, gradient: gradient.relu(), layer, signed, rows)


def _mean_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    return gradient.mean((2, 3), keepdim=True)


def _plus_plus(features: Tensor, gradient: Tensor) -> Tensor:
    second, third = gradient**2, gradient**3
    below = 2 * second + features.sum((2, 3), keepdim=True) * third
    alpha = second / torch.where(below.abs() > 1e-12, below, torch.ones_like(below))
    return (alpha * gradient.relu()).sum((2, 3), keepdim=True)


def _cam(
    classifier: nn.Module, images: Tensor, targets: Tensor, weigh: Weigh, name: str, signed: bool, rows: int | None
) -> Explanation:
    found = find_layer(classifier, images[:1].detach(), targets[:1], name)

    def run(part: slice) -> Tensor:
        features, gradient = features_at(classifier, images[part].detach(), targets[part], found)
        heat = (weigh(features, gradient) * features).sum(1, keepdim=True)
        heat = heat if signed else heat.relu()
        return functional.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)

    heatmaps = torch.cat(in_chunks(run, len(images), chunk_size(images, rows)))
    return Explanation(
        heatmaps=heatmaps.float(),
        error=torch.zeros(len(images), device=images.device),
        forwards=torch.full((len(images),), 2),  # the backward pass ends at the layer: less than a whole one
        details={
            "target": "logit",
            "baseline": "none: features of a layer",
            **found.described,
            "shared_forwards": found.cost,
        },
    )
