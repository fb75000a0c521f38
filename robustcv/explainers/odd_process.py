"""Shapley values by a Gaussian process over odd functions: an estimate, and how far off it may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STRENGTHS = (0.03, 0.1, 0.25, 0.5, 0.8)  # rho: how much interactions weigh, by their order
NEAR = (0.3, 0.6, 0.9)  # the same among neighbours
SHARES = (0.5, 0.9)  # of what is not linear, that neighbours make among themselves
MOST = 4_000_000  # entries of tables of neighbours; more would take longer than the passes they save


def shapley_values(
    masks: NDArray[np.bool_], values: Array, neighbours: Sequence[Sequence[int]] = ()
) -> tuple[Array, Array]:
    """Estimate a game's Shapley values from paired coalitions, and the half-widths of their 95 % intervals.

    Shapley values depend on the odd part of a game alone, o(S) = (v(S) - v(not S)) / 2. In the Fourier basis of
    z = +-1 it is a sum over odd sets T of o_T prod z_i, and phi_i is the sum over all T that hold i of 2 o_T / |T|. The
    main effects (|T| = 1) are left free; the others are independent with variance s^2 rho^|T|, so that the covariance
    of o(z) and o(z') is the odd part of prod (1 + rho z_i z'_i), and the posterior of phi is in closed form (universal
    kriging). s^2 is estimated given rho, and what is given is averaged over a grid of rho by likelihood. Exact on games
    of order two, whose odd part is linear; the sum is v(all) - v(none), because that pair is in the data. Kin: Leverage
    SHAP (Musco and Witter 2025), ShaplEIG and OddSHAP (shapiq).

    Regions that touch act upon each other more than those that do not. Where the neighbours are known, the prior is a
    mixture: that process, and one of the same form for each group of them; the mixtures join the grid.

    No network is drawn from such a prior, so that with many pairs the likelihood is surer of one than it should be:
    each is weighed by a power of its likelihood, 1 / (1 + pairs / 4 k) (coarsened posterior, Miller and Dunson 2019).
    Student's t has as many degrees of freedom as there are pairs beyond the main effects, from which s is estimated.

    Parameters
    ----------
    masks
        ``m k``, paired as `coalitions.draw` gives them: rows 2j and 2j + 1 are complements, 0 hides and 1 shows all.
    values
        ``m``: the game on each.
    neighbours
        Groups of players that may act together; see `regions.neighbours`. None are known where there are none.

    Returns
    -------
    tuple
        Estimates and half-widths, ``k`` each.
    """
    k = masks.shape[1]
    odd = (values[1::2] - values[::2]) / 2
    if k == 1 or not np.any(odd):
        return np.full(k, 2 * odd[0] / k), np.zeros(k)
    if len(odd) == 2 ** (k - 1):
        return exact(masks, values), np.zeros(k)
    z = np.where(masks[1::2], 1, -1)
    spare = len(odd) - k  # pairs; with too few of them main effects are not left free
    free = bool(spare >= min(k, max(8, k / 4)) and np.linalg.matrix_rank(z) == k)
    estimate, deviation = _averaged(_grid(z, odd, neighbours, free=free), power=1 / (1 + len(odd) / (4 * k)))
    from scipy.special import stdtrit

    return estimate, deviation * float(stdtrit(spare if free else len(odd), 0.975))


def exact(masks: NDArray[np.bool_], values: Array) -> Array:
    """Compute Shapley values from all 2**k coalitions, in any order, each once (Shapley 1953)."""
    k = masks.shape[1]
    size = masks.sum(1)
    with_i = np.array([1 / (k * math.comb(k - 1, s - 1)) if s else 0.0 for s in range(k + 1)])
    without_i = np.array([1 / (k * math.comb(k - 1, s)) if s < k else 0.0 for s in range(k + 1)])
    weights = np.where(masks, with_i[size][:, None], -without_i[size][:, None])
    total: Array = weights.T @ values
    return total


@dataclass(frozen=True)
class _Prior:
    """Covariances of o at the pairs (n n), of it and phi (n k), variances of phi (k); o's but for the linear part."""

    between: Array
    reach: Array
    own: Array
    crooked: float

    def mixed(self, other: "_Prior", share: float) -> "_Prior":
        """Give a share of the variance to the other, but for the linear part's; it is 1 in all."""
        own, its = (1 - share) / self.crooked, share / other.crooked
        return _Prior(
            own * self.between + its * other.between,
            own * self.reach + its * other.reach,
            own * self.own + its * other.own,
            1.0,
        )


Fit = tuple[float, Array, Array]
Place = tuple[int, int, float]  # of a prior in the grid: number of rho, of the neighbours' rho, and their share


def _averaged(fits: Sequence[Fit], power: float) -> tuple[Array, Array]:
    """Average estimates by likelihood to a power; how far they lie apart is part of the deviation."""
    likelihoods = np.array([likelihood for likelihood, _, _ in fits])
    weights = np.exp(power * (likelihoods - likelihoods.max()))
    weights /= weights.sum()
    estimates, deviations = (np.stack([fit[part] for fit in fits]) for part in (1, 2))
    mean = weights @ estimates
    return mean, np.sqrt(weights @ (deviations**2 + (estimates - mean) ** 2))


def _grid(z: NDArray[np.int64], odd: Array, neighbours: Sequence[Sequence[int]], *, free: bool) -> list[Fit]:
    """Fit a grid of priors; with neighbours along its lines: rho at a large share of theirs, their own, rho again.

    Where more than half of all pairs are known, neighbours are left out: what little they save there makes intervals
    too short. So they are where groups times pairs squared are over `MOST` (16 regions: from some 870 passes on).
    """
    k = z.shape[1]
    groups = [list(group) for group in neighbours if len(group) > 2]  # two have no odd part but the linear
    alone = _priors(z, [range(k)], STRENGTHS)
    fits = [(_fit(prior, z, odd, free=free), (place, 0, 0.0)) for place, prior in enumerate(alone)]
    if groups and len(z) <= 2 ** (k - 2) and len(groups) * len(z) ** 2 <= MOST:
        near = _priors(z, groups, NEAR)

        def mixed(place: int, which: int, share: float) -> tuple[Fit | None, Place]:
            return _fit(alone[place].mixed(near[which], share), z, odd, free=free), (place, which, share)

        fits += [mixed(place, 1, SHARES[-1]) for place in range(0, len(alone), 2)]
        best = _best(fits)[1][0]
        fits += [mixed(best, which, share) for which in range(len(near)) for share in SHARES]
        _, (best, which, share) = _best(fits)
        if share:
            fits += [mixed(place, which, share) for place in range(len(alone)) if place != best]
    return [fit for fit, _ in fits if fit is not None]


def _best(fits: Sequence[tuple[Fit | None, Place]]) -> tuple[Fit, Place]:
    return max(((fit, place) for fit, place in fits if fit is not None), key=lambda each: each[0][0])


def _priors(z: NDArray[np.int64], groups: Sequence[Sequence[int]], rhos: Sequence[float]) -> list[_Prior]:
    """Sum the processes of some groups of players, for each rho."""
    n, k = z.shape
    sums = [(np.zeros((n, n)), np.zeros((n, k)), np.zeros(k)) for _ in rhos]
    crooked = [0.0] * len(rhos)
    for group in groups:
        members, size = list(group), len(group)
        part = z[:, members]
        real = part.astype(np.float32)  # whole numbers are not multiplied by BLAS
        agreeing = ((real @ real.T + size) / 2).astype(np.intp)
        positive = (part > 0).sum(1, keepdims=True) - (part > 0)  # pluses among the others
        for place, (rho, (between, reach, own)) in enumerate(zip(rhos, sums, strict=True)):
            by_agreement, by_positive, variance = tables(size, rho)
            between += by_agreement.take(agreeing)
            reach[:, members] += part * by_positive[positive]
            own[members] += variance
            crooked[place] += by_agreement[size] - rho * size
    return [_Prior(*parts, bent) for parts, bent in zip(sums, crooked, strict=True)]


def _fit(prior: _Prior, z: NDArray[np.int64], odd: Array, *, free: bool) -> Fit | None:
    """Give log likelihood, mean and standard deviation; None where the kernel is too close to singular."""
    from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs  # a third of the time of what wraps them

    n, k = z.shape
    between = prior.between.copy()
    between.flat[:: n + 1] += 1e-10 * between[0, 0]
    root, singular = dpotrf(between.T, lower=1, clean=0, overwrite_a=1)
    if singular:
        return None
    columns = np.empty((n, 1 + 2 * k), order="F")
    columns[:, 0], columns[:, 1 : k + 1], columns[:, k + 1 :] = odd, prior.reach, z
    white = dtrtrs(root, columns, lower=1, overwrite_b=1)[0]
    y, r, x = white[:, 0], white[:, 1 : k + 1], white[:, k + 1 :]
    likelihood, variance, dof = -float(np.log(root.diagonal()).sum()), prior.own - (r * r).sum(0), n
    estimate = r.T @ y
    if free:
        upper, singular = dpotrf(x.T @ x)
        if singular:
            return None
        slopes = dpotrs(upper, x.T @ y)[0]  # of the main effects, and what is left to them of each phi
        missing = 2 * np.eye(k) - x.T @ r
        estimate = estimate + missing.T @ slopes
        variance = variance + (missing * dpotrs(upper, missing)[0]).sum(0)
        likelihood -= float(np.log(upper.diagonal()).sum())
        y, dof = y - x @ slopes, n - k
    scale = float(y @ y) / dof
    likelihood -= 0.5 * dof * math.log(max(scale, 1e-300))
    return likelihood, estimate, np.sqrt(scale * np.maximum(variance, 0))


@lru_cache(maxsize=512)
def tables(k: int, rho: float) -> tuple[Array, Array, float]:
    """Tabulate the kernel by agreeing players and the covariance of phi_i and o by pluses among the others; phi's own.

    The covariance of phi_i and o(z) is z_i times the integral from 0 to rho of prod (1 + r z_j) + prod (1 - r z_j) over
    the others: a polynomial of degree k - 1 in r, which Gauss and Legendre's rule integrates exactly.
    """
    a = np.arange(k + 1)
    kernel = 0.5 * ((1 + rho) ** a * (1 - rho) ** (k - a) - (1 - rho) ** a * (1 + rho) ** (k - a))
    nodes, weights = np.polynomial.legendre.leggauss(k // 2 + 1)
    r, weights = rho * (nodes + 1) / 2, weights * rho / 2
    p = np.arange(k)[:, None]
    reach = ((1 + r) ** p * (1 - r) ** (k - 1 - p) + (1 - r) ** p * (1 + r) ** (k - 1 - p)) @ weights
    own = sum(4 / t**2 * rho**t * math.comb(k - 1, t - 1) for t in range(1, k + 1, 2))
    return kernel, reach, own
