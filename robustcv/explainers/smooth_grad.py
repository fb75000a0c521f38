"""Gradients under noise: their mean (SmoothGrad) and their variance (VarGrad)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.explainers.explanation import Explanation, half_error
from robustcv.explainers.passes import target_gradients
from robustcv.runtime import chunk_size


def smooth_grad(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 32,
    noise: float = 0.1,
    rows: int | None = None,
) -> Explanation:
    """Average the gradient over noisy copies of the image (Smilkov et al. 2017).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        One per image; None uses the position in the batch.
    samples
        Noisy copies of each image: each noise is used with both signs, so that what is odd in it cancels.
    noise
        Standard deviation, in units of [0, 1]; noisy copies are not clipped.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    first, second = (
        total / count for total, _, count in _halves(classifier, images, targets, seeds, samples, noise, rows)
    )
    return _under_noise((first + second) / 2, half_error(first, second), samples, noise)


def var_grad(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 32,
    noise: float = 0.1,
    rows: int | None = None,
) -> Explanation:
    """Take the variance of the gradient over noisy copies of the image (Adebayo et al. 2018); never negative.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        One per image; None uses the position in the batch.
    samples
        Noisy copies of each image: each noise is used with both signs.
    noise
        Standard deviation, in units of [0, 1]; noisy copies are not clipped.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    halves = _halves(classifier, images, targets, seeds, samples, noise, rows)
    first, second = (squares / count - (total / count) ** 2 for total, squares, count in halves)
    total, squares, count = (sum(parts[1:], parts[0]) for parts in zip(*halves, strict=True))
    return _under_noise(
        (squares / count - (total / count) ** 2).clamp_min(0), half_error(first, second), samples, noise
    )


def _halves(
    classifier: nn.Module,
    images: Tensor,
    targets: Tensor,
    seeds: Tensor | None,
    samples: int,
    noise: float,
    rows: int | None,
) -> list[tuple[Tensor, Tensor, int]]:
    """Give sum, sum of squares and number of the gradients, for the first and the second half of the samples."""
    n, ends, rows = len(images), images.detach(), chunk_size(images, rows)
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds
    halves = []
    pairs = max(2, samples // 2)
    for numbers in (range(pairs // 2), range(pairs // 2, pairs)):
        total, squares = torch.zeros_like(images), torch.zeros_like(images)
        for some in torch.tensor(list(numbers)).split(max(1, rows // (2 * n))):
            shifts = [draws.fill(seeds, tuple(images.shape[1:]), "normal", 10 + k) for k in some.tolist()]
            shift = noise * torch.stack(shifts).to(images)
            inputs = torch.stack([ends + shift, ends - shift]).flatten(0, 2)
            every = targets.repeat(2 * len(some))
            gradient = target_gradients(classifier, inputs.__getitem__, every, rows).unflatten(0, (-1, n))
            total += gradient.sum(0)
            squares += (gradient**2).sum(0)
        halves.append((total, squares, 2 * len(numbers)))
    return halves


def _under_noise(heatmaps: Tensor, error: Tensor, samples: int, noise: float) -> Explanation:
    made = 2 * max(2, samples // 2)
    return Explanation(
        heatmaps=heatmaps.float(),
        error=error,
        forwards=torch.full((len(heatmaps),), 2 * made),
        details={"target": "logit", "baseline": "none: slopes near the image", "samples": made, "noise": noise},
    )
