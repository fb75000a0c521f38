"""RISE: which places, when shown at random, go with a high logit?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws
from robustcv.explainers.explanation import Explanation, half_error
from robustcv.explainers.pool import Pool
from robustcv.explainers.references import Reference, describe, references


def rise(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 512,
    cells: int = 7,
    shown: float = 0.5,
    fill: Reference = "black",
    rows: int | None = None,
    pool: Pool | None = None,
) -> Explanation:
    """Regress the target's logit on smooth random masks, place by place (Petsiuk et al. 2018).

    A mask is a coarse grid of zeros and ones, enlarged smoothly and shifted at random. The paper averages masks,
    weighed by the score; taking away the mean of score and mask first leaves the same differences between places with
    less noise, and gives the map a sign: how much higher the logit is where the place is shown.

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
    cells
        Cells of the coarse grid along each side.
    shown
        Probability that a cell is shown.
    fill
        What hidden places show; black in the paper; see `references`.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    pool
        Not shared by `rise`, whose masks are no regions: only its batch size is used.
    """
    pool = pool or Pool(classifier, images, rows=rows)
    n, h, w = len(images), *images.shape[2:]
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds
    fills = references(images, fill)
    half = [_Sums(n, h, w, images.device), _Sums(n, h, w, images.device)]
    for numbers in torch.arange(samples).split(max(1, pool.rows // n)):
        masks = _masks(seeds, numbers.tolist(), cells, shown, h, w)
        owner = torch.arange(n, device=images.device).repeat(len(numbers))
        logits = pool.ask(masks.flatten(0, 1).to(images), owner, fills).gather(1, targets.repeat(len(numbers))[:, None])
        for first in range(min(2, len(numbers))):
            half[int(numbers[first]) % 2].add(masks[first::2].double(), logits.reshape(-1, n)[first::2])
    both = _Sums(n, h, w, images.device)
    for each in half:
        both.merge(each)
    return Explanation(
        heatmaps=both.slope().float(),
        error=half_error(half[0].slope(), half[1].slope()) if samples > 3 else torch.full((n,), torch.nan),
        forwards=torch.full((n,), samples * len(fills)),
        details={"target": "logit", "baseline": describe(fill), "samples": samples, "cells": cells, "shown": shown},
    )


class _Sums:
    """Running sums for the slope of the logit over the mask's value at each place."""

    def __init__(self, n: int, h: int, w: int, device: torch.device) -> None:
        self.count = 0
        self.mask, self.squares, self.product = torch.zeros(3, n, h, w, device=device, dtype=torch.float64)
        self.logit = torch.zeros(n, device=device, dtype=torch.float64)

    def add(self, masks: Tensor, logits: Tensor) -> None:
        self.count += len(masks)
        self.mask += masks.sum(0)
        self.squares += masks.square().sum(0)
        self.product += torch.einsum("snhw,sn->nhw", masks, logits)
        self.logit += logits.sum(0)

    def merge(self, other: "_Sums") -> None:
        self.count += other.count
        for name in ("mask", "squares", "product", "logit"):
            getattr(self, name).add_(getattr(other, name))

    def slope(self) -> Tensor:
        count = max(1, self.count)
        covariance = self.product / count - self.mask / count * (self.logit / count)[:, None, None]
        variance = self.squares / count - (self.mask / count) ** 2
        slope: Tensor = covariance / variance.clamp_min(1e-6)
        return slope[:, None]


def _masks(seeds: Tensor, numbers: list[int], cells: int, shown: float, h: int, w: int) -> Float[Tensor, "s n h w"]:
    """Make each image's masks of these numbers."""
    coarse = (draws.uniforms(seeds, (cells + 1, cells + 1), [2 * number for number in numbers]) < shown).float()
    high, wide = -(-h // cells), -(-w // cells)
    size = ((cells + 1) * high, (cells + 1) * wide)
    large = functional.interpolate(coarse.flatten(0, 1)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    shift = draws.uniforms(seeds, (2,), [2 * number + 1 for number in numbers]).flatten(0, 1)
    top, left = (shift[:, 0] * high).long(), (shift[:, 1] * wide).long()
    y = top[:, None] + torch.arange(h, device=seeds.device)
    x = left[:, None] + torch.arange(w, device=seeds.device)
    which = torch.arange(len(large), device=seeds.device)[:, None, None]
    masks: Tensor = large[which, y[:, :, None], x[:, None, :]]
    return masks.reshape(len(numbers), len(seeds), h, w)
