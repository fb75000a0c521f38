"""Intervals and paired tests, against statsmodels, published figures and simulation."""

import numpy as np
import pytest
from hypothesis import given
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
