"""Shapley values by a Gaussian process over odd functions: an estimate, and how far off it may be."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # rho: how much interactions weigh, by their order


def shapley_values(masks: NDArray[np.bool_], values: Array) -> tuple[Array, Array]:
    """Estimate a game's Shapley values from paired coalitions, and the half-widths of their 95 % intervals.

    Shapley values depend on the odd part of a game alone, o(S) = (v(S) - v(not S)) / 2. In the Fourier basis of
    z = +-1 it is a sum over odd sets T of o_T prod z_i, and phi_i is the sum over all T that hold i of 2 o_T / |T|. The
    main effects (|T| = 1) are left free; the others are independent with variance s^2 rho^|T|, so that the covariance
    of o(z) and o(z') is the odd part of prod (1 + rho z_i z'_i), and the posterior of phi is in closed form (universal
    kriging). rho is the likeliest of a grid, s^2 estimated given rho. Exact on games of order two, whose odd part is
    linear; the sum is v(all) - v(none), because that pair is in the data. Kin: Leverage SHAP (Musco and Witter 2025),
    ShaplEIG and OddSHAP (shapiq).

    Parameters
    ----------
    masks
        ``m k``, paired as `coalitions.draw` gives them: rows 2j and 2j + 1 are complements, 0 hides and 1 shows all.
    values
        ``m``: the game on each.

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
    agreeing = (z @ z.T + k) // 2
    positive = (z > 0).sum(1, keepdims=True) - (z > 0)  # pluses among the others
    free = bool(len(odd) >= 2 * k and np.linalg.matrix_rank(z) == k)  # too few pairs to leave the main effects free
    fits = [_fit(agreeing, positive, z, odd, rho, free=free) for rho in STRENGTHS]
    _, estimate, deviation = max((fit for fit in fits if fit is not None), key=lambda fit: fit[0])
    from scipy.special import stdtrit

    return estimate, deviation * float(stdtrit(len(odd) - (k if free else 0), 0.975))


def exact(masks: NDArray[np.bool_], values: Array) -> Array:
    """Compute Shapley values from all 2**k coalitions, in any order, each once (Shapley 1953)."""
    k = masks.shape[1]
    size = masks.sum(1)
    with_i = np.array([1 / (k * math.comb(k - 1, s - 1)) if s else 0.0 for s in range(k + 1)])
    without_i = np.array([1 / (k * math.comb(k - 1, s)) if s < k else 0.0 for s in range(k + 1)])
    weights = np.where(masks, with_i[size][:, None], -without_i[size][:, None])
    total: Array = weights.T @ values
    return total


def _fit(
    agreeing: NDArray[np.int64],
    positive: NDArray[np.int64],
    z: NDArray[np.int64],
    odd: Array,
    rho: float,
    *,
    free: bool,
) -> tuple[float, Array, Array] | None:
    """Give log likelihood, mean and standard deviation for one rho; None where the kernel is too close to singular."""
    import scipy.linalg

    n, k = z.shape
    by_agreement, by_positive, own = _tables(k, rho)
    try:
        root = np.linalg.cholesky(by_agreement[agreeing] + 1e-10 * by_agreement[k] * np.eye(n))
    except np.linalg.LinAlgError:
        return None
    reach = z * by_positive[positive]
    white = scipy.linalg.solve_triangular(root, np.column_stack([odd, reach, z]), lower=True, check_finite=False)
    y, r, x = white[:, 0], white[:, 1 : k + 1], white[:, k + 1 :]
    likelihood, variance, dof = -float(np.log(root.diagonal()).sum()), own - (r * r).sum(0), n
    estimate = r.T @ y
    if free:
        q, upper = np.linalg.qr(x)
        missing = scipy.linalg.solve_triangular(upper, 2 * np.eye(k) - x.T @ r, trans="T", check_finite=False)
        estimate = estimate + missing.T @ (q.T @ y)
        variance = variance + (missing * missing).sum(0)
        likelihood -= float(np.log(np.abs(upper.diagonal())).sum())
        y, dof = y - q @ (q.T @ y), n - k
    scale = float(y @ y) / dof
    likelihood -= 0.5 * dof * math.log(max(scale, 1e-300))
    return likelihood, estimate, np.sqrt(scale * np.maximum(variance, 0))


@lru_cache(maxsize=512)
def _tables(k: int, rho: float) -> tuple[Array, Array, float]:
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
