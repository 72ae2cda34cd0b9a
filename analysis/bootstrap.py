"""Bootstrap intervals, and the two statistics across suites that are read with them.

Every function takes the generator that it draws from: the same generator state, the same interval.
Score matrices have one row a run and one column a suite, as rliable's (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", 2021) have runs and tasks.
"""

from collections.abc import Callable, Sequence
from math import nan
from statistics import NormalDist
from typing import Annotated

import numpy as np

from analysis.intervals import PROBLEMS, SEEDS, Interval
from workbench.passk import LEVEL, FloatArray
from workbench.rules import Within

DRAWS = 10_000
Draws = Annotated[int, Within(at_least=1000)]

_AT_ONCE = 2_000_000  # numbers drawn in one go, which bounds memory

Statistic = Callable[..., FloatArray]


def mean_over_problems(
    strata: Sequence[FloatArray], random: np.random.Generator, draws: int = DRAWS
) -> Interval:
    """The mean of the strata's means, its interval from resampled problems (BCa; Efron, 1987).

    Args:
        strata: one number a problem, one array a suite. Suites are fixed and problems are drawn
            within each. A problem's number is the mean over its seeds and samples, which are
            thereby drawn together with it.
        random: to draw from.
        draws: how many resamples.

    Returns:
        The interval over problems; its ends are NaN where a suite has one problem alone, or where
        no suite's problems differ: resamples of equal numbers say nothing of other problems.

    Raises:
        ValueError: no suite, or one without problems.
    """
    if not strata or min(map(len, strata)) == 0:
        raise ValueError("a bootstrap over problems needs at least one problem in every suite")
    mean = float(np.mean([values.mean() for values in strata]))
    problems = sum(map(len, strata))
    influence = [(values - values.mean()) / len(values) for values in strata]
    spread = sum(float(np.sum(each**2)) for each in influence)
    if min(map(len, strata)) < 2 or spread == 0:
        return Interval(mean, nan, nan, problems, PROBLEMS)
    skew = sum(float(np.sum(each**3)) for each in influence) / (6 * spread**1.5)
    means = np.mean([_resampled_means(values, random, draws) for values in strata], axis=0)
    low, high = _corrected(means, mean, skew)
    return Interval(mean, low, high, problems, PROBLEMS)


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """The mean of the middle half of all runs on all suites: `scipy.stats.trim_mean(scores, 0.25)`.

    Args:
        scores: (..., runs, suites). A quarter of the numbers, rounded down, is cut at each end.

    Returns:
        The leading shape.
    """
    ordered = np.sort(scores.reshape((*scores.shape[:-2], -1)), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def probability_of_improvement(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """The chance that one of our runs beats one of theirs on a suite, averaged over suites.

    Ties count a half, so that it is the Mann-Whitney U over the number of pairs; 0.5 is no
    difference. It does not say by how much.

    Args:
        ours, theirs: (..., runs, suites); the numbers of runs may differ.
    """
    wins = np.sign(ours[..., :, None, :] - theirs[..., None, :, :])
    return (0.5 + 0.5 * wins).mean(axis=(-3, -2, -1))


def over_runs(
    statistic: Statistic,
    scores: Sequence[FloatArray],
    random: np.random.Generator,
    draws: int = DRAWS,
    *,
    whole: bool,
) -> Interval:
    """A statistic of score matrices, its percentile interval from resampled runs.

    Args:
        statistic: of the matrices, each (..., runs, suites), over their last two axes.
        scores: one matrix, or one for each arm that the statistic compares.
        random: to draw from.
        draws: how many resamples.
        whole: whether a run is drawn with all its suites. If not, runs are drawn anew for every
            suite: rliable's stratified bootstrap, for agents that are trained for each task.
            Where one model is measured on every suite, that misses what a seed does to them all.

    Returns:
        The interval over seeds, of as many units as the smallest matrix has runs (one run is a
        fixed model and does not count). Its ends are NaN where no matrix has two, or where every
        resample gives the same, as where each run of one arm beats each of the other.
    """
    value = float(statistic(*scores))
    drawn = [matrix.shape[0] for matrix in scores if matrix.shape[0] > 1]
    if not drawn:
        return Interval(value, nan, nan, 1, SEEDS)
    size = sum(matrix.size for matrix in scores) * max(matrix.shape[0] for matrix in scores)
    values = np.concatenate(
        [
            statistic(*(_resampled_runs(matrix, random, part, whole) for matrix in scores))
            for part in _parts(draws, size)
        ]
    )
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if np.ptp(values) > 0 else (nan, nan)
    return Interval(value, float(low), float(high), min(drawn), SEEDS)


def _resampled_means(values: FloatArray, random: np.random.Generator, draws: int) -> FloatArray:
    """The mean of each resample of the values."""
    parts = [
        values[random.integers(len(values), size=(part, len(values)))].mean(axis=1)
        for part in _parts(draws, len(values))
    ]
    return np.concatenate(parts)


def _resampled_runs(
    scores: FloatArray, random: np.random.Generator, draws: int, whole: bool
) -> FloatArray:
    """(draws, runs, suites): rows drawn whole, or anew within each column."""
    runs, suites = scores.shape
    rows = random.integers(runs, size=(draws, runs, 1 if whole else suites))
    return scores[rows, np.arange(suites)]


def _parts(draws: int, size: int) -> list[int]:
    """The draws in parts of so many that memory stays bounded."""
    most = max(1, _AT_ONCE // size)
    whole, rest = divmod(draws, most)
    return [most] * whole + [rest] * (rest > 0)


def _corrected(replicates: FloatArray, value: float, skew: float) -> tuple[float, float]:
    """The quantiles of replicates that correct for their bias and for the statistic's skewness."""
    normal = NormalDist()
    below = np.mean(replicates < value) + 0.5 * np.mean(replicates == value)
    shift = normal.inv_cdf(min(max(float(below), 1e-6), 1 - 1e-6))
    ends = []
    for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = shift + normal.inv_cdf(share)
        ends.append(normal.cdf(shift + z / (1 - skew * z)))
    low, high = np.quantile(replicates, ends)
    return float(low), float(high)
