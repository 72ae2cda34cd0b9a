"""How often a 95% interval holds the truth, measured on data whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.bootstrap import (
    interquartile_mean,
    mean_over_problems,
    over_runs,
    probability_of_improvement,
)
from analysis.intervals import Interval, of_share, over_problems, over_seeds
from workbench.passk import mean_interval, mean_pass_at_k_over_samples, pass_at_k

Draw = Callable[[np.random.Generator], tuple[Interval, float]]


def covered(draw: Draw, times: int = 400) -> float:
    """The share of intervals that hold their truth; its own error is about 1% at 400 times."""
    random = np.random.default_rng(20_260_101)
    found = [draw(random) for _ in range(times)]
    return float(np.mean([each.low <= truth <= each.high for each, truth in found]))


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_t_over_seeds(seeds: int) -> None:
    values = np.random.default_rng(1).normal(50, 3, size=(seeds, 20_000))
    found = mean_interval(values)  # 20,000 studies at once
    share = np.mean((found.low <= 50) & (found.high >= 50))
    assert share == pytest.approx(0.95, abs=0.006)
    assert over_seeds(values[:, 0]).low == pytest.approx(found.low[0])


def test_a_percentile_bootstrap_over_few_seeds_would_not_do() -> None:
    random = np.random.default_rng(2)
    values = random.normal(50, 3, size=(2000, 3))
    means = values[:, random.integers(3, size=(1000, 3))].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 50) & (high >= 50)) < 0.8


def test_t_over_paired_seeds_ignores_what_pairs_share() -> None:
    random = np.random.default_rng(3)
    shared = random.normal(0, 10, size=(5, 20_000))
    ours, theirs = (shared + random.normal(mean, 1, size=shared.shape) for mean in (2, 0))
    paired = mean_interval(ours - theirs)
    assert np.mean((paired.low <= 2) & (paired.high >= 2)) == pytest.approx(0.95, abs=0.006)
    assert np.mean(paired.low > 0) > 0.5  # unpaired, the shared noise would hide it
    alone = mean_interval(ours)
    assert np.mean(alone.high - alone.low) > 5 * np.mean(paired.high - paired.low)


def solved(random: np.random.Generator, problems: int, seeds: int = 3, n: int = 16) -> np.ndarray:
    """The mean over seeds and samples of each problem's difference between two arms, truth 0.06."""
    chance = random.beta(0.6, 1.0, problems) * 0.8
    ours, theirs = (random.binomial(n, chance + more, (seeds, problems)) for more in (0.06, 0))
    return (ours - theirs).mean(axis=0) / n


@pytest.mark.parametrize(("sizes", "least"), [((40,), 0.92), ((20, 60, 40), 0.92)], ids=str)
def test_the_bootstrap_over_problems(sizes: tuple[int, ...], least: float) -> None:
    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        strata = [solved(random, n) for n in sizes]
        return mean_over_problems(strata, random, 1000), 0.06

    assert least <= covered(draw) <= 0.98


def test_the_bootstrap_over_problems_keeps_a_problems_seeds_together() -> None:
    # Seeds of one problem agree: taken for problems of their own, they would look like more.
    def draw(random: np.random.Generator, together: bool) -> tuple[Interval, float]:
        effect = random.normal(0.05, 0.2, size=40)
        each = effect + random.normal(0, 0.02, size=(5, 40))
        strata = [each.mean(axis=0) if together else each.ravel()]
        return mean_over_problems(strata, random, 1000), 0.05

    assert covered(lambda random: draw(random, True), 200) >= 0.92
    assert covered(lambda random: draw(random, False), 200) < 0.75


def test_t_over_the_problems_of_several_suites() -> None:
    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        return over_problems([random.beta(0.5, 1.5, 40), random.beta(2, 2, 25)]), 0.375

    assert covered(draw, 2000) == pytest.approx(0.95, abs=0.015)


BETA = (0.3, 0.9)


@pytest.mark.parametrize(("n", "k"), [(64, 1), (64, 16), (2048, 256)])
def test_pass_at_k_over_problems(n: int, k: int) -> None:
    a, b = BETA
    truth = 1 - np.prod([(b + j) / (a + b + j) for j in range(k)])

    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        found = mean_interval(pass_at_k(n, random.binomial(n, random.beta(a, b, 40)), [k]))
        return Interval(float(found.mean[0]), found.low[0], found.high[0], 40, "problems"), truth

    assert 0.91 <= covered(draw) <= 0.98


@pytest.mark.parametrize(("n", "k"), [(16, 1), (16, 8), (64, 16), (256, 128)])
@pytest.mark.parametrize("shape", [BETA, (0.1, 2.0)], ids=str)
def test_pass_at_k_over_samples(n: int, k: int, shape: tuple[float, float]) -> None:
    chance = np.random.default_rng(4).beta(*shape, 30)
    truth = float(np.mean(1 - (1 - chance) ** k))

    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        found = mean_pass_at_k_over_samples(n, random.binomial(n, chance), [k])
        return Interval(float(found.mean[0]), found.low[0], found.high[0], 30, "samples"), truth

    assert covered(draw) >= 0.94


@pytest.mark.parametrize("problems", [43, 134])
def test_wilsons_share(problems: int) -> None:
    found = [of_share(solved / problems, problems) for solved in range(problems + 1)]
    low, high = np.array([(each.low, each.high) for each in found]).T
    chance = np.linspace(0.01, 0.99, 99)[:, None]
    weights = stats.binom.pmf(np.arange(problems + 1), problems, chance)
    coverage = (weights * ((low <= chance) & (chance <= high))).sum(axis=1)  # exact, not measured
    assert coverage.mean() == pytest.approx(0.95, abs=0.006)
    assert coverage.min() > 0.9


def test_wilsons_share_of_problems_that_count_in_part() -> None:
    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        each = (
            random.binomial(3, random.beta(0.3, 2.7, 60)) / 3
        )  # three seeds of a problem agree in part
        return of_share(float(each.mean()), 60), 0.1

    assert covered(draw, 1000) >= 0.95


@pytest.mark.parametrize(
    ("whole", "shared", "least", "most"),
    [(False, 0.0, 0.90, 0.98), (True, 2.0, 0.90, 0.98), (False, 2.0, 0.0, 0.75)],
)
def test_the_interquartile_mean(whole: bool, shared: float, least: float, most: float) -> None:
    # Suites of one mean and a symmetric spread, so that the truth is that mean.
    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        scores = 50 + shared * random.normal(size=(20, 1)) + random.normal(size=(20, 6))
        return over_runs(interquartile_mean, [scores], random, 500, whole=whole), 50.0

    assert least <= covered(draw, 300) <= most


def test_the_probability_of_improvement() -> None:
    # Two normals one deviation of their difference apart: P(X > Y) is Phi(1).
    def draw(random: np.random.Generator) -> tuple[Interval, float]:
        ours, theirs = random.normal(2**0.5, 1, (12, 4)), random.normal(0, 1, (12, 4))
        return over_runs(
            probability_of_improvement, [ours, theirs], random, 300, whole=False
        ), 0.8413

    assert 0.90 <= covered(draw, 200) <= 0.99
