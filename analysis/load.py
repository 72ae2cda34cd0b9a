"""Run directories in, frames out: the one place where analysis reads records."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import records
from workbench.identity import nearest
from workbench.plan import Planned, measurements, resolve
from workbench.problems import loaders
from workbench.recipe import Recipe
from workbench.records import Row, Run, run_of
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
        """All of them, those in distribution first."""
        return (*self.inside, *self.outside)

    def check(self, wanted: Iterable[str], owner: str) -> None:
        """Raises ValueError for a suite that is not there, with the nearest one that is."""
        for name in wanted:
            if name not in self.names:
                raise ValueError(f"{owner} has no suite {name!r}; {nearest(name, self.names)}")


@dataclass(frozen=True)
class Frames:
    """What the runs of some cells recorded, read when it is first asked for."""

    study: Study
    root: Path
    kept: tuple[Planned, ...]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for each label, seed and step, one column for each metric; NaN where absent."""
        return self._joined([(each, records.history(each.run)) for each in self.kept], "timestamp")

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row for each label, seed, suite and problem: its level and its counts."""
        columns = ["problem", "level", *COUNTS]
        found = [
            (each, records.evaluation(path, columns).assign(suite=suite))
            for each in self.kept
            for suite, path in measured(self.study, each)
            if path.exists()
        ]
        frame = self._joined(found, "suite", *columns)
        return frame.reindex(columns=["label", "seed", "suite", *columns])

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row for each label, seed, step and question: its level, rollouts and gate weights."""
        found = [(each, _with_levels(records.questions(each.run), each)) for each in self.kept]
        return self._joined(found, *_QUESTIONS)

    @cached_property
    def budget(self) -> pd.DataFrame:
        """One row for each label and seed: what it cost, the checkpoint it began at included."""
        rows = [{**_key(e.cell), **self._spent(e.cell.recipe, e.run, e.cell)} for e in self.kept]
        return pd.DataFrame(rows, columns=["label", "seed", *SPENT])

    def _joined(self, found: list[tuple[Planned, pd.DataFrame]], *least: str) -> pd.DataFrame:
        """All frames in one, each row with its cell's label and seed in front."""
        frames = [frame for _, frame in found if len(frame)]
        if not frames:
            return pd.DataFrame(columns=["label", "seed", "step", *least])
        every = pd.concat(frames, ignore_index=True)
        counts = [len(frame) for _, frame in found]
        every.insert(0, "seed", np.repeat([each.cell.seed for each, _ in found], counts))
        labels = np.array([each.cell.label for each, _ in found], dtype=object)
        every.insert(0, "label", np.repeat(labels, counts))
        return every

    def _spent(self, recipe: Recipe, run: Run, cell: Cell, until: int | None = None) -> Row:
        """Cost of a run up to a step; NaN where a record does not say, so that no sum hides it."""
        rows = self._history_of(run)
        # Step 0 is the validation before training; it costs nothing that arms differ in.
        rows = pd.DataFrame(rows[rows["step"].between(1, np.inf if until is None else until)])
        lost = not run.path.exists()
        spent = {
            "sampled_tokens": _last(rows, "budget/sampled_tokens", lost),
            "trained_tokens": _last(rows, "budget/trained_tokens", lost),
            "steps": float("nan") if lost else float(len(rows)),
            "seconds": float("nan") if lost else _sum(rows, "time/step"),
        }
        if recipe.start is None:
            return spent
        first = recipe.start.recipe
        run = run_of(self.root, first, cell.seed)
        before = self._spent(first, run, cell, recipe.start.step)
        return {name: before[name] + spent[name] for name in SPENT}

    def _history_of(self, run: Run) -> pd.DataFrame:
        """A run's history, read before if it is one of the kept."""
        cell = next((each.cell for each in self.kept if each.run == run), None)
        if cell is None:
            return records.history(run)
        return pick(self.history, label=cell.label, seed=cell.seed)


_QUESTIONS = ("step", "epoch", "rollouts", "question", "level", "correct", "alpha", "beta")


@dataclass(frozen=True)
class Runs:
    """A study's finished runs as frames, and what is missing from them.

    A run that answers for several seeds of an arm (a model left as it is) is there once: copies
    would look like replicates and differ by nothing.

    Attributes:
        study: whose runs they are.
        suites: that the study is evaluated on.
        kept: cells with a finished run, which the frames hold.
        missing: cells without one, which they leave out.
        frames: of all the study's finished runs, also of arms that are not among the kept.
    """

    study: Study
    suites: Suites
    kept: tuple[Planned, ...]
    missing: tuple[Planned, ...]
    frames: Frames

    def of(self, arms: Iterable[str]) -> "Runs":
        """The runs of some arms; of all of them if none is named."""
        names = tuple(arms)
        if not names:
            return self
        kept, missing = (
            tuple(each for each in cells if each.cell.label in names)
            for cells in (self.kept, self.missing)
        )
        return replace(self, kept=kept, missing=missing)

    @property
    def labels(self) -> tuple[str, ...]:
        """Arms with a finished run, the untrained base first and then in the study's order."""
        found = {each.cell.label for each in self.kept}
        ordered = [label for label in self.study.recipes if label in found]
        return tuple(sorted(ordered, key=lambda label: not untrained(self.study.recipes[label])))

    def seeds(self, label: str) -> tuple[int, ...]:
        """The seeds of an arm's finished runs."""
        return tuple(each.cell.seed for each in self.kept if each.cell.label == label)

    def starts(self, labels: Iterable[str]) -> list[str]:
        """Where those of some arms start that start at a checkpoint of another run."""
        found = []
        for label in dict.fromkeys(labels):
            start = self.study.recipes[label].start
            if start is not None:
                origin = self._name_of(start.recipe)
                found.append(
                    f"{label}: starts at step {start.step} of {origin}; its own steps are drawn."
                )
        return found

    def _name_of(self, recipe: Recipe) -> str:
        """The arm that a recipe is, or its method where it is none."""
        assert recipe.method is not None
        names = (label for label, each in self.study.recipes.items() if each == recipe)
        return next(names, recipe.method.label)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row for each label, seed and step, one column for each metric; NaN where absent."""
        return pick(self.frames.history, label=self.labels)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row for each label, seed, suite and problem: its level and its counts."""
        return pick(self.frames.evaluations, label=self.labels)

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row for each label, seed, step and question: its level, rollouts and gate weights."""
        return pick(self.frames.questions, label=self.labels)

    @cached_property
    def budget(self) -> pd.DataFrame:
        """One row for each label and seed: what it cost, the checkpoint it began at included."""
        return pick(self.frames.budget, label=self.labels)

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
            for suite, path in measured(self.study, each)
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
    return Runs(study, suites_of(study), kept, missing, Frames(study, root, kept))


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


def level_title(study: Study, level: int) -> str:
    """A difficulty level, with the kind of its problems where the study's data names it."""
    if not level:
        return "No level"
    named = [loaders.kinds(recipe.data) for recipe in study.recipes.values()]
    kind = next((each[level] for each in named if level in each), "")
    return f"Level {level}: {kind}" if kind else f"Level {level}"


def untrained(recipe: Recipe) -> bool:
    """Whether the recipe is its base model as it is, the same for every seed."""
    return recipe.method is None and recipe.start is None


def measured(study: Study, planned: Planned) -> list[tuple[str, Path]]:
    """The suites that a run is measured on, each with the file that holds the counts."""
    found = measurements(study, planned.cell.recipe)
    return [(each.suite, planned.run.evaluation_path(each)) for each in found]


def _with_levels(questions: pd.DataFrame, of: Planned) -> pd.DataFrame:
    """The questions with whole levels: those of the run's own data where its record has none.

    Another run's data would not do: a question is numbered by its place among those of its own.
    """
    known = questions["level"]
    if known.isna().to_numpy().any():
        own = {each.id: each.level for each in loaders.load(of.cell.recipe.data).train}
        known = known.fillna(questions["question"].map(own.get)).fillna(0)
    return questions.assign(level=known.astype("int64"))


def _key(cell: Cell) -> Row:
    return {"label": cell.label, "seed": cell.seed}


def _last(rows: pd.DataFrame, name: str, lost: bool) -> float:
    """The last value of a running total; 0 for a finished run without steps, which spent none."""
    if lost:
        return float("nan")
    if rows.empty:
        return 0.0
    return float(rows[name].iloc[-1]) if name in rows else float("nan")


def _sum(rows: pd.DataFrame, name: str) -> float:
    """NaN where one of the values is absent."""
    if rows.empty:
        return 0.0
    return float(np.sum(rows[name].to_numpy("float64"))) if name in rows else float("nan")


def share_of(count: int, total: int, things: str) -> str:
    """The start of a sentence about some of the things: `1 of 19 runs is`."""
    return f"{count} of {total} {things} {'is' if count == 1 else 'are'}"


def _listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a row, the rest of a long list as a count."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
