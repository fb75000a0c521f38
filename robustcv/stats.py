"""Intervals and paired tests: counts in, numbers out."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """Lower and upper end of a two-sided interval."""

    low: float
    high: float


class Paired(NamedTuple):
    """Difference of two proportions on the same images, with its interval and exact McNemar p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def wilson(count: float, n: int, level: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a proportion (Wilson 1927).

    Parameters
    ----------
    count, n
        Successes and trials, ``0 <= count <= n`` and ``n > 0``; or a sum of n values in [0, 1], whose variance is
        at most that of so many successes.
    level
        Two-sided coverage in (0, 1).

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"wilson: expected 0 <= count <= n and n > 0, got count={count}, n={n}")
    low, high = _wilson(count / n, n, level)
    return Interval(0.0 if count == 0 else low, 1.0 if count == n else high)


def _wilson(share: float, n: float, level: float) -> Interval:
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired(both: int, only_a: int, only_b: int, neither: int, level: float = 0.95) -> Paired:
    """Compare two proportions measured on the same images: b minus a.

    The interval is Newcombe's hybrid score interval for paired data (Newcombe 1998, method 10); the p-value is the
    exact two-sided McNemar test on the discordant pairs.

    Parameters
    ----------
    both, only_a, only_b, neither
        Images on which both succeed, only a, only b, and none.
    """
    from scipy.stats import binomtest

    n = both + only_a + only_b + neither
    a, b = both + only_a, both + only_b
    low_a, high_a = wilson(a, n, level)
    low_b, high_b = wilson(b, n, level)
    share_a, share_b = a / n, b / n
    margins = a * (n - a) * b * (n - b)
    numerator: float = both * neither - only_a * only_b
    if numerator > 0:  # continuity correction of method 10
        numerator = max(numerator - n / 2, 0)
    phi = numerator / math.sqrt(margins) if margins else 0.0
    below, above = share_b - low_b, high_a - share_a
    low = (share_b - share_a) - math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = share_a - low_a, high_b - share_b
    high = (share_b - share_a) + math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return Paired(share_b - share_a, max(-1.0, low), min(1.0, high), p_value)


def bootstrap(
    statistic: Callable[..., float],
    *samples: NDArray[Any],
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Compute a percentile bootstrap interval of any statistic of paired samples, shifted by its bias (Efron 1979).

    A statistic such as the calibration error is larger on resamples than on the sample, on average; unshifted, the
    interval could lie above the figure it belongs to.

    Parameters
    ----------
    statistic
        Takes the resampled arrays, returns one number.
    samples
        Arrays of equal length; row i of each belongs to the same image.
    """
    rng = np.random.default_rng(seed)
    n = len(samples[0])
    draws = [statistic(*(sample[rows] for sample in samples)) for rows in rng.integers(0, n, (resamples, n))]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    bias = float(np.mean(draws)) - statistic(*samples)
    return Interval(float(low) - bias, float(high) - bias)


def mean_interval(values: NDArray[Any], *, seed: int, resamples: int = 1000, level: float = 0.95) -> Interval:
    """Compute a percentile bootstrap interval of a mean (Efron 1979), all resamples at once.

    Parameters
    ----------
    values
        One per image.
    seed
        Of the resampling.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.asarray(values, dtype=float)[rng.integers(0, n, (resamples, n))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


def median_interval(values: NDArray[Any], level: float = 0.95) -> Interval | None:
    """Compute an interval of a median from order statistics; no assumption but independence (Conover 1999, 3.2).

    Between the k-th smallest and the k-th largest value, k the largest for which fewer than k of n values lie below
    the median with a probability of at most (1 - level) / 2; None where there are too few values for the level.
    """
    from scipy.stats import binom

    ranked = np.sort(np.asarray(values, dtype=float))
    k = int(binom.ppf(0.5 - level / 2, len(ranked), 0.5))
    return Interval(float(ranked[k - 1]), float(ranked[-k])) if k else None


def clopper_pearson(count: int, n: int, level: float = 0.95) -> Interval:
    """Compute the exact two-sided interval of a proportion (Clopper and Pearson 1934); it never covers too seldom.

    Parameters
    ----------
    count, n
        Successes and trials, ``0 <= count <= n`` and ``n > 0``.

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    tail = (1 - level) / 2
    return Interval(lower_bound(count, n, tail), 1 - lower_bound(n - count, n, tail))


def lower_bound(count: int, n: int, alpha: float) -> float:
    """Compute the exact one-sided lower bound of a proportion: above the truth with probability at most alpha.

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"lower_bound: expected 0 <= count <= n and n > 0, got count={count}, n={n}")
    from scipy.special import betaincinv

    return float(betaincinv(count, n - count + 1, alpha)) if count else 0.0


def finite_population(count: int, n: int, total: int, level: float = 0.95) -> Interval:
    """Compute an interval for a share among ``total`` fixed images, of which ``n`` were drawn without replacement.

    Wilson's interval with the finite-population correction: n grows by ``(total - 1) / (total - n)`` (Cochran 1977,
    section 2.6). With every image drawn the share is known and the interval is a point.

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    if not 0 <= count <= n <= total or n == 0:
        raise ValueError(f"finite_population: expected 0 <= count <= n <= total, got {count}, {n}, {total}")
    if n == total:
        return Interval(count / n, count / n)
    return _wilson(count / n, n * (total - 1) / (total - n), level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false alarm among them stays below the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def against_rest(counts: Sequence[int], totals: Sequence[int]) -> list[float]:
    """Test each group's share against that of all others (Fisher's exact test), adjusted by Holm; 1 for empty groups.

    Parameters
    ----------
    counts, totals
        Successes and trials of each group.
    """
    from scipy.stats import fisher_exact

    right, every = sum(counts), sum(totals)
    tables = [[[c, n - c], [right - c, every - n - (right - c)]] for c, n in zip(counts, totals, strict=True)]
    tested = [k for k, n in enumerate(totals) if 0 < n < every]
    found = dict(zip(tested, holm([float(fisher_exact(tables[k]).pvalue) for k in tested]), strict=True))
    return [found.get(k, 1.0) for k in range(len(totals))]
