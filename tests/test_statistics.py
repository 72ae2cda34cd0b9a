"""Intervals and tests against scipy, exact enumeration and stored results of rliable."""

import itertools
from math import comb, isnan

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.bootstrap import (
    interquartile_mean,
    mean_over_problems,
    over_runs,
    probability_of_improvement,
)
from analysis.intervals import of_share
from analysis.paired import EXACT, differences, holm, sign_flip, smallest_p
from workbench.passk import (
    mean_interval,
    mean_pass_at_k_over_samples,
    pass_at_k,
    pass_at_k_with_replacement,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- paired tests on seeds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[0.3, -0.1], [1.0, -2.0, 3.0], [0.5, 1.5, 0.25, -0.1, 2.0, 0.7]], ids=len
)
def test_the_sign_flip_p_is_scipys(values: list[float]) -> None:
    wanted = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    # scipy counts the assignments at least as large, doubled: the same where the null is symmetric.
    assert sign_flip(values, generator()) == pytest.approx(min(1.0, wanted.pvalue))


def test_sums_that_are_equal_but_for_rounding_count() -> None:
    for seed in range(30):  # whole numbers add up exactly, sevenths of them do not
        values = generator(seed).integers(-6, 7, size=8)
        signs = np.array(list(itertools.product([-1, 1], repeat=8)))
        wanted = np.mean(np.abs(signs @ values) >= abs(values.sum()))
        assert sign_flip(values / 7, generator()) == wanted


@pytest.mark.parametrize(("pairs", "least"), [(1, 1), (2, 0.5), (3, 0.25), (5, 0.0625), (8, 2**-7)])
def test_all_of_one_sign_attain_the_smallest_p(pairs: int, least: float) -> None:
    values = np.arange(1, pairs + 1) / 10
    assert (
        smallest_p(pairs)
        == least
        == sign_flip(values, generator())
        == sign_flip(-values, generator())
    )


def test_many_pairs_are_drawn_and_agree_with_the_count() -> None:
    values = generator(1).normal(0.25, 1, EXACT)
    counted = sign_flip(values, generator())
    drawn = sign_flip([*values, 0.0], generator(2))  # a zero changes no sum
    assert 0.01 < counted < 0.5
    assert drawn == pytest.approx(counted, abs=5 * (counted / 1e6) ** 0.5)
    assert drawn == sign_flip([*values, 0.0], generator(2))
    assert smallest_p(EXACT + 1) == pytest.approx(1e-6, rel=1e-3)


def test_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        sign_flip([], generator())


def test_holm_is_the_hand_table() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])


def test_a_test_that_could_not_be_made_counts_in_the_family() -> None:
    found = holm([0.01, np.nan, 0.02])
    assert found[[0, 2]] == pytest.approx([0.03, 0.04])
    assert isnan(found[1])


def test_holm_rejects_what_its_step_down_procedure_rejects() -> None:
    for seed in range(50):
        ps = generator(seed).uniform(0, 0.1, 6)
        rejected, alpha = set(), 0.05
        for rank, at in enumerate(np.argsort(ps)):
            if ps[at] > alpha / (len(ps) - rank):
                break
            rejected.add(int(at))
        assert set(np.flatnonzero(holm(ps) <= alpha)) == rejected


def scores(label: str, values: dict[tuple[str, str, int], float]) -> pd.DataFrame:
    keys = ["suite", "problem", "seed"]
    rows = [
        {"label": label, **dict(zip(keys, key, strict=True)), "value": v}
        for key, v in values.items()
    ]
    return pd.DataFrame(rows)


def test_differences_are_of_the_seeds_and_problems_that_both_have() -> None:
    ours = scores(
        "A",
        {("x", p, s): 10.0 * s for p in "pqr" for s in (0, 1, 2)}
        | {("y", "p", 0): 5.0, ("y", "p", 1): 7.0},
    )
    theirs = scores(
        "B",
        {("x", p, s): 1.0 for p in "pq" for s in (1, 2, 3)} | {("y", "p", s): 1.0 for s in (1, 2)},
    )
    found = differences(pd.concat([ours, theirs]), "A", "B")
    assert found.columns.tolist() == [1]  # 0 and 3 are of one arm; 2 lacks suite y of A
    assert found[1].to_dict() == {("x", "p"): 9.0, ("x", "q"): 9.0, ("y", "p"): 6.0}
    assert differences(pd.concat([ours, theirs]), "A", "B", ["x"]).columns.tolist() == [1, 2]
    assert differences(pd.concat([ours, theirs]), "A", "B", ["x", "z"]).empty
    assert differences(ours, "A", "B").empty


# --- bootstraps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(30,), (12, 40, 25)], ids=str)
def test_the_bootstrap_over_problems_is_scipys_bca(sizes: tuple[int, ...]) -> None:
    strata = [generator(7).gamma(0.5, size=n) for n in sizes]  # skewed, so that corrections show

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([part.mean(axis=axis) for part in parts], axis=0)

    wanted = stats.bootstrap(strata, statistic, method="BCa", n_resamples=10_000, rng=generator(1))
    found = mean_over_problems(strata, generator(2))
    width = found.high - found.low
    assert found.mean == pytest.approx(np.mean([each.mean() for each in strata]))
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.03 * width)
    assert found.high - found.mean > 1.1 * (found.mean - found.low)
    assert (found.units, found.over) == (sum(sizes), "problems")


def test_a_bootstrap_repeats_with_its_generator_and_no_other() -> None:
    values = [generator(3).normal(size=20)]
    assert mean_over_problems(values, generator(1)) == mean_over_problems(values, generator(1))
    assert mean_over_problems(values, generator(1)) != mean_over_problems(values, generator(2))


def test_draws_in_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [generator(5).normal(size=(4, 3))]
    whole = over_runs(interquartile_mean, runs, generator(1), 500, whole=False)
    monkeypatch.setattr("analysis.bootstrap._AT_ONCE", 1000)
    assert over_runs(interquartile_mean, runs, generator(1), 500, whole=False) == whole


def test_problems_that_do_not_differ_have_no_interval() -> None:
    for strata in ([np.ones(9)], [np.array([0.3]), np.arange(4.0)]):
        found = mean_over_problems(strata, generator())
        assert isnan(found.low) and isnan(found.high)
    with pytest.raises(ValueError, match="at least one problem"):
        mean_over_problems([np.array([])], generator())


# Results of rliable 1.2.0 on these two matrices (runs x tasks): `aggregate_iqm` and
# `probability_of_improvement` with `get_interval_estimates`, 20000 and 2000 draws.
OURS = np.array(
    [
        [41.2, 18.5, 63.0, 7.5],
        [44.9, 21.0, 60.5, 9.0],
        [39.8, 25.5, 66.0, 7.5],
        [47.1, 17.0, 58.5, 12.0],
        [43.3, 22.5, 64.5, 10.5],
        [40.6, 19.5, 61.0, 6.0],
    ]
)
THEIRS = np.array(
    [
        [38.4, 19.5, 59.0, 7.5],
        [42.7, 16.0, 62.5, 5.0],
        [36.9, 18.5, 57.5, 9.0],
        [44.9, 14.5, 60.5, 6.0],
        [40.1, 20.0, 55.0, 4.5],
    ]
)


@pytest.mark.parametrize(
    ("scores", "mean", "low", "high"),
    [(OURS, 31.74166666666667, 30.2833, 33.3167), (THEIRS, 29.15, 27.57, 30.72)],
    ids=["ours", "theirs"],
)
def test_the_interquartile_mean_is_rliables(scores, mean, low, high) -> None:
    found = over_runs(interquartile_mean, [scores], generator(), 20_000, whole=False)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.mean == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))
    assert (found.units, found.over) == (len(scores), "seeds")


def test_the_probability_of_improvement_is_rliables() -> None:
    found = over_runs(probability_of_improvement, [OURS, THEIRS], generator(), whole=False)
    assert found.mean == pytest.approx(0.775, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.6167, 0.9001), abs=0.02)
    assert found.units == 5


def test_the_probability_of_improvement_is_mann_whitneys() -> None:
    pairs = [stats.mannwhitneyu(OURS[:, at], THEIRS[:, at]).statistic / 30 for at in range(4)]
    assert probability_of_improvement(OURS, THEIRS) == pytest.approx(np.mean(pairs))
    assert probability_of_improvement(OURS, OURS) == 0.5
    both = probability_of_improvement(OURS, THEIRS) + probability_of_improvement(THEIRS, OURS)
    assert both == pytest.approx(1)


def test_statistics_of_many_matrices_are_those_of_each() -> None:
    many = generator(4).normal(size=(3, 5, 4))
    assert interquartile_mean(many) == pytest.approx([interquartile_mean(each) for each in many])
    found = probability_of_improvement(many, many[:, :3] - 0.5)
    assert found == pytest.approx([probability_of_improvement(m, m[:3] - 0.5) for m in many])


def test_runs_drawn_whole_carry_what_a_seed_does_to_all_suites() -> None:
    shared = generator(6).normal(size=(20, 1)) + generator(7).normal(0, 0.1, size=(20, 6))
    anew = over_runs(interquartile_mean, [shared], generator(), whole=False)
    whole = over_runs(interquartile_mean, [shared], generator(), whole=True)
    assert whole.mean == anew.mean
    assert whole.half > 1.5 * anew.half


def test_one_run_and_perfect_separation_have_no_interval() -> None:
    for found in (
        over_runs(interquartile_mean, [OURS[:1]], generator(), whole=False),
        over_runs(probability_of_improvement, [OURS + 100, THEIRS], generator(), whole=True),
    ):
        assert isnan(found.low) and isnan(found.high)
    fixed = over_runs(probability_of_improvement, [OURS, THEIRS[:1]], generator(), whole=True)
    assert fixed.low < fixed.mean < fixed.high


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solved", "problems"), [(0, 43), (1, 43), (17, 128), (43, 43), (1, 1)])
def test_the_interval_of_a_share_is_scipys_wilson(solved: int, problems: int) -> None:
    wanted = stats.binomtest(solved, problems).proportion_ci(method="wilson")
    found = of_share(solved / problems, problems)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


# --- Pass@k ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "k", "value"), [(4, 1, 4, 0.68359375), (2048, 1, 1024, 0.39354340)]
)
def test_the_papers_bootstrap_with_replacement_reads_low(
    n: int, c: int, k: int, value: float
) -> None:
    answers = np.arange(n) < c
    drawn = answers[generator().integers(n, size=(2000, k))].any(axis=1).mean()
    found = float(pass_at_k_with_replacement(n, c, k))
    assert found == pytest.approx(value)
    assert drawn == pytest.approx(found, abs=4 * 0.5 / 2000**0.5)
    assert float(pass_at_k(n, c, k)) == pytest.approx(1 - comb(n - c, k) / comb(n, k))
    assert found < float(pass_at_k(n, c, k)) - 0.1


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.4])
def test_only_the_estimator_without_replacement_is_unbiased(chance: float) -> None:
    n = 64
    drawn, ks = np.arange(n + 1), np.array([1, 2, 16, 64])
    weights, truth = stats.binom.pmf(drawn, n, chance), 1 - (1 - chance) ** ks
    assert weights @ pass_at_k(n, drawn, ks) == pytest.approx(truth, abs=1e-12)
    biased = weights @ pass_at_k_with_replacement(n, drawn, ks)
    assert biased[0] == pytest.approx(truth[0])  # at k = 1 they are one
    assert np.all(biased[1:] < truth[1:])
    gap = pass_at_k(n, drawn, ks) - pass_at_k_with_replacement(n, drawn, ks)
    assert gap[:, 1].max() < 0.006  # k = n/32
    assert gap[:, 3].max() > 0.3


def test_the_interval_over_samples_has_the_estimators_own_variance() -> None:
    n, c, k = 16, 5, 4
    chance, drawn = (c + 0.5) / (n + 1), np.arange(n + 1)
    weights, values = stats.binom.pmf(drawn, n, chance), pass_at_k(n, drawn, k)
    deviation = np.sqrt(weights @ values**2 - (weights @ values) ** 2)
    found = mean_pass_at_k_over_samples([n, n], [c, c], [k])
    assert found.mean[0] == pytest.approx(float(pass_at_k(n, c, k)))
    half = stats.norm.ppf(0.975) * deviation / 2**0.5
    assert found.high[0] == pytest.approx(min(1, found.mean[0] + half))
    assert found.low[0] == pytest.approx(found.mean[0] - half)


def test_samples_vary_far_less_than_problems() -> None:
    random = generator(8)
    correct = random.binomial(2048, random.beta(0.3, 0.9, 40))
    ks = 2 ** np.arange(11)
    over_samples = mean_pass_at_k_over_samples(2048, correct, ks)
    over_problems = mean_interval(pass_at_k(2048, correct, ks))
    assert over_samples.mean == pytest.approx(over_problems.mean)
    width = (over_samples.high - over_samples.low) / (over_problems.high - over_problems.low)
    assert np.all((width > 0) & (width < 0.52)) and np.all(width[:7] < 0.1)
    mixed = mean_pass_at_k_over_samples([4, 8], [0, 8], [1, 4])  # never and always solved
    assert np.all(mixed.low < mixed.mean) and np.all(mixed.mean < mixed.high)
