"""Closed forms for linear classifiers, in numpy and one image at a time: the answers that attacks are held against."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def room_of(image: Array, direction: Array) -> Array:
    """How far each value can go along a direction before it leaves [0, 1]."""
    return np.where(direction > 0, 1 - image, image)


def best_gain(image: Array, direction: Array, eps: float, norm: str) -> float:
    """The largest ``<direction, change>`` of any change within eps and the box."""
    gain, room = np.abs(direction), room_of(image, direction)
    if norm == "linf":
        return float((gain * np.minimum(room, eps)).sum())
    if norm == "l2":
        if np.sqrt((room**2).sum()) <= eps:
            return float((gain * room).sum())
        low, high = 0.0, 1e3
        for _ in range(80):  # the multiplier at which the clipped ray has length eps
            middle = (low + high) / 2
            if np.sqrt((np.minimum(middle * gain, room) ** 2).sum()) > eps:
                high = middle
            else:
                low = middle
        return float((gain * np.minimum(low * gain, room)).sum())
    order = np.argsort(-gain if norm == "l1" else -gain * room)
    left, total = eps, 0.0
    for place in order:
        if left <= 0:
            break
        step = min(room[place], left) if norm == "l1" else room[place]
        total += gain[place] * step
        left -= step if norm == "l1" else 1
    return float(total)


def stands(weights: Array, bias: Array, image: Array, label: int, eps: float, norm: str) -> bool:
    """Whether no change within eps and the box makes a linear classifier wrong."""
    logits = weights @ image + bias
    return all(
        logits[label] - logits[k] > best_gain(image, weights[k] - weights[label], eps, norm)
        for k in range(len(weights))
        if k != label
    )


def nearest(weights: Array, bias: Array, image: Array, label: int, norm: str) -> float:
    """The least eps at which a linear classifier can be made wrong, by bisection on `stands`."""
    if norm == "l0":
        return float(next(k for k in range(1, len(image) + 1) if not stands(weights, bias, image, label, k, norm)))
    low, high = 0.0, float(len(image))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if stands(weights, bias, image, label, middle, norm) else (low, middle)
    return high
