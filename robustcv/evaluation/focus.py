"""Where a class's maps lie on average, and whether that looks like a shortcut."""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from robustcv.measures.ranking import relevance
from robustcv.records import ClassFocus

LEAST = 5  # images of a class below which a mean says nothing
CONCENTRATED = 0.15  # share of the relevance in one 64th of the image; see benchmarks/RESULTS.md for its false alarms


def class_focus(
    maps: Mapping[str, Float[Tensor, "n m h w"]],
    classes: Int64[Tensor, " n"],
    class_names: Sequence[str],
    masks: Bool[Tensor, "n h w"] | None,
) -> tuple[tuple[ClassFocus, ...], dict[str, Float[Tensor, "1 h w"]]]:
    """Average the positive relevance over the images of each class, and find the heaviest window of an eighth a side.

    An alarm means that the maps of a class crowd into one small place, whatever the image, or lie outside the object
    more than an even spread would: what a tag, a watermark or a border looks like. It also means that where objects
    always lie in the same place; a person has to look.

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
        for label in classes.unique().tolist():
            own = classes == label
            if int(own.sum()) < LEAST:
                continue
            mean = spread[own].mean(0)
            share, place = heaviest_window(mean)
            inside, even = None, 0.0
            if masks is not None:
                inside = float((spread[own] * masks[own]).sum((1, 2)).mean())
                even = float(masks[own].float().mean())
            key = f"focus-{label:03d}-{method}"
            pictures[key] = mean[None]
            rows.append(
                ClassFocus(
                    method=method,
                    name=class_names[label],
                    n=int(own.sum()),
                    share=share,
                    place=place,
                    inside=inside,
                    alarm=share > CONCENTRATED or (inside is not None and inside < even),
                    file=key,
                )
            )
    return tuple(rows), pictures


def heaviest_window(mean: Float[Tensor, "h w"]) -> tuple[float, tuple[float, float]]:
    """Find the window of an eighth of each side with the largest sum; gives the sum and the window's middle."""
    h, w = mean.shape
    high, wide = max(1, h // 8), max(1, w // 8)
    sums = functional.avg_pool2d(mean[None, None], (high, wide), 1)[0, 0] * high * wide
    y, x = divmod(int(sums.argmax()), sums.shape[1])
    return float(sums.max()), ((y + high / 2) / h, (x + wide / 2) / w)
