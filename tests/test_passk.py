"""Pass@k against exact fractions and enumeration, and the t interval against scipy."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats

from workbench.passk import mean_interval, pass_at_k, t_quantile


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(comb(n - c, k), comb(n, k))


@pytest.mark.parametrize("n", [1, 2, 5, 16, 2048])
def test_it_is_the_exact_fraction(n: int) -> None:
    ks = sorted({1, 2, 3, n // 4, n // 2, n - 1, n} & set(range(1, n + 1)))
    correct = sorted({0, 1, 2, 3, n // 2, n - 1, n} & set(range(n + 1)))
    found = pass_at_k(n, correct, ks)
    wanted = [[float(exact(n, c, k)) for k in ks] for c in correct]
    assert found.shape == (len(correct), len(ks))
    assert np.abs(found - wanted).max() < 1e-10


@pytest.mark.parametrize("n", [1, 4, 6])
def test_it_counts_the_draws_that_hold_a_correct_sample(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([True] * c + [False] * (n - c), k))
            share = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-14)


def test_the_edges_are_exact() -> None:
    ks = np.arange(1, 2049)
    assert np.array_equal(pass_at_k(2048, 0, ks), np.zeros(2048))
    assert np.array_equal(pass_at_k(2048, 2048, ks), np.ones(2048))
    assert np.array_equal(pass_at_k(2048, 1000, ks[1048:]), np.ones(1000))  # k > n - c
    assert not np.signbit(pass_at_k(2048, 0, ks)).any()


def test_problems_may_differ_in_their_samples() -> None:
    found = pass_at_k([4, 8, 4], [1, 1, 0], [1, 4])
    assert found == pytest.approx(np.array([[0.25, 1.0], [0.125, 0.5], [0.0, 0.0]]))


def test_it_is_unbiased_where_the_plug_in_is_not() -> None:
    chance, n, k = 0.3, 8, 4
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, chance)
    truth = 1 - (1 - chance) ** k
    assert weights @ pass_at_k(n, counts, k) == pytest.approx(truth, abs=1e-12)
    assert weights @ (1 - (1 - counts / n) ** k) < truth - 0.03


def test_a_k_above_the_samples_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"k = 32 with n = 16"):
        pass_at_k([64, 16], [1, 1], [1, 32])
    with pytest.raises(ValueError, match="k = 0"):
        pass_at_k(4, 1, 0)
    with pytest.raises(ValueError, match="c = 5 with n = 4"):
        pass_at_k(4, [1, 5], 1)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 499])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_t_quantile_is_scipys(degrees: int, level: float) -> None:
    wanted = stats.t.ppf((1 + level) / 2, degrees)
    assert t_quantile(degrees, level) == pytest.approx(wanted, rel=1e-9)


def test_the_interval_is_scipys() -> None:
    values = np.array([0.1, 0.4, 0.45, 0.9])
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.units == 4


def test_units_that_are_all_the_same_have_no_interval() -> None:
    found = mean_interval([[1.0, 0.1, 0.0], [1.0, 0.1 + 1e-17, 0.0], [1.0, 0.3, 0.0]])
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [True, False, True]
    sums = [0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1]  # the same but for rounding
    assert sums[0] != sums[1] and np.isnan(mean_interval(sums).low)


def test_one_unit_has_no_interval_and_none_is_refused() -> None:
    found = mean_interval([[0.5, 0.25]])
    assert found.mean.tolist() == [0.5, 0.25]
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()
    with pytest.raises(ValueError, match="at least one unit"):
        mean_interval([])
