"""Intervals of a mean over training runs, or over test problems where there is one run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, nan, sqrt

import numpy as np

from workbench.passk import LEVEL, FloatArray, mean_interval, t_quantile

SEEDS, PROBLEMS = "seeds", "problems"

FEW = 5  # with fewer seeds an interval describes these runs and supports no claim


@dataclass(frozen=True)
class Interval:
    """A mean and its t interval: over `seeds`, or over `problems` of a single run.

    Over seeds it speaks of other training runs on these problems, over problems of other problems
    of the same kind for this one run.
    """

    mean: float
    low: float
    high: float
    units: int
    over: str

    @property
    def half(self) -> float:
        """Half the interval's width; NaN where one unit was measured."""
        return (self.high - self.low) / 2


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one number a run."""
    found = mean_interval(values)
    return Interval(float(found.mean), float(found.low), float(found.high), found.units, SEEDS)


def over_problems(strata: Sequence[FloatArray]) -> Interval:
    """The mean of the strata's means, from one number a problem, each suite a stratum.

    The suites are fixed and their problems are drawn, so that the variances of the means add up;
    the degrees of freedom are Welch's, rounded down. One suite gives the plain t interval.
    """
    mean = float(np.mean([values.mean() for values in strata]))
    units = sum(len(values) for values in strata)
    if min(len(values) for values in strata) < 2:
        return Interval(mean, nan, nan, units, PROBLEMS)
    parts = np.array([values.var(ddof=1) / len(values) for values in strata])
    if parts.sum() == 0:
        return Interval(mean, mean, mean, units, PROBLEMS)
    freedom = parts.sum() ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, strata, strict=True)
    )
    # Equal strata have whole degrees of freedom, which rounding errors must not bring below.
    half = t_quantile(floor(freedom + 1e-9), LEVEL) * sqrt(parts.sum()) / len(strata)
    return Interval(mean, mean - half, mean + half, units, PROBLEMS)


def explain(counts: Iterable[tuple[str, int]], mark: str) -> list[str]:
    """Says in sentences what an interval is over, given the unit and number of units of each.

    Args:
        counts: `(over, units)` of every interval shown.
        mark: how the intervals are shown, as in `Bands`.
    """
    found = sorted(set(counts))
    seeds = [n for over, n in found if over == SEEDS]
    problems = [n for over, n in found if over == PROBLEMS]
    level = f"{LEVEL:.0%} t interval"
    notes = []
    if seeds:
        few = ", descriptive" if min(seeds) < FEW else ""
        notes.append(f"{mark}: {level} over seeds (n = {_numbers(seeds)}{few}).")
    if problems:
        one = "one run: " if seeds else ""
        what = f"{one}{level} over problems (n = {_numbers(problems)}), not over training runs."
        notes.append(f"{mark} of {what}" if seeds else f"{mark}: {what}")
    return notes


def _numbers(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
