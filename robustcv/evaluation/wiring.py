"""Is the model fed and read the way it was trained? Other normalisations, channel orders and class orders are tried."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robustcv.classifier import Classifier, right
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import Predictions
from robustcv.records import Check

FIRST, MOST = 32, 512  # images that every alternative is tried on, and those that the most promising ones are
PROMISING, LEAST = 3, 64
GAIN = 0.05  # in accuracy; a smaller one is no sign of a mistake
LEVEL = 1e-3  # chance of a false alarm, over all alternatives together
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCE = "one-sided exact sign test on the images where the two differ, by Bonferroni"

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Alternative:
    """Another way of feeding the network, and what to do where it is better."""

    name: str
    change: Change
    fix: str


_MISSING = "put the normalisation into the model: robustcv.Classifier(network, mean=..., std=...)"
_DOUBLED = "normalise once: either in robustcv.Classifier or in the network itself"


def _alternatives(classifier: nn.Module, batch: Tensor) -> Iterator[_Alternative]:
    """List other ways of feeding a network: what was probably meant, where one of them is better."""

    def by(mean: Tensor, std: Tensor) -> tuple[Change, Change]:
        mean, std = mean.reshape(1, -1, 1, 1).to(batch), std.reshape(1, -1, 1, 1).to(batch)
        return lambda x: (x - mean) / std, lambda x: x * std + mean

    own = batch.mean((0, 2, 3)), batch.std((0, 2, 3)).clamp_min(1e-3)
    known = {"their own mean and standard deviation": by(*own)}
    if batch.shape[1] == 3:
        known["ImageNet's mean and standard deviation"] = by(*(torch.tensor(each) for each in IMAGENET))
    if isinstance(classifier, Classifier) and not bool((classifier.mean == 0).all() and (classifier.std == 1).all()):
        known["the declared mean and standard deviation"] = by(classifier.mean, classifier.std)
    for name, (there, back) in known.items():
        yield _Alternative(f"normalised by {name}", there, _MISSING)
        yield _Alternative(f"with a normalisation by {name} undone", back, _DOUBLED)
    yield _Alternative("scaled to [-1, 1]", lambda x: 2 * x - 1, _MISSING)
    yield _Alternative("with a scaling to [-1, 1] undone", lambda x: (x + 1) / 2, _DOUBLED)
    yield _Alternative(
        "scaled to [0, 255]", lambda x: 255 * x, "scale the images inside the model: return net(255 * x)"
    )
    yield _Alternative("divided by 255", lambda x: x / 255, "the network divides by 255 itself: leave that out")
    if batch.shape[1] == 3:
        fix = "the network was trained on BGR (OpenCV's order): flip the channels inside the model"
        yield _Alternative("with red and blue exchanged", lambda x: x.flip(1), fix)


def fewer(count: int, shape: tuple[int, int, int], *, least: int) -> int:
    """Take fewer images where they are larger than 64 pixels, as the networks for them take longer."""
    return max(least, int(count * min(1.0, 64 * 64 / (shape[1] * shape[2]))))


def feeding(classifier: nn.Module, ask: nn.Module, images: ImageSet, device: torch.device) -> Check:
    """Hold the way images reach the network against other ways; raised where one of them gives a better accuracy.

    Every alternative is tried on a few images; the most promising ones are judged on others.

    Parameters
    ----------
    ask
        The classifier, or a wrapper that counts its passes.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sample, most = fewer(FIRST, images.shape, least=8), fewer(MOST, images.shape, least=LEAST)
    first, rest = order[:sample], order[sample : sample + most]
    rest = rest if len(rest) >= sample else order[:most]
    # sizes (and what they clamp) come before any change
    resize: Change = classifier.resized if isinstance(classifier, Classifier) else lambda batch: batch

    def load(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch, labels = next(images.take(rows).batches(len(rows)))
        return resize(batch.to(device)), labels.to(device)

    def hits(batch: Tensor, labels: Tensor) -> Bool[Tensor, " n"]:
        with torch.no_grad():
            return torch.cat([right(ask(x), y) for x, y in zip(batch.split(64), labels.split(64), strict=True)])

    few, labels = load(first)
    every = list(_alternatives(classifier, few))
    given = hits(few, labels)
    gains = [int((hits(each.change(few), labels)).sum() - given.sum()) for each in every]
    best = sorted((k for k in range(len(every)) if gains[k] > 0), key=lambda k: -gains[k])[:PROMISING]
    name, threshold = "normalisation", f"a gain of {100 * GAIN:.0f} points that chance gives once in {1 / LEVEL:,.0f}"
    if best:
        more, labels = load(rest)
        given = hits(more, labels)
        for k in best:
            other = hits(every[k].change(more), labels)
            if _better(given, other, len(every)):
                figure = (
                    f"{int(other.sum())} of {len(other)} images are right {every[k].name}, {int(given.sum())} as given"
                )
                return Check(
                    check=name, status="raised", figure=figure, fix=every[k].fix, threshold=threshold, source=SOURCE
                )
    figure = f"{_seen(classifier, few)}; none of {len(every)} other ways to feed it is better"
    return Check(check=name, status="pass", figure=figure, threshold=threshold, source=SOURCE)


def _seen(classifier: nn.Module, batch: Float[Tensor, "n c h w"]) -> str:
    """Tell the range of values that the network sees, where that is known."""
    if not isinstance(classifier, Classifier):
        return f"the model takes pixels from {float(batch.min()):.2f} to {float(batch.max()):.2f}"
    inside = (batch - classifier.mean) / classifier.std
    declared = bool((classifier.mean != 0).any() or (classifier.std != 1).any())
    what = "after the declared normalisation" if declared else "with no normalisation declared"
    return f"the network sees {float(inside.min()):.2f} to {float(inside.max()):.2f}, {what}"


def _better(given: Bool[Tensor, " n"], other: Bool[Tensor, " n"], tried: int) -> bool:
    """Tell whether an alternative is right more often than chance and a small gain explain."""
    from scipy.stats import binomtest

    won, lost = int((other & ~given).sum()), int((given & ~other).sum())
    if won - lost < GAIN * len(given) or won == 0:
        return False
    return bool(binomtest(won, won + lost, alternative="greater").pvalue < LEVEL / tried)


def reading(predictions: Predictions) -> Check:
    """Hold the order of the classes against others: shifted by one, and the best one for half of the images.

    The best order is fitted on one half (an assignment that maximises the hits) and judged on the other.
    """
    found = better_order(predictions)
    name = "label order"
    if found is None:
        return Check(check=name, status="pass", figure="no other order of the classes is better", source=SOURCE)
    told, hits, given, n = found
    return Check(
        check=name,
        status="raised",
        figure=f"{hits} of {n} images would be right {told}, {given} as given",
        fix="compare the model's classes with the data's, name by name and in order; labels begin at 0",
        source=SOURCE,
    )


def better_order(predictions: Predictions) -> tuple[str, int, int, int] | None:
    """Find an order of the classes that fits the predictions better: what it is, its hits, those as given, and n."""
    from scipy.optimize import linear_sum_assignment

    labels, classes = predictions.labels, predictions.classes
    k = int(predictions.logits.shape[1])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    half, judged = order[: len(order) // 2], order[len(order) // 2 :]
    table = torch.zeros(k, k)
    table.index_put_((classes[half], labels[half]), torch.ones(len(half)), accumulate=True)
    _, fitted = linear_sum_assignment(-table.numpy())
    shifts: Sequence[tuple[str, Tensor]] = (
        ("if every label were one higher", (torch.arange(k) - 1) % k),
        ("if every label were one lower", (torch.arange(k) + 1) % k),
        ("with the classes in another order", torch.from_numpy(fitted)),
    )
    given = predictions.correct[judged]
    for told, meaning in shifts:
        other = (meaning[classes[judged]] == labels[judged]) & predictions.logits[judged].isfinite().all(1)
        if _better(given, other, len(shifts)):
            return told, int(other.sum()), int(given.sum()), len(judged)
    return None
