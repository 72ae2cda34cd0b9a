"""Arms across suites as wholes: interquartile means, and how often a run of one beats another's."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.bootstrap import (
    DRAWS,
    Draws,
    interquartile_mean,
    over_runs,
    probability_of_improvement,
)
from analysis.comparison import between
from analysis.intervals import Interval, number_of_seeds
from analysis.load import Runs, pick
from analysis.output import Tabular
from analysis.scores import check_samples, pass_at_k_scores
from analysis.sheet import Entry, Head, Sheet
from analysis.table import NOTHING
from workbench.passk import LEVEL, FloatArray
from workbench.rules import Count

FEW_RUNS = 10  # runs below which a percentile bootstrap covers clearly too seldom


@dataclass(frozen=True)
class AcrossSuites(Tabular):
    """The interquartile mean of each arm over all runs and suites, and its chance to improve.

    Both are rliable's (Agarwal et al., 2021). Each has two intervals: the stratified bootstrap as
    published, and one that draws a run with all its suites, which is right where one model is
    measured on all of them.

    Attributes:
        baseline: the label that the probability of improvement is over.
        suites: names; empty takes all in distribution.
        k: of Pass@k.
        draws, seed: of the bootstrap, and its generator.

    Raises:
        ValueError: an unknown baseline, with the nearest label, or k below 1; on `check`, an
            unknown suite, or k above its samples.
    """

    baseline: str
    suites: tuple[str, ...] = ()
    k: Count = 1
    draws: Draws = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "suites", tuple(self.suites))
        self.known_arm(self.baseline, "baseline")

    @property
    def needed(self) -> tuple[str, ...]:
        return (*self.arms, self.baseline) if self.arms else ()

    def check(self) -> None:
        check_samples(self.study, self.suites, self.k, f"AcrossSuites {self.name!r}")

    def frame(self, runs: Runs) -> pd.DataFrame:
        """One row for each arm.

        Returns:
            Columns `label`; `n` runs with every suite; and four Intervals, None where there is no
            such run: `iqm` and `iqm_whole` (percent, runs drawn anew for each suite, or whole),
            `improvement` and `improvement_whole` over the baseline (a chance, 0.5 is no
            difference).
        """
        suites = self.suites or runs.suites.inside
        scores = pass_at_k_scores(runs, suites, self.k)
        found = {label: matrix(scores, label, suites) for label in runs.labels}
        nobody = np.empty((0, len(suites)))
        rows = []
        for label, ours in found.items():
            theirs = nobody if label == self.baseline else found.get(self.baseline, nobody)
            rows.append(
                {
                    "label": label,
                    "n": len(ours),
                    "iqm": self._interval(False, ours),
                    "iqm_whole": self._interval(True, ours),
                    "improvement": self._interval(False, ours, theirs),
                    "improvement_whole": self._interval(True, ours, theirs),
                }
            )
        return pd.DataFrame(rows)

    def _interval(self, whole: bool, *scores: FloatArray) -> Interval | None:
        if min(map(len, scores)) == 0:
            return None
        statistic = interquartile_mean if len(scores) == 1 else probability_of_improvement
        random = np.random.default_rng(self.seed)
        return over_runs(statistic, scores, random, self.draws, whole=whole)

    def sheet(self, runs: Runs) -> Sheet:
        """One row for each arm, the base model first."""
        frame = self.frame(runs)
        over = f"Beats {self.baseline}"
        heads = (
            Head("Method", "label"),
            Head("n", "n"),
            Head("IQM", "iqm", "Interquartile mean"),
            Head("Runs whole", "iqm_whole", "Interquartile mean"),
            Head(over, "improvement", "Probability of improvement"),
            Head("Runs whole", "improvement_whole", "Probability of improvement"),
        )
        rows = []
        for row in frame.to_dict("records"):
            start = [Entry(row["label"], row["label"]), Entry(str(row["n"]), float(row["n"]))]
            shown = {"iqm": "{:.1f}", "improvement": "{:.2f}"}
            cells = [_entry(row[h.key], shown[h.key.removesuffix("_whole")]) for h in heads[2:]]
            rows.append((*start, *cells))
        return Sheet(self.name, heads, tuple(rows), self._notes(runs, frame))

    def _notes(self, runs: Runs, frame: pd.DataFrame) -> tuple[str, ...]:
        suites = self.suites or runs.suites.inside
        notes = [
            f"IQM: mean of the middle half of Pass@{self.k} (percent) of all runs on "
            f"{', '.join(suites)}.",
            f"Beats {self.baseline}: the chance that a run has more than one of {self.baseline} "
            "on a suite, ties a half, averaged over suites; 0.5 is no difference.",
            f"[ ]: {LEVEL:.0%} percentile bootstrap over runs ({self.draws} draws), stratified: "
            "drawn anew for every suite. Runs whole: drawn with all their suites, as one model is "
            "measured on all of them; the stratified interval misses what a seed does to all.",
        ]
        counts = [n for n in frame["n"] if n > 1]
        if counts:
            notes.append(f"Runs: one a seed ({number_of_seeds(counts)}).")
        if counts and min(counts) < FEW_RUNS:
            notes.append(
                f"With {min(counts)} runs a percentile bootstrap covers less often than it says."
            )
        return (*notes, *runs.notes)


def matrix(scores: pd.DataFrame, label: str, suites: tuple[str, ...]) -> FloatArray:
    """The mean value of each run (rows) on each suite (columns), of the runs that have them all."""
    mine = pick(scores, label=label)
    means = mine.pivot_table(index="seed", columns="suite", values="value", aggfunc="mean")
    return means.reindex(columns=list(suites)).dropna().to_numpy("float64")


def _entry(found: Interval | None, shown: str) -> Entry:
    if found is None:
        return Entry(NOTHING)
    ends = between(found, shown)
    text = shown.format(found.mean)
    return Entry(text if ends.text == NOTHING else f"{text} {ends.text}", found)
