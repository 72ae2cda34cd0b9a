"""The results table: accuracy on each suite, averages and budget, with seeds as the unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan

import numpy as np
import pandas as pd

from analysis.intervals import Interval, explain, over_problems, over_seeds
from analysis.load import SPENT, Runs, pick, suites_of
from analysis.metrics import compact
from analysis.sheet import Entry, Head, Sheet
from workbench.identity import nearest
from workbench.passk import FloatArray
from workbench.schema import AVERAGE, AVERAGE_OOD
from workbench.study import Study

INSIDE, OUTSIDE, BUDGET = "In distribution", "Out of distribution", "Budget"
ROWS, COLUMNS = ("label", "seed"), ("suite", "level")
NOTHING = "–"


@dataclass(frozen=True)
class Value:
    """A number of each problem, out of its counts: what it is called, how it is shown."""

    title: str
    count: str
    scale: float
    digits: int
    best: Callable[[Sequence[float]], float] | None = None


VALUES = {
    "pass_at_1": Value("Pass@1 in percent", "correct", 100, 1, max),
    "tokens": Value("Response length in tokens", "tokens", 1, 0),
    "truncated": Value("Truncated answers in percent", "truncated", 100, 1),
    "ungradable": Value("Answers that could not be graded, in percent", "ungradable", 100, 1),
}


@dataclass(frozen=True)
class Table:
    """A table of a study's final evaluations.

    Attributes:
        name: of the files.
        study: whose runs are shown.
        rows: one for each `label`, averaged over its seeds, or one for each `seed` too.
        columns: one for each `suite`, with averages, or for each `level` of the in-distribution
            suites' problems.
        value: `pass_at_1` (the mean over the samples of a problem), `tokens`, `truncated`,
            `ungradable`.
        budget: whether tokens, steps and seconds stand beside it.

    Raises:
        ValueError: a choice that is none of these, with the nearest.
    """

    name: str
    study: Study
    rows: str = "label"
    columns: str = "suite"
    value: str = "pass_at_1"
    budget: bool = True

    def __post_init__(self) -> None:
        choices = (("rows", ROWS), ("columns", COLUMNS), ("value", tuple(VALUES)))
        for field, known in choices:
            given = getattr(self, field)
            if given not in known:
                raise ValueError(f"Table.{field} is {given!r}; {nearest(given, known)}")

    def check(self) -> None:
        """Raises ValueError where the study's data or evaluation cannot give the table."""
        suites_of(self.study)

    def sheet(self, runs: Runs) -> Sheet:
        """The table of these runs, the base model first, the best of each column emphasised."""
        columns = _suite_columns(runs) if self.columns == "suite" else _level_columns(runs)
        value = VALUES[self.value]
        frame = _values(runs, value, self.columns)
        rows = [self._row(frame, columns, label, seeds) for label, seeds in self._groups(runs)]
        entries = [[_entry(found, value) for found in row] for row in rows]
        if value.best:
            _emphasise(entries, value)
        heads = [Head("Method", "label"), Head("n", "n"), *(column.head for column in columns)]
        names = self._names(runs)
        body = [[*name, *row] for name, row in zip(names, entries, strict=True)]
        if self.budget:
            heads += _BUDGET_HEADS
            spent = [_spent(runs, label, seeds) for label, seeds in self._groups(runs)]
            body = [[*row, *costs] for row, costs in zip(body, spent, strict=True)]
        notes = self._notes(runs, [found for row in rows for found in row if found])
        return Sheet(self.name, tuple(heads), tuple(tuple(row) for row in body), notes)

    def _groups(self, runs: Runs) -> list[tuple[str, tuple[int, ...]]]:
        """What each row is of: an arm and some of its seeds."""
        if self.rows == "label":
            return [(label, runs.seeds(label)) for label in runs.labels]
        return [(label, (seed,)) for label in runs.labels for seed in runs.seeds(label)]

    def _names(self, runs: Runs) -> list[list[Entry]]:
        """The row's name, and how many runs it averages."""
        named = []
        for label, seeds in self._groups(runs):
            name = label if self.rows == "label" else f"{label}, seed {seeds[0]}"
            named.append([Entry(name, name), Entry(str(len(seeds)), float(len(seeds)))])
        return named

    def _row(
        self,
        frame: pd.DataFrame,
        columns: "Sequence[Column]",
        label: str,
        seeds: tuple[int, ...],
    ) -> list[Interval | None]:
        mine = pick(frame, label=label, seed=seeds)
        return [_interval(mine, column.strata) for column in columns]

    def _notes(self, runs: Runs, found: list[Interval]) -> tuple[str, ...]:
        notes = [f"{VALUES[self.value].title}; {_evaluated(runs)}."]
        notes += explain([(each.over, each.units) for each in found if not isnan(each.half)], "±")
        if self.budget:
            notes.append(_budget_note(runs))
        return (*notes, *runs.notes)


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A head, and the strata (suites or levels) whose means are averaged under it."""

    head: Head
    strata: tuple[str, ...]


def _suite_columns(runs: Runs) -> list[Column]:
    """A column for each suite, and for the average where there are several to average."""
    columns = []
    for suites, group, key, title in (
        (runs.suites.inside, INSIDE, AVERAGE, "ID avg"),
        (runs.suites.outside, OUTSIDE, AVERAGE_OOD, "OOD avg"),
    ):
        columns += [Column(Head(name, name, group), (name,)) for name in suites]
        if len(suites) > 1:
            columns.append(Column(Head(title, key, group), suites))
    return columns


def _level_columns(runs: Runs) -> list[Column]:
    frame = runs.evaluations
    levels = sorted({int(n) for n in pick(frame, suite=runs.suites.inside)["level"] if n > 0})
    return [Column(Head(f"Level {n}", f"level_{n}", INSIDE), (str(n),)) for n in levels]


# --- numbers --------------------------------------------------------------------------------------


def _values(runs: Runs, value: Value, columns: str) -> pd.DataFrame:
    """One row for each label, seed, stratum and problem, with its value."""
    frame = runs.evaluations
    if columns == "level":
        frame = pick(frame, suite=runs.suites.inside)
    shares = frame[value.count].astype("float64") / frame["samples"].astype("float64")
    strata = frame[columns].astype("str")
    return frame.assign(stratum=strata, value=shares * value.scale)


def _interval(frame: pd.DataFrame, strata: tuple[str, ...]) -> Interval | None:
    """Over the runs that have every stratum; over problems if that is one run; None if none."""
    runs: list[list[FloatArray]] = []
    for _, run in frame.groupby("seed", sort=True):
        parts = [run.loc[run["stratum"] == name, "value"].to_numpy("float64") for name in strata]
        if all(len(part) for part in parts):
            runs.append(parts)
    if len(runs) == 1:
        return over_problems(runs[0])
    means = [sum(part.mean() for part in parts) / len(parts) for parts in runs]
    return over_seeds(means) if means else None


def _entry(found: Interval | None, value: Value) -> Entry:
    if found is None:
        return Entry(NOTHING)
    spread = "" if isnan(found.half) else f"{found.half:.{value.digits}f}"
    return Entry(f"{found.mean:.{value.digits}f}", found, spread)


def _emphasise(entries: list[list[Entry]], value: Value) -> None:
    """Marks the best of each column; numbers that read the same are all marked."""
    assert value.best is not None
    for at in range(len(entries[0]) if len(entries) > 1 else 0):
        texts = [row[at].text for row in entries if isinstance(row[at].value, Interval)]
        if texts:
            best = value.best([float(text) for text in texts])
            for row in entries:
                if row[at].text in texts and float(row[at].text) == best:
                    row[at] = replace(row[at], best=True)


# --- budget ---------------------------------------------------------------------------------------

_BUDGET_HEADS = [
    Head("Sampled tokens", "sampled_tokens", BUDGET),
    Head("Trained tokens", "trained_tokens", BUDGET),
    Head("Steps", "steps", BUDGET),
    Head("Seconds", "seconds", BUDGET),
]


def _spent(runs: Runs, label: str, seeds: tuple[int, ...]) -> list[Entry]:
    mine = pick(runs.budget, label=label, seed=seeds)
    means = [float(np.mean(mine[name].to_numpy("float64"))) for name in SPENT]
    return [Entry(compact(mean), mean) for mean in means]


def _budget_note(runs: Runs) -> str:
    note = "Budget: mean of the runs"
    if any(runs.study.recipes[label].start is not None for label in runs.labels):
        note += ", with what it took to train the checkpoint that a run starts from"
    return f"{note}; seconds are the steps' own, on whatever device ran them."


def _evaluated(runs: Runs) -> str:
    evaluation = runs.study.evaluation
    counts = {name: evaluation.samples_for(name) for name in runs.suites.names}
    more = [f"{n} on {name}" for name, n in counts.items() if n != evaluation.samples]
    samples = f"avg@{evaluation.samples}" + (f" ({', '.join(more)})" if more else "")
    return f"{samples}, temperature {evaluation.temperature:g}, top-p {evaluation.top_p:g}"
