"""Intervals and paired tests: counts in, numbers out."""

import math
from collections.abc import Callable
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


def wilson(count: int, n: int, level: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a proportion (Wilson 1927).

    Parameters
    ----------
    count, n
        Successes and trials, ``0 <= count <= n`` and ``n > 0``.
    level
        Two-sided coverage in (0, 1).

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"wilson: expected 0 <= count <= n and n > 0, got count={count}, n={n}")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    share, spread = count / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return Interval(0.0 if count == 0 else max(0.0, centre - half), 1.0 if count == n else min(1.0, centre + half))


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
