"""Intervals: what they are over is part of them, and a reader is told in a sentence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, isnan, nan, sqrt
from statistics import NormalDist

import numpy as np

from workbench.passk import LEVEL, ROUNDING, FloatArray, mean_interval, t_quantile

SEEDS, PROBLEMS, SAMPLES = "seeds", "problems", "samples"

FEW = 5  # with fewer seeds an interval describes these runs and supports no claim


@dataclass(frozen=True)
class Interval:
    """A number and its interval, over `seeds` or over `problems` (`samples` in figures alone).

    Over seeds it speaks of other training runs on these problems, over problems of other problems
    of the same kind for these very runs, over samples of the same runs answering the same problems
    again. The ends are NaN where there is one unit, or where all are the same.
    """

    mean: float
    low: float
    high: float
    units: int
    over: str

    @property
    def half(self) -> float:
        """Half the interval's width; NaN where there is none."""
        return (self.high - self.low) / 2


def over_seeds(values: Sequence[float] | FloatArray) -> Interval:
    """The mean of one number a run."""
    found = mean_interval(values)
    return Interval(float(found.mean), float(found.low), float(found.high), found.units, SEEDS)


def over_problems(strata: Sequence[FloatArray]) -> Interval:
    """The mean of the strata's means, from one number a problem, each suite a stratum.

    The suites are fixed and their problems are drawn, so that the variances of the means add up;
    the degrees of freedom are Welch's, rounded down. One suite gives the plain t interval. The ends
    are NaN where a suite has one problem, or where no suite's problems differ.
    """
    mean = float(np.mean([values.mean() for values in strata]))
    units = sum(len(values) for values in strata)
    if min(len(values) for values in strata) < 2:
        return Interval(mean, nan, nan, units, PROBLEMS)
    parts = np.array([values.var(ddof=1) / len(values) for values in strata])
    if sqrt(parts.sum()) <= ROUNDING * abs(mean):
        return Interval(mean, nan, nan, units, PROBLEMS)
    freedom = parts.sum() ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, strata, strict=True)
    )
    # Equal strata have whole degrees of freedom, which rounding errors must not bring below.
    half = t_quantile(floor(freedom + 1e-9), LEVEL) * sqrt(parts.sum()) / len(strata)
    return Interval(mean, mean - half, mean + half, units, PROBLEMS)


def of_share(share: float, problems: int) -> Interval:
    """Wilson's interval of a share of problems, which has a width at 0 and at 1 too.

    A problem may count in part, as the mean of several runs: that varies less than all or nothing
    and the interval then covers more often than it says.
    """
    assert problems > 0 and 0 <= share <= 1
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    shrunk = 1 / (1 + z * z / problems)
    middle = shrunk * (share + z * z / (2 * problems))
    half = shrunk * z * sqrt(share * (1 - share) / problems + (z / (2 * problems)) ** 2)
    # At 0 and 1 an end is the share itself, but for rounding errors.
    low, high = min(share, middle - half), max(share, middle + half)
    return Interval(share, low, high, problems, PROBLEMS)


def explain_all(found: Iterable[Interval], mark: str) -> list[str]:
    """What `explain` says of the intervals that there are, and why other numbers have none."""
    every = list(found)
    notes = explain([(each.over, each.units) for each in every if not isnan(each.half)], mark)
    if any(isnan(each.half) and each.units > 1 for each in every):
        why = "all values are the same, or one stands alone"
        notes.append(f"Without {mark.lower()}: no t interval, for {why}.")
    return notes


def explain(counts: Iterable[tuple[str, int]], mark: str) -> list[str]:
    """Says in sentences what an interval is over, given the unit and number of units of each.

    Args:
        counts: `(over, units)` of every interval shown; over samples, the units of a problem.
        mark: how the intervals are shown, as in `Bands`.
    """
    found = sorted(set(counts))
    seeds = [n for over, n in found if over == SEEDS]
    problems = [n for over, n in found if over == PROBLEMS]
    samples = [n for over, n in found if over == SAMPLES]
    level = f"{LEVEL:.0%} t interval"
    notes = []
    if seeds:
        notes.append(f"{mark}: {level} over seeds ({number_of_seeds(seeds)}).")
    if problems:
        one = "one run: " if seeds else ""
        what = f"{one}{level} over problems (n = {_numbers(problems)}), not over training runs."
        notes.append(f"{mark} of {what}" if seeds else f"{mark}: {what}")
    if samples:
        notes.append(
            f"{mark}: {LEVEL:.0%} interval over samples (n = {_numbers(samples)} a problem), "
            "not over training runs or problems."
        )
    return notes


def number_of_seeds(counts: Iterable[int]) -> str:
    """How many seeds numbers are of: `n = 5 to 8`, and `n = 3, descriptive` where they are few."""
    found = sorted(set(counts))
    return f"n = {_numbers(found)}{', descriptive' if found[0] < FEW else ''}"


def _numbers(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
