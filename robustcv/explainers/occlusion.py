"""Occlusion: how much does the logit fall where a window is hidden?"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation
from robustcv.explainers.pool import Pool, at_targets
from robustcv.explainers.references import Reference, describe
from robustcv.explainers.regions import Regions


def occlusion(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    window: int = 2,
    regions: Regions = "grid:8",
    fill: Reference = "mean",
    rows: int | None = None,
    pool: Pool | None = None,
) -> Explanation:
    """Hide a window at a time and spread the fall of the logit over its pixels (Zeiler and Fergus 2014).

    The window moves over a grid by one cell and hides ``window`` x ``window`` of them; a pixel's value is the mean over
    windows that hide it, per pixel hidden. With ``window=1`` on a linear model a cell's values sum to its exact share.
    Regions that are no grid are hidden one by one.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried, never differentiated.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    window
        Cells along each side of the window.
    regions
        The grid that it moves over, ``grid:8`` or ``grid:8x6``; or ``slic:16`` or numbers ``h w`` or ``n h w``.
    fill
        What the window shows: ``mean``, ``blur``, a grey level or other images; see `references`.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    pool
        Masked passes to share with other methods; None begins one.
    """
    game = (pool or Pool(classifier, images, rows=rows)).game(regions, fill)
    hidden = [
        _windows(where, count, window, isinstance(regions, str) and regions.startswith("grid"))
        for where, count in zip(game.regions, game.counts, strict=True)
    ]
    masks = [np.concatenate([np.ones((1, each.shape[1]), bool), ~each]) for each in hidden]
    values = at_targets(game.logits(masks), targets)
    maps = []
    for each, own, where in zip(hidden, values, game.regions.cpu(), strict=True):
        sizes = np.bincount(where.flatten().numpy(), minlength=each.shape[1])
        fall = (own[0] - own[1:]) / (each @ sizes)  # per pixel hidden
        mean = (each.T @ fall) / each.sum(0)
        maps.append(torch.from_numpy(mean)[where][None])
    return Explanation(
        heatmaps=torch.stack(maps).to(images.device).float(),
        error=torch.zeros(len(images), device=images.device),
        forwards=torch.tensor([len(own) * len(game.fills) for own in values]),
        details={
            "target": "logit",
            "baseline": describe(fill),
            "regions": regions if isinstance(regions, str) else "given",
            "window": window,
        },
    )


def _windows(
    where: Tensor, count: int, window: int, is_grid: bool
) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
    """List the cells that each window hides."""
    columns = int(where[0].max()) + 1
    if not is_grid or window == 1:
        return np.eye(count, dtype=bool)
    grid = np.arange(count).reshape(-1, columns)
    high, wide = (min(window, size) for size in grid.shape)
    places = np.lib.stride_tricks.sliding_window_view(grid, (high, wide)).reshape(-1, high * wide)
    hidden = np.zeros((len(places), count), bool)
    np.put_along_axis(hidden, places, True, axis=1)
    return hidden
