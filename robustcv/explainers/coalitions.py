"""Which regions to show together: pairs of a coalition and its complement, by size, none drawn twice."""

import math

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]  # m k, True: region k is shown; rows 2j and 2j + 1 are complements, 0 hides all, 1 shows all


def draw(regions: int, budget: int, seed: int) -> Masks:
    """Draw coalitions of ``regions`` players: paired, without replacement, every pair of sizes equally often.

    So many of each size as Leverage SHAP takes (Musco and Witter 2025): what decides the Shapley values is spread
    evenly over the sizes, although most coalitions are of middling size. Sizes with few coalitions are taken whole and
    what they leave over goes to the others; with a budget of 2**regions or more that enumerates all.

    Parameters
    ----------
    regions
        Players.
    budget
        Masks at most; at least the empty and the full one.
    seed
        Of this image.

    Raises
    ------
    ValueError
        If there are more than 500 regions.
    """
    require_countable(regions)
    generator = np.random.default_rng(seed % (1 << 63))
    sizes = np.arange(1, regions // 2 + 1)
    room = [math.comb(regions, int(s)) // (2 if 2 * s == regions else 1) for s in sizes]
    shares = [0.5 if 2 * s == regions else 1.0 for s in sizes]
    taken = _allot(max(0, budget // 2 - 1), room, shares)
    masks = [np.zeros((1, regions), bool)]
    for size, pairs, among in zip(sizes.tolist(), taken, room, strict=True):
        if pairs:
            masks.append(_subsets(regions, size, pairs, among, generator))
    return with_complements(np.concatenate(masks))


def require_countable(regions: int) -> None:
    """Refuse more regions than whose coalitions floating point can count.

    Raises
    ------
    ValueError
        If there are more than 500.
    """
    if regions > 500:
        raise ValueError(f"{regions} regions are more than the 500 whose coalitions can be counted")


def with_complements(half: NDArray[np.bool_]) -> Masks:
    """Follow each mask by its complement."""
    return np.stack([half, ~half], 1).reshape(-1, half.shape[1])


def stands_for(masks: Masks) -> NDArray[np.float64]:
    """Count for each drawn mask how many it stands for: those of its size over those of its size that were drawn."""
    size, k = masks.sum(1), masks.shape[1]
    weights: NDArray[np.float64] = np.array([math.comb(k, s) for s in range(k + 1)], float)[size]
    weights /= np.bincount(size)[size]
    return weights


def every_other(masks: Masks, values: NDArray[np.float64], which: int) -> tuple[Masks, NDArray[np.float64]]:
    """Take every other pair with its values, and the empty and the full mask in any case; for `half_error`."""
    keep = (np.arange(len(values)) // 2 + which) % 2 == 0
    keep[:2] = True
    return masks[keep], values[keep]


def _allot(pairs: int, room: list[int], shares: list[float]) -> list[int]:
    """Give out pairs in proportion to the shares, none more than there is room for; the rest to small sizes."""
    taken = [0] * len(room)
    pairs = min(pairs, sum(room))
    while pairs > sum(taken):
        open_sizes = [k for k in range(len(room)) if taken[k] < room[k]]
        left, whole = pairs - sum(taken), sum(shares[k] for k in open_sizes)
        for k in open_sizes:
            more = min(room[k] - taken[k], max(1, int(left * shares[k] / whole)), pairs - sum(taken))
            taken[k] += more
    return taken


def _subsets(n: int, size: int, wanted: int, among: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw different subsets of a size; of half the players only those that hold player 0 (one of a pair)."""
    halved = 2 * size == n
    found: dict[bytes, NDArray[np.bool_]] = {}
    if wanted * 3 >= among:  # nearly all: list them all and choose
        every = _all_subsets(n, size)
        every = every[every[:, 0]] if halved else every
        return every[generator.permutation(len(every))[:wanted]]
    while len(found) < wanted:
        keys = generator.random((2 * (wanted - len(found)), n)).argsort(axis=1) < size
        if halved:
            keys ^= ~keys[:, :1]  # the complement where player 0 is missing
        for row in keys:
            found.setdefault(row.tobytes(), row)
    return np.stack(list(found.values())[:wanted])


def _all_subsets(n: int, size: int) -> NDArray[np.bool_]:
    from itertools import combinations

    rows = np.array(list(combinations(range(n), size)))
    masks = np.zeros((len(rows), n), bool)
    np.put_along_axis(masks, rows, True, axis=1)
    return masks
