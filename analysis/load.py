"""Run directories in, frames out: the one place where analysis reads records."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.identity import nearest
from workbench.plan import Planned, measurements, resolve
from workbench.problems import loaders
from workbench.recipe import Recipe
from workbench.records import Row, Run, run_of
from workbench.schema import File
from workbench.study import Cell, Study

COUNTS = ("samples", "correct", "tokens", "truncated", "ungradable")
SPENT = ("sampled_tokens", "trained_tokens", "steps", "seconds")


@dataclass(frozen=True)
class Suites:
    """Names of a study's test suites, in the data's order, in and out of distribution."""

    inside: tuple[str, ...]
    outside: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.inside, *self.outside)

    def check(self, wanted: Iterable[str], owner: str) -> None:
        """Raises ValueError for a suite that is not there, with the nearest one that is."""
        for name in wanted:
            if name not in self.names:
                raise ValueError(f"{owner} has no suite {name!r}; {nearest(name, self.names)}")


@dataclass(frozen=True)
class Runs:
    """A study's finished runs as frames, and what is missing from them.

    A run that answers for several seeds of an arm (a model left as it is) is there once: copies
    would look like replicates and differ by nothing.

    Attributes:
        study: whose runs they are.
        root: the tracking folder they lie under.
        suites: that the study is evaluated on.
        kept: cells with a finished run, which the frames hold.
        missing: cells without one, which they leave out.
    """

    study: Study
    root: Path
    suites: Suites
    kept: tuple[Planned, ...]
    missing: tuple[Planned, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Arms with a finished run, the untrained base first and then in the study's order."""
        found = {each.cell.label for each in self.kept}
        ordered = [label for label in self.study.recipes if label in found]
        return tuple(sorted(ordered, key=lambda label: not untrained(self.study.recipes[label])))

    def seeds(self, label: str) -> tuple[int, ...]:
        """The seeds of an arm's finished runs."""
        return tuple(each.cell.seed for each in self.kept if each.cell.label == label)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for each label, seed and step, one column for each metric; NaN where absent."""
        rows = [{**_key(e.cell), **row} for e in self.kept for row in e.run.rows(File.METRICS)]
        frame = pd.DataFrame(rows, columns=None if rows else ["label", "seed", "step", "timestamp"])
        metrics = [name for name in frame.columns if "/" in name]
        return frame.astype(dict.fromkeys(metrics, "float64"))

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row for each label, seed, suite and problem: its level and its counts."""
        frames = [
            pd.read_parquet(path, columns=["problem", "level", *COUNTS]).assign(
                **_key(each.cell), suite=suite
            )
            for each in self.kept
            for suite, path in _measured(self.study, each)
            if path.exists()
        ]
        columns = ["label", "seed", "suite", "problem", "level", *COUNTS]
        found = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
        return found.reindex(columns=columns)

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row for each label, seed, step and question: rollouts, correct ones, gate weights."""
        fields = ("questions", "correct", "alpha", "beta")
        rows = [
            {**_key(e.cell), **{name: row[name] for name in ("step", "epoch", "rollouts", *fields)}}
            for e in self.kept
            for row in e.run.rows(File.QUESTIONS)
        ]
        columns = ["label", "seed", "step", "epoch", "rollouts", *fields]
        frame = pd.DataFrame(rows, columns=columns).explode(list(fields), ignore_index=True)
        numbers = dict.fromkeys(["correct", "alpha", "beta"], "float64")  # None becomes NaN
        return frame.rename(columns={"questions": "question"}).astype(numbers)

    @cached_property
    def budget(self) -> pd.DataFrame:
        """One row for each label and seed: what it cost, the checkpoint it began at included."""
        rows = [{**_key(e.cell), **self._spent(e.cell.recipe, e.run, e.cell)} for e in self.kept]
        return pd.DataFrame(rows, columns=["label", "seed", *SPENT])

    def _spent(self, recipe: Recipe, run: Run, cell: Cell, until: int | None = None) -> Row:
        """Cost of a run up to a step; NaN where a record does not say, so that no sum hides it."""
        # Step 0 is the validation before training; it costs nothing that arms differ in.
        rows = [row for row in run.rows(File.METRICS) if row["step"] > 0]
        rows = [row for row in rows if until is None or row["step"] <= until]
        lost = not run.path.exists()
        spent = {
            "sampled_tokens": _last(rows, "budget/sampled_tokens", lost),
            "trained_tokens": _last(rows, "budget/trained_tokens", lost),
            "steps": float("nan") if lost else float(len(rows)),
            "seconds": float("nan") if lost else sum(_number(row, "time/step") for row in rows),
        }
        if recipe.start is None:
            return spent
        first = recipe.start.recipe
        run = run_of(self.root, first, cell.seed)
        before = self._spent(first, run, cell, recipe.start.step)
        return {name: before[name] + spent[name] for name in SPENT}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know that no number shows: runs left out, and runs shared."""
        return (*self._missing_runs(), *self._missing_suites(), *self._shared())

    def _missing_runs(self) -> list[str]:
        if not self.missing:
            return []
        total = len(self.kept) + len(self.missing)
        names = _listed(f"{each.cell.label} (seed {each.cell.seed})" for each in self.missing)
        return [f"{share_of(len(self.missing), total, 'runs')} not finished and left out: {names}."]

    def _missing_suites(self) -> list[str]:
        lost = [
            f"{each.cell.label} (seed {each.cell.seed}) on {suite}"
            for each in self.kept
            for suite, path in _measured(self.study, each)
            if not path.exists()
        ]
        if not lost:
            return []
        total = len(self.kept) * len(self.suites.names)
        return [
            f"{share_of(len(lost), total, 'evaluations')} missing and left out: {_listed(lost)}."
        ]

    def _shared(self) -> list[str]:
        pairs = {each.cell.label: each.same_as for each in self.kept if each.same_as is not None}
        return [f"{label} is the same run as {other}." for label, other in pairs.items()]


def pick(frame: pd.DataFrame, columns: Iterable[str] = (), **wanted: object) -> pd.DataFrame:
    """The rows whose fields have a wanted value, or one of a tuple's; all columns, or some."""
    rows = np.ones(len(frame), dtype=bool)
    for name, value in wanted.items():
        rows &= frame[name].isin(value if isinstance(value, tuple) else (value,)).to_numpy()
    return pd.DataFrame(frame[rows]).reindex(columns=list(columns) or frame.columns)


def runs(study: Study, root: Path) -> Runs:
    """Finds the runs of a study under the tracking folder; reads none of their records yet."""
    distinct: dict[tuple[str, Path], Planned] = {}
    for each in resolve(study, root):
        distinct.setdefault((each.cell.label, each.run.path), each)
    kept = tuple(each for each in distinct.values() if each.run.finished)
    missing = tuple(each for each in distinct.values() if not each.run.finished)
    return Runs(study, root, suites_of(study), kept, missing)


def suites_of(study: Study) -> Suites:
    """The suites that a study is evaluated on, from its data and its evaluation.

    Raises:
        ValueError: the evaluation names a suite that the data does not have.
    """
    inside: dict[str, None] = {}
    outside: dict[str, None] = {}
    for recipe in study.recipes.values():
        suites = loaders.outside(recipe.data)
        for measurement in measurements(study, recipe):
            (outside if suites[measurement.suite] else inside)[measurement.suite] = None
    return Suites(tuple(inside), tuple(outside))


def untrained(recipe: Recipe) -> bool:
    """Whether the recipe is its base model as it is, the same for every seed."""
    return recipe.method is None and recipe.start is None


def _measured(study: Study, planned: Planned) -> list[tuple[str, Path]]:
    """The suites that a run is measured on, each with the file that holds the counts."""
    found = measurements(study, planned.cell.recipe)
    return [(each.suite, planned.run.evaluation_path(each)) for each in found]


def _key(cell: Cell) -> Row:
    return {"label": cell.label, "seed": cell.seed}


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)


def _last(rows: list[Row], name: str, lost: bool) -> float:
    """The last value of a running total; 0 for a finished run without steps, which spent none."""
    if lost:
        return float("nan")
    return _number(rows[-1], name) if rows else 0.0


def share_of(count: int, total: int, things: str) -> str:
    """The start of a sentence about some of the things: `1 of 19 runs is`."""
    return f"{count} of {total} {things} {'is' if count == 1 else 'are'}"


def _listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a row, the rest of a long list as a count."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
