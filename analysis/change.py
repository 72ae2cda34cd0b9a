"""Declared changes: how a training metric moves within each run, from some steps to later ones."""

from dataclasses import dataclass
from itertools import pairwise
from math import nan
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.declared import HEADS, Declared, tested
from analysis.load import Runs, pick
from analysis.metrics import axis_label, compact, metric
from analysis.paired import differences, holm
from analysis.scores import Window, inside, metric_scores
from analysis.sheet import Entry, Head, Sheet
from workbench.identity import Component, fingerprint
from workbench.plan import steps_of

QUARTERS: tuple[Window, ...] = ((0.0, 0.25), (0.75, 1.0))


class Changes(Component):
    """All that a change decides: two that agree in it make the same tests of the same runs."""

    metric: str
    windows: tuple[tuple[float, float], ...]
    alpha: float
    recipes: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Change(Declared):
    """A family of changes of one training metric, each between two windows of the same runs.

    A change is the metric's mean over the steps of a window minus that over the window before, of
    the same run. Two windows ask whether the metric rises or falls; three ask whether it rises and
    then stays: `windows=((0, 1 / 4), (3 / 8, 5 / 8), (3 / 4, 1))`. Tested and hashed as a
    `Comparison` is.

    Attributes:
        metric: of training.
        windows: two or more, one after the other, as shares of a run's own steps.
        arms: labels; empty takes every trained arm.

    Raises:
        ValueError: an untrained arm, an unknown metric, or windows that are not in order, with the
            nearest choice; on `check`, a window in which an arm has no step.
    """

    KIND: ClassVar[str] = "change"

    metric: str
    windows: tuple[Window, ...] = QUARTERS

    def __post_init__(self) -> None:
        super().__post_init__()
        metric(self.metric)
        ends = [end for window in self.windows for end in window]
        ordered = all(start < end for start, end in self.windows) and sorted(ends) == ends
        if len(self.windows) < 2 or not ordered:
            raise ValueError(
                "Change.windows must be two or more shares of the steps, from and to, one after "
                f"the other, got {self.windows}; such as {QUARTERS}"
            )
        trained = [label for label in self.study.recipes if self._steps(label)]
        for arm in self.changing:
            if arm not in trained:
                raise ValueError(
                    f"Change.arms names arm {arm!r}, which is not trained; "
                    f"choose of: {', '.join(trained)}"
                )
        if not self.changing:
            raise ValueError(f"Change {self.name!r} has no arm that is trained")

    def check(self) -> None:
        for arm in self.changing:
            total = self._steps(arm)
            for window in self.windows:
                if not inside(np.arange(1.0, total + 1), total, window).any():
                    raise ValueError(
                        f"Change {self.name!r} has no step in the window {window} of the {total} "
                        f"steps of {arm!r}; such as {QUARTERS}"
                    )

    def _steps(self, arm: str) -> int:
        return steps_of(self.study.recipes[arm])

    @property
    def needed(self) -> tuple[str, ...]:
        return self.changing

    @property
    def changing(self) -> tuple[str, ...]:
        """The arms whose change is measured."""
        return tuple(self.arms) or tuple(each for each in self.study.recipes if self._steps(each))

    @property
    def size(self) -> int:
        return len(self.changing) * (len(self.windows) - 1)

    @property
    def family(self) -> Changes:
        recipes = self.study.recipes
        return Changes(
            metric=self.metric,
            windows=self.windows,
            alpha=self.alpha,
            recipes=tuple((arm, fingerprint(recipes[arm])) for arm in self.changing),
            seeds=tuple(self.study.seeds),
            seed=self.seed,
        )

    @property
    def what(self) -> str:
        return f"{axis_label(metric(self.metric))} within a run"

    @property
    def axis(self) -> str:
        return f"Change of {axis_label(metric(self.metric))}"

    def name_of(self, row: dict[str, Any]) -> str:
        return f"{row['arm']}, {row['steps']}" if len(self.windows) > 2 else row["arm"]

    def frame(self, runs: Runs) -> pd.DataFrame:
        """One row for each arm and pair of windows.

        Returns:
            Columns `arm`, `steps` (the two windows), `before` and `after` (means over the common
            seeds), what `declared.tested` gives, and `holm_p`.
        """
        scores = [metric_scores(runs, self.metric, window) for window in self.windows]
        rows = []
        for arm in self.changing:
            mine = [pick(each, label=arm) for each in scores]
            for (one, before), (other, after) in pairwise(zip(self.windows, mine, strict=True)):
                both = pd.concat([before.assign(label="before"), after.assign(label="after")])
                found = differences(both, "after", "before")
                row = {"arm": arm, "steps": f"{_named(one)} → {_named(other)}"}
                means = {"before": _mean(before, found), "after": _mean(after, found)}
                rows.append({**row, **means, **tested(found, self.seed)})
        frame = pd.DataFrame(rows)
        return frame.assign(holm_p=holm(frame["p"].to_numpy("float64")))

    def sheet(self, runs: Runs) -> Sheet:
        """One row for each change; it is bold where Holm's p is at most alpha."""
        frame = self.frame(runs)
        heads = (
            Head("Arm", "arm"),
            Head("Steps", "steps", text=True),
            Head("Before", "before"),
            Head("After", "after"),
            *HEADS,
        )
        rows = (self._entries(row) for row in frame.to_dict("records"))
        difference = "Difference: after minus before, in the same run"
        notes = (
            *self.notes(frame, difference),
            "Steps: shares of a run's own; before and after: the metric's means over them.",
            *runs.notes,
        )
        return Sheet(self.name, heads, tuple(map(tuple, rows)), notes)

    def _entries(self, row: dict[str, Any]) -> list[Entry]:
        names = [Entry(row[name], row[name]) for name in ("arm", "steps")]
        means = [Entry(compact(row[name]), row[name]) for name in ("before", "after")]
        return [*names, *means, *self.cells(row, "{:+.3g}")]


def _named(window: Window) -> str:
    return f"{100 * window[0]:g}–{100 * window[1]:g}%"


def _mean(scores: pd.DataFrame, found: pd.DataFrame) -> float:
    """The mean over the seeds of the differences; NaN where there is none."""
    values = pick(scores, seed=tuple(found.columns))["value"].to_numpy("float64")
    return float(values.mean()) if len(values) else nan
