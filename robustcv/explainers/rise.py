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
        masks = torch.stack([_masks(seeds, number, cells, shown, h, w) for number in numbers.tolist()])
        owner = torch.arange(n, device=images.device).repeat(len(numbers))
        logits = pool.ask(masks.flatten(0, 1).to(images), owner, fills).gather(1, targets.repeat(len(numbers))[:, None])
        for number, mask, logit in zip(numbers.tolist(), masks, logits.reshape(-1, n), strict=True):
            half[number % 2].add(mask, logit)
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
        self.count += 1
        self.mask += masks
        self.squares += masks.double() ** 2
        self.product += masks * logits[:, None, None]
        self.logit += logits

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


def _masks(seeds: Tensor, number: int, cells: int, shown: float, h: int, w: int) -> Float[Tensor, "n h w"]:
    """Make one mask of each image."""
    coarse = (draws.uniform(seeds, (1, cells + 1, cells + 1), 2 * number) < shown).float()
    high, wide = -(-h // cells), -(-w // cells)
    large = functional.interpolate(
        coarse, ((cells + 1) * high, (cells + 1) * wide), mode="bilinear", align_corners=False
    )
    shift = draws.uniform(seeds, (2,), 2 * number + 1)
    top, left = (shift[:, 0] * high).long(), (shift[:, 1] * wide).long()
    y = top[:, None] + torch.arange(h, device=seeds.device)
    x = left[:, None] + torch.arange(w, device=seeds.device)
    return large[torch.arange(len(seeds), device=seeds.device)[:, None, None], 0, y[:, :, None], x[:, None, :]]
