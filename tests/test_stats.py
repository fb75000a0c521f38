"""Intervals and paired tests, against statsmodels, published figures and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from robustcv import stats


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_equals_statsmodels(counts: tuple[int, int], level: float) -> None:
    count, n = counts
    low, high = stats.wilson(count, n, level)
    wanted = proportion_confint(count, n, alpha=1 - level, method="wilson")
    assert (low, high) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= count <= n"):
        stats.wilson(count, n)


def test_wilson_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [low <= 0.3 <= high for low, high in (stats.wilson(int(k), 200) for k in rng.binomial(200, 0.3, 4000))]
    assert 0.935 <= np.mean(hits) <= 0.965


@pytest.mark.parametrize("shape", [(0.2, 0.2), (1.0, 1.0), (8.0, 2.0)])
def test_wilson_of_a_sum_of_shares_covers_at_least_as_often(shape: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    mean = shape[0] / sum(shape)
    sums = np.clip(rng.beta(*shape, (2000, 40)).sum(1), 0, 40)
    hits = [low <= mean <= high for low, high in (stats.wilson(float(each), 40) for each in sums)]
    assert np.mean(hits) >= 0.94


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0))
def test_mcnemar_equals_statsmodels_and_the_interval_holds_the_difference(table: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = table
    result = stats.paired(*table)
    wanted = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert result.p_value == pytest.approx(min(1.0, wanted), abs=1e-9)
    assert result.low - 1e-12 <= result.difference <= result.high + 1e-12
    mirrored = stats.paired(both, only_b, only_a, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((-result.high, -result.low), abs=1e-12)


def test_newcombes_published_example() -> None:
    """Newcombe 1998, table III, method 10: a 36, b 12, c 2, d 0 of 50 gives 0.2000 (0.0569 to 0.3404)."""
    result = stats.paired(36, 2, 12, 0)
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_paired_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    cells = [0.5, 0.08, 0.2, 0.22]
    draws = rng.multinomial(150, cells, 2000)
    hits = [(r := stats.paired(*map(int, row))).low <= cells[2] - cells[1] <= r.high for row in draws]
    assert 0.935 <= np.mean(hits) <= 0.975


def test_bootstrap_of_a_mean_agrees_with_theory_and_repeats() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = stats.bootstrap(lambda x: float(x.mean()), values, seed=5)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert (low, high) == stats.bootstrap(lambda x: float(x.mean()), values, seed=5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.99]))
def test_clopper_pearson_equals_statsmodels(counts: tuple[int, int], level: float) -> None:
    wanted = proportion_confint(*counts, alpha=1 - level, method="beta")
    assert stats.clopper_pearson(*counts, level) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("share", "n"), [(0.02, 50), (0.3, 200), (0.97, 1000)])
def test_exact_intervals_and_bounds_never_cover_too_seldom(share: float, n: int) -> None:
    """Over every possible count, weighted by its probability: no simulation."""
    from scipy.stats import binom

    weight = binom.pmf(range(n + 1), n, share)
    two = [low <= share <= high for low, high in (stats.clopper_pearson(k, n) for k in range(n + 1))]
    one = [stats.lower_bound(k, n, 0.001) <= share for k in range(n + 1)]
    assert weight @ two >= 0.95 - 1e-12 and weight @ one >= 0.999 - 1e-12
    assert weight @ [low <= share <= high for low, high in (stats.wilson(k, n) for k in range(n + 1))] >= 0.915


def test_the_bound_of_randomised_smoothing_is_the_published_one() -> None:
    """Cohen et al. 2019: n of n hits, alpha 0.001, 100,000 draws certify at most 3.8115 sigma."""
    from scipy.special import ndtri

    bound = stats.lower_bound(100_000, 100_000, 0.001)
    assert bound == pytest.approx(0.001 ** (1 / 100_000), rel=1e-9) and ndtri(bound) == pytest.approx(3.8115, abs=1e-4)


@pytest.mark.parametrize("n", [40, 300, 900])
def test_the_interval_for_a_fixed_set_covers_as_often_as_it_says(n: int) -> None:
    from scipy.stats import hypergeom

    total, right = 1000, 620
    weight = hypergeom.pmf(range(n + 1), total, right, n)
    hits = [low <= 0.62 <= high for low, high in (stats.finite_population(k, n, total) for k in range(n + 1))]
    assert 0.93 <= weight @ hits <= 0.975
    low, high = stats.finite_population(n // 2, n, total)
    wide_low, wide_high = stats.wilson(n // 2, n)
    assert wide_low < low < high < wide_high and stats.finite_population(620, 1000, 1000) == (0.62, 0.62)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=30)
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_equal_classes_raise_few_false_alarms_and_an_odd_one_is_found() -> None:
    rng = np.random.default_rng(3)
    alarms = [min(stats.against_rest(rng.binomial(60, 0.6, 10).tolist(), [60] * 10)) < 0.05 for _ in range(300)]
    assert np.mean(alarms) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
    found = stats.against_rest([15, *[48] * 9], [60] * 10)
    assert found[0] < 1e-6 and min(found[1:]) > 0.05 and stats.against_rest([3, 0], [5, 0]) == [1.0, 1.0]


@pytest.mark.parametrize("n", [6, 15, 40, 101])
def test_the_interval_of_a_median_covers_by_enumeration(n: int) -> None:
    """The median lies between the k-th smallest and largest of n values with probability 1 - 2 P(Binomial < k)."""
    low, high = stats.median_interval(np.arange(n))
    k = int(low) + 1
    assert high == n - k
    below = sum(math.comb(n, j) for j in range(k)) / 2**n
    next_one = sum(math.comb(n, j) for j in range(k + 1)) / 2**n
    assert below <= 0.025 < next_one


def test_the_interval_of_a_mean_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(400):
        low, high = stats.mean_interval(rng.exponential(size=80), seed=k)
        covered += low <= 1 <= high
    assert 0.90 <= covered / 400 <= 0.975  # a bootstrap of a skewed mean covers a little too seldom
