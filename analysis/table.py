"""The results table: accuracy on each suite, averages and budget, with seeds as the unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import numpy as np
import pandas as pd

from analysis import published as paper
from analysis.intervals import Interval, explain_all
from analysis.load import SPENT, Runs, pick, suites_of
from analysis.metrics import compact
from analysis.output import Tabular
from analysis.quantities import VALUES, Value, interval_of, per_problem
from analysis.sheet import Entry, Head, Sheet
from workbench.identity import nearest
from workbench.schema import AVERAGE, AVERAGE_OOD

INSIDE, OUTSIDE, BUDGET = "In distribution", "Out of distribution", "Budget"
ROWS, COLUMNS = ("label", "seed"), ("suite", "level")
NOTHING = "–"


@dataclass(frozen=True)
class Table(Tabular):
    """A table of a study's final evaluations: Tables 2, 3, 5 and 6 of the paper.

    Attributes:
        rows: one for each `label`, averaged over its seeds, or one for each `seed` too.
        columns: one for each `suite`, with averages, or for each `level` of the in-distribution
            suites' problems.
        value: `pass_at_1` (the mean over the samples of a problem), `tokens`, `truncated`,
            `ungradable`.
        budget: whether tokens, steps and seconds stand beside it.
        reported: a table of the paper, such as `table2_qwen7b`, whose numbers stand beside the
            measured ones, under the suites that both have and the averages.
        reported_rows: its row for an arm whose label it does not have.

    Raises:
        ValueError: a choice that is none of these, with the nearest.
    """

    rows: str = "label"
    columns: str = "suite"
    value: str = "pass_at_1"
    budget: bool = True
    reported: str = ""
    reported_rows: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for arm in self.reported_rows:
            self.known_arm(arm, "reported_rows")
        if self.reported:
            paper.check(self.reported, "Table.reported")
        choices = (("rows", ROWS), ("columns", COLUMNS), ("value", tuple(VALUES)))
        for name, known in choices:
            given = getattr(self, name)
            if given not in known:
                raise ValueError(f"Table.{name} is {given!r}; {nearest(given, known)}")

    def check(self) -> None:
        suites_of(self.study)

    def sheet(self, runs: Runs) -> Sheet:
        """The table of these runs, the base model first, the best of each column emphasised."""
        columns = _suite_columns(runs) if self.columns == "suite" else _level_columns(runs)
        value = VALUES[self.value]
        inside = runs.suites.names if self.columns == "suite" else runs.suites.inside
        frame = per_problem(pick(runs.evaluations, suite=inside), self.value)
        groups = self._groups(runs)
        rows = [self._row(frame, columns, label, seeds) for label, seeds in groups]
        entries = [[_entry(found, value) for found in row] for row in rows]
        if value.best:
            _emphasise(entries, value)
        heads = [Head("Method", "label"), Head("n", "n"), *(column.head for column in columns)]
        names = self._names(runs)
        body = [[*name, *row] for name, row in zip(names, entries, strict=True)]
        more = self._reported_columns(columns, [label for label, _ in groups])
        if self.budget:
            more += _budget_columns(runs, groups)
        for head, cells in more:
            heads.append(head)
            body = [[*row, cell] for row, cell in zip(body, cells, strict=True)]
        notes = self._notes(runs, [found for row in rows for found in row if found])
        return Sheet(self.name, tuple(heads), tuple(tuple(row) for row in body), notes)

    def _reported_columns(
        self, columns: "Sequence[Column]", labels: Sequence[str]
    ) -> list[tuple[Head, list[Entry]]]:
        """The paper's numbers under the suites and averages that this table has too."""
        if not self.reported:
            return []
        rows = [
            paper.accuracy_of(self.reported, self.reported_rows.get(label, label))
            for label in labels
        ]
        found = []
        for head in (column.head for column in columns):
            cells = [row.get(head.key) for row in rows]
            if any(cell is not None for cell in cells):
                named = Head(f"{head.title}, {paper.PAPER}", f"{head.key}_reported")
                found.append((named, [_reported_entry(cell) for cell in cells]))
        return found

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
        return [interval_of(mine, self.columns, column.strata) for column in columns]

    def _notes(self, runs: Runs, found: list[Interval]) -> tuple[str, ...]:
        notes = [f"{VALUES[self.value].title}; {_evaluated(runs)}."]
        notes += explain_all(found, "±")
        if self.reported:
            notes.append(paper.note(self.reported))
        if self.budget:
            notes.append(_budget_note(runs))
        return (*notes, *runs.notes)


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A head, and the strata (suites or levels) whose means are averaged under it."""

    head: Head
    strata: tuple[object, ...]


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
    return [Column(Head(f"Level {n}", f"level_{n}", INSIDE), (n,)) for n in levels]


# --- numbers --------------------------------------------------------------------------------------


def _entry(found: Interval | None, value: Value) -> Entry:
    if found is None:
        return Entry(NOTHING)
    spread = "" if isnan(found.half) else f"{found.half:.{value.digits}f}"
    return Entry(f"{found.mean:.{value.digits}f}", found, spread)


def _reported_entry(value: float | None) -> Entry:
    return Entry(NOTHING) if value is None else Entry(f"{value:.1f}", value)


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


def _budget_columns(
    runs: Runs, groups: Sequence[tuple[str, tuple[int, ...]]]
) -> list[tuple[Head, list[Entry]]]:
    """What each row cost."""
    spent = [_spent(runs, label, seeds) for label, seeds in groups]
    return [(head, [row[at] for row in spent]) for at, head in enumerate(_BUDGET_HEADS)]


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
