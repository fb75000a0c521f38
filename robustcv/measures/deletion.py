"""Deletion and insertion: how fast does the answer go, or come, when pixels go in the map's order?"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.measures.asking import References, answers, filled
from robustcv.measures.ranking import ranks
from robustcv.runtime import chunk_size

Order = Literal["most relevant first", "least relevant first"]
Of = Literal["probability", "logit"]


def deletion(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    steps: int = 16,
    fill: References = "mean",
    of: Of = "probability",
    rows: int | None = None,
) -> Float[Tensor, " n"]:
    """Compute the area under the target's probability as pixels are hidden, most relevant first (Petsiuk et al. 2018).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images, targets, heatmaps
        What was explained, and the maps.
    steps
        Equal parts of the pixels that are hidden one after the other.
    fill
        What hidden pixels show: ``mean``, a grey level, or an image for each image.
    of
        ``probability`` or ``logit``.
    rows
        Images sent through the classifier at a time; None suits their size.

    Returns
    -------
    Tensor
        One area per image, by the trapezoid rule over shares from 0 to 1; lower is better.
    """
    return area(removal_curve(classifier, images, targets, ranks(heatmaps), steps=steps, fill=fill, of=of, rows=rows))


def insertion(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    steps: int = 16,
    fill: References = "mean",
    of: Of = "probability",
    rows: int | None = None,
) -> Float[Tensor, " n"]:
    """Compute the area under the target's probability as pixels are shown, most relevant first (Petsiuk et al. 2018).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images, targets, heatmaps
        What was explained, and the maps.
    steps
        Equal parts of the pixels that are shown one after the other.
    fill
        What pixels show before: ``mean``, a grey level, or an image for each image.
    of
        ``probability`` or ``logit``.
    rows
        Images sent through the classifier at a time; None suits their size.

    Returns
    -------
    Tensor
        One area per image, by the trapezoid rule over shares from 0 to 1; higher is better.
    """
    last_first = (
        images[0, 0].numel() - 1 - ranks(heatmaps)
    )  # showing the best first is hiding the worst first, backwards
    curve = removal_curve(classifier, images, targets, last_first, steps=steps, fill=fill, of=of, rows=rows)
    return area(curve)


def removal_curve(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    rank: Int64[Tensor, "n h w"],
    *,
    steps: int,
    fill: References,
    of: Of = "probability",
    rows: int | None = None,
) -> Float[Tensor, "n points"]:
    """Compute the target's answer with the first 0, 1, ... ``steps`` parts of the pixels hidden, by rank."""
    n, pixels, behind = len(images), images[0, 0].numel(), filled(images, fill)
    hidden = torch.linspace(0, pixels, steps + 1, device=images.device).round()

    def make(part: Tensor) -> Tensor:
        image, step = part // (steps + 1), part % (steps + 1)
        gone = rank[image] < hidden[step, None, None]
        return torch.where(gone[:, None], behind[image], images[image])

    owners = torch.arange(n * (steps + 1), device=images.device)
    found = answers(classifier, make, owners, targets.repeat_interleave(steps + 1), of, chunk_size(images, rows))
    return found.reshape(n, steps + 1)


def area(curve: Float[Tensor, "n points"]) -> Float[Tensor, " n"]:
    """Integrate over [0, 1] by the trapezoid rule."""
    return (curve.sum(1) - (curve[:, 0] + curve[:, -1]) / 2) / (curve.shape[1] - 1)
