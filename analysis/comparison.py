"""Declared comparisons of arms: which, on what and at which level, decided before the runs."""

from dataclasses import dataclass
from math import isnan
from typing import Any, ClassVar

import pandas as pd

from analysis.bootstrap import DRAWS, Draws
from analysis.declared import HEADS, Declared, tested
from analysis.intervals import Interval
from analysis.load import Runs, suites_of, untrained
from analysis.metrics import axis_label, metric
from analysis.paired import differences, holm
from analysis.scores import at_every_seed, check_samples, metric_scores, pass_at_k_scores
from analysis.sheet import Entry, Head, Sheet
from analysis.table import NOTHING
from workbench.identity import Component, fingerprint
from workbench.passk import LEVEL
from workbench.plan import simplified
from workbench.recipe import Evaluation
from workbench.rules import Count

PASS_AT_K = "pass_at_k"


class Family(Component):
    """All that a comparison decides: two that agree in it make the same tests of the same runs."""

    metric: str
    suites: tuple[str, ...]
    k: tuple[int, ...]
    alpha: float
    pairs: tuple[tuple[str, str], ...]
    recipes: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    evaluation: Evaluation
    draws: int
    seed: int


@dataclass(frozen=True)
class Comparison(Declared):
    """A family of paired comparisons, each arm against each baseline, on common seeds and problems.

    The difference of two arms is a mean over the seeds that both have, with a t interval and the p
    of a sign-flip permutation test, adjusted by Holm over the whole family. A second interval is
    over problems, for these very runs. What is declared is hashed, and the hash is in the table:
    written into the study file before the runs, it shows that nothing was chosen after them.

    Attributes:
        baseline: label or labels that are compared with.
        arms: labels that are compared with them; empty takes every trained arm that is no baseline.
        metric: `pass_at_k`, or a metric of training, which is averaged over a run's steps.
        suites: whose Pass@k is averaged; empty takes all in distribution.
        k: of Pass@k, one or several; each is a comparison of its own.
        draws: of the bootstrap over problems.

    Raises:
        ValueError: an arm, metric or number that cannot be, with the nearest choice; on `check`,
            an unknown suite, k above its samples, or two arms that share one run.
    """

    KIND: ClassVar[str] = "comparison"

    baseline: str | tuple[str, ...]
    metric: str = PASS_AT_K
    suites: tuple[str, ...] = ()
    k: Count | tuple[Count, ...] = 1
    draws: Draws = DRAWS

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("baseline", "suites", "k"):
            given: Any = getattr(self, field)
            many = (given,) if isinstance(given, str | int) else tuple(given)
            object.__setattr__(self, field, many)
        self._check_arms()
        if not self.ks or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"Comparison.k names one k or several, each once, got {self.ks}")
        if self.metric != PASS_AT_K:
            metric(self.metric)
            if self.suites or self.ks != (1,):
                raise ValueError(
                    f"Comparison.metric {self.metric!r} is of training: it has no suites and no k"
                )

    def _check_arms(self) -> None:
        recipes = self.study.recipes
        for label in self.baselines:
            self.known_arm(label, "baseline")
        for pair in self.pairs:
            if self.pairs.count(pair) > 1:
                raise ValueError(f"Comparison {self.name!r} names {pair} twice")
        if not self.baselines:
            raise ValueError(
                f"Comparison {self.name!r} needs a baseline; choose of: {', '.join(recipes)}"
            )
        if not self.pairs:
            raise ValueError(f"Comparison {self.name!r} has no arm beside its baseline")
        for arm, baseline in self.pairs:
            if arm == baseline:
                raise ValueError(f"Comparison {self.name!r} compares {arm!r} with itself")
            if untrained(recipes[arm]) and untrained(recipes[baseline]):
                raise ValueError(
                    f"Comparison {self.name!r} compares {arm!r} with {baseline!r}: neither is "
                    "trained, so that no seed tells them apart"
                )

    def check(self) -> None:
        recipes = self.study.recipes
        for arm, baseline in self.pairs:
            if simplified(recipes[arm]) == simplified(recipes[baseline]):
                raise ValueError(
                    f"Comparison {self.name!r} compares {arm!r} with {baseline!r}, which is the "
                    "same estimator and shares its run"
                )
        if self.metric == PASS_AT_K:
            check_samples(self.study, self.suites, max(self.ks), f"Comparison {self.name!r}")

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for pair in self.pairs for label in pair))

    @property
    def baselines(self) -> tuple[str, ...]:
        """The labels that are compared with."""
        assert isinstance(self.baseline, tuple)
        return self.baseline

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of Pass@k."""
        assert isinstance(self.k, tuple)
        return self.k

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each arm with each baseline."""
        recipes = self.study.recipes
        others = [
            label
            for label, recipe in recipes.items()
            if label not in self.baselines and not untrained(recipe)
        ]
        return tuple((arm, base) for base in self.baselines for arm in self.arms or others)

    @property
    def size(self) -> int:
        return len(self.pairs) * len(self.ks)

    @property
    def family(self) -> Family:
        return Family(
            metric=self.metric,
            suites=self.suites,
            k=self.ks,
            alpha=self.alpha,
            pairs=self.pairs,
            recipes=tuple((label, fingerprint(self.study.recipes[label])) for label in self.needed),
            seeds=tuple(self.study.seeds),
            evaluation=self.study.evaluation,
            draws=self.draws,
            seed=self.seed,
        )

    @property
    def what(self) -> str:
        if self.metric != PASS_AT_K:
            return f"{axis_label(metric(self.metric))}, mean over steps"
        suites = self.suites or suites_of(self.study).inside
        over = f"{'mean over ' if len(suites) > 1 else ''}{', '.join(suites)}"
        return f"{' and '.join(f'Pass@{k}' for k in self.ks)} (percent), {over}"

    @property
    def axis(self) -> str:
        named = f"Difference in {self.what}"
        return named.replace("percent", "percentage points") if self.metric == PASS_AT_K else named

    def name_of(self, row: dict[str, Any]) -> str:
        pair = f"{row['arm']} \N{MINUS SIGN} {row['baseline']}"
        return f"{pair}, k = {row['k']}" if len(self.ks) > 1 else pair

    def frame(self, runs: Runs) -> pd.DataFrame:
        """One row for each comparison.

        Returns:
            Columns `arm`, `baseline` and `k`; `n` common seeds; `difference`, an Interval over
            them; `each`, the difference of each seed; `p`, `smallest_p` and `holm_p`; `problems`,
            an Interval over problems. NaN and None where there are no common runs.
        """
        suites = self.suites or runs.suites.inside
        rows = []
        for k in self.ks:
            if self.metric == PASS_AT_K:
                scores = pass_at_k_scores(runs, suites, k)
            else:
                scores, suites = metric_scores(runs, self.metric), (self.metric,)
            scores = at_every_seed(scores, runs)
            for arm, baseline in self.pairs:
                found = differences(scores, arm, baseline, suites)
                row = tested(found, self.seed, self.draws)
                rows.append({"arm": arm, "baseline": baseline, "k": k, **row})
        frame = pd.DataFrame(rows)
        return frame.assign(holm_p=holm(frame["p"].to_numpy("float64")))

    def sheet(self, runs: Runs) -> Sheet:
        """One row for each comparison; a difference is bold where Holm's p is at most alpha."""
        frame = self.frame(runs)
        over = Head("Over problems", "over_problems")
        heads = [Head("Arm", "arm"), Head("Against", "baseline"), Head("k", "k"), *HEADS, over]
        rows = [self._entries(row) for row in frame.to_dict("records")]
        if len(self.ks) == 1:
            heads, rows = heads[:2] + heads[3:], [row[:2] + row[3:] for row in rows]
        return Sheet(self.name, tuple(heads), tuple(map(tuple, rows)), self._notes(runs, frame))

    def _entries(self, row: dict[str, Any]) -> list[Entry]:
        names = [Entry(row[name], row[name]) for name in ("arm", "baseline")]
        k = Entry(str(row["k"]), float(row["k"]))
        shown = "{:+.1f}" if self.metric == PASS_AT_K else "{:+.3g}"
        over = Entry(NOTHING) if row["problems"] is None else between(row["problems"], shown)
        return [*names, k, *self.cells(row, shown), over]

    def _notes(self, runs: Runs, frame: pd.DataFrame) -> tuple[str, ...]:
        over = [each for each in frame["problems"] if each is not None and not isnan(each.low)]
        notes = self.notes(frame, "Difference: arm minus baseline")
        if over:
            counts = sorted({each.units for each in over})
            n = "/".join(map(str, counts))
            notes.append(
                f"Over problems: {LEVEL:.0%} bootstrap interval (BCa, {self.draws} draws) of the "
                f"same difference, {n} problems resampled with all their seeds and samples; it "
                "speaks of other problems, not of other training runs."
            )
        notes += self._fixed()
        return (*notes, *runs.notes)

    def _fixed(self) -> list[str]:
        fixed = [label for label in self.baselines if untrained(self.study.recipes[label])]
        return [f"{label} is one model, the same beside every seed." for label in fixed]


def between(found: Interval, shown: str) -> Entry:
    """The ends of an interval that need not be symmetric."""
    if isnan(found.low):
        return Entry(NOTHING)
    return Entry(f"[{shown.format(found.low)}, {shown.format(found.high)}]", found)
