"""Where a class's maps lie on average, and whether that looks like a shortcut."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from robustcv import stats
from robustcv.measures.ranking import relevance
from robustcv.records import ClassFocus

LEAST = 5  # images of a class below which a mean says nothing
CONCENTRATED = 0.08  # an even spread has 0.016 in one 64th of the image; false alarms are in benchmarks/RESULTS.md
ALONE = 0.25  # the same, where there is no other class to compare with
DRAWS, LEVEL = 500, 0.99


def class_focus(
    maps: Mapping[str, Float[Tensor, "n m h w"]],
    classes: Int64[Tensor, " n"],
    class_names: Sequence[str],
    masks: Bool[Tensor, "n h w"] | None,
) -> tuple[tuple[ClassFocus, ...], dict[str, Float[Tensor, "1 h w"]]]:
    """Average the positive relevance over the images of each class, and find the heaviest window of an eighth a side.

    An alarm means that the maps of a class crowd into one small place, whatever the image, more than maps of all
    classes do (permutation test), or lie outside the object more than an even spread would: what a tag, a watermark or
    a border looks like. It also means that where the objects of a class always lie in one place; a person has to look.

    Parameters
    ----------
    maps
        Of each method.
    classes
        The class that each map explains.
    masks
        Where the objects are, where that is known.

    Returns
    -------
    tuple
        One row a method and class with enough images, and the mean maps by file key.
    """
    rows, pictures = [], {}
    for method, heatmaps in maps.items():
        positive = relevance(heatmaps).clamp_min(0)
        spread = positive / positive.sum((1, 2), keepdim=True).clamp_min(1e-30)
        told = positive.flatten(1).amax(1) > 0  # a map that is positive nowhere has no place
        windows = _windows(spread[told]).flatten(1)
        for label in classes.unique().tolist():
            own = (classes == label) & told
            if int(own.sum()) < LEAST:
                continue
            mean = spread[own].mean(0)
            share, place = heaviest_window(mean)
            chance = _by_chance(windows, int(own.sum())) if len(classes.unique()) > 1 else None
            inside, outside = None, False
            if masks is not None:
                within, even = (spread[own] * masks[own]).sum((1, 2)), masks[own].float().mean((1, 2))
                inside = float(within.mean())
                outside = stats.mean_interval((within - even).numpy(), seed=0).high < 0
            key = f"focus-{label:03d}-{method}"
            pictures[key] = mean[None]
            rows.append(
                ClassFocus(
                    method=method,
                    name=class_names[label],
                    n=int(own.sum()),
                    share=share,
                    chance=chance,
                    place=place,
                    inside=inside,
                    alarm=share > max(ALONE if chance is None else chance, CONCENTRATED) or outside,
                    file=key,
                )
            )
    return tuple(rows), pictures


def heaviest_window(mean: Float[Tensor, "h w"]) -> tuple[float, tuple[float, float]]:
    """Find the window of an eighth of each side with the largest sum; gives the sum and the window's middle."""
    h, w = mean.shape
    sums = _windows(mean[None])[0]
    y, x = divmod(int(sums.argmax()), sums.shape[1])
    return float(sums.max()), ((y + max(1, h // 8) / 2) / h, (x + max(1, w // 8) / 2) / w)


def _windows(spread: Float[Tensor, "n h w"]) -> Tensor:
    """Sum every window of an eighth of each side."""
    h, w = spread.shape[1:]
    high, wide = max(1, h // 8), max(1, w // 8)
    return functional.avg_pool2d(spread[:, None], (high, wide), 1)[:, 0] * high * wide


def _by_chance(windows: Float[Tensor, "n places"], count: int) -> float:
    """Compute what the heaviest window of ``count`` maps, drawn from all classes, stays below in 99 % of draws."""
    generator = torch.Generator().manual_seed(0)
    most = [
        float(windows[torch.randperm(len(windows), generator=generator)[:count]].mean(0).max()) for _ in range(DRAWS)
    ]
    return float(torch.tensor(most).quantile(LEVEL))
