"""The records of a search: which trials it asked for, and what their runs say of them.

    mlruns/searches/<name>/
        lock            held by the process that searches
        trials.jsonl    a line for each trial (its parameters, the fingerprint of its recipe) and
                        for each recipe that was stopped early (why)

A trial's recipe is what `propose` makes of its parameters, and its scores are read from its runs:
nothing is stored twice. A recorded trial whose recipe has become another one, because the study
file was changed since, is left aside.
"""

import dataclasses
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from workbench.durable import make_folder
from workbench.identity import fingerprint, nearest
from workbench.plan import Job, simplified
from workbench.plan import jobs as plan_jobs
from workbench.recipe import Recipe
from workbench.records import Held, Row, append_line, read_lines
from workbench.schema import File
from workbench.scores import needed, score
from workbench.study import Search

Scores = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One trial: what was drawn, the recipe that it made, and how far its runs are.

    Attributes:
        number: from 0, in the order of asking.
        params: what was drawn, by name.
        recipe: what `propose` makes of it.
        twin: the number of the first trial with that recipe, whose runs it shares; or its own.
        stopped: why it was stopped before all its seeds were trained; empty if it was not.
        scores: the objectives of each seed that is done, in the order of `Search.objectives`.
        left: seeds that have no score.
    """

    number: int
    params: dict[str, Any]
    recipe: Recipe
    twin: int
    stopped: str = ""
    scores: dict[int, Scores] = dataclasses.field(default_factory=dict)
    left: tuple[int, ...] = ()

    @property
    def state(self) -> str:
        """`complete`, `pruned` or `open`."""
        return "pruned" if self.left and self.stopped else "open" if self.left else "complete"

    @property
    def means(self) -> Scores:
        """The mean of each objective over the seeds that are done."""
        return tuple(fmean(values) for values in zip(*self.scores.values(), strict=True))

    @property
    def label(self) -> str:
        """For people; nothing parses it."""
        return f"trial {self.number}"

    @property
    def drawn(self) -> str:
        """The parameters, for people."""
        return ", ".join(f"{name}={printed(value)}" for name, value in self.params.items())


def printed(value: Any) -> str:
    """A parameter's value, for people: a float by six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def key_of(recipe: Recipe) -> str:
    """Equal for recipes that are the same estimator, which one run answers for."""
    return fingerprint(simplified(recipe))


# --- the record -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The directory of a search."""

    path: Path

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the search for this process.

        Raises:
            Held: another process runs it.
        """
        make_folder(self.path)
        with open(self.path / File.LOCK, "a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                handle.seek(0)
                holder = handle.read().strip()
                raise Held(
                    f"search {self.path.name!r} is run by process {holder}; wait for it, or stop "
                    "it first"
                ) from error
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def asked(self, trial: Trial) -> None:
        """Records what a trial drew, before any of its runs starts."""
        recipe = fingerprint(trial.recipe)
        self._append({"trial": trial.number, "params": trial.params, "recipe": recipe})

    def stopped(self, trial: Trial, reason: str) -> None:
        """Records that a recipe is given up before all its seeds are trained."""
        self._append({"stopped": fingerprint(trial.recipe), "reason": reason})

    def _append(self, row: Row) -> None:
        append_line(self.path / File.TRIALS, row)

    def rows(self) -> list[Row]:
        """Every line."""
        return read_lines(self.path / File.TRIALS)


def record_of(search: Search, root: Path) -> Record:
    """Where a search is recorded."""
    return Record(root / "searches" / search.name)


# --- reading it -----------------------------------------------------------------------------------


def trials(search: Search, root: Path) -> list[Trial]:
    """The trials asked so far that `propose` still makes the same recipe of, with their scores."""
    rows = record_of(search, root).rows()
    stopped = {row["stopped"]: row["reason"] for row in rows if "stopped" in row}
    first: dict[str, Trial] = {}
    found = []
    for row in rows:
        recipe = _proposed_again(search, row) if "trial" in row else None
        if recipe is None:
            continue
        twin = first.get(key_of(recipe))
        if twin is None:
            reason = stopped.get(fingerprint(recipe), "")
            trial = Trial(row["trial"], row["params"], recipe, row["trial"], reason)
            twin = first[key_of(recipe)] = _with_scores(search, trial, root)
        again = dataclasses.replace(twin, number=row["trial"], params=row["params"], recipe=recipe)
        found.append(again)
    return found


def left_aside(search: Search, root: Path) -> int:
    """How many recorded trials made another recipe when they were asked."""
    rows = [row for row in record_of(search, root).rows() if "trial" in row]
    return sum(_proposed_again(search, row) is None for row in rows)


def next_number(search: Search, root: Path) -> int:
    """The number of the next trial; those left aside keep theirs."""
    return 1 + max([row.get("trial", -1) for row in record_of(search, root).rows()], default=-1)


def _proposed_again(search: Search, row: Row) -> Recipe | None:
    try:
        recipe = search.propose(Given(row["params"]))
    except (ValueError, TypeError):
        return None
    return recipe if fingerprint(recipe) == row["recipe"] else None


def _with_scores(search: Search, trial: Trial, root: Path) -> Trial:
    scores = {}
    for seed in search.seeds:
        job = own_job(search, trial, seed, root)
        values = scores_of(search, job) if job.done else None
        if values is not None:
            scores[seed] = values
    left = tuple(seed for seed in search.seeds if seed not in scores)
    return dataclasses.replace(trial, scores=scores, left=left)


def jobs(search: Search, trial: Trial, seed: int, root: Path) -> list[Job]:
    """The run of a trial under a seed, last, after the runs that it starts from."""
    *sources, job = plan_jobs(search.study_of(trial.label, trial.recipe, (seed,)), root)
    wanted = [each for key in search.objectives for each in needed(key, job)]
    measured = tuple(each for each in job.measurements if each in wanted)
    drawn = {f"trial.{name}": printed(value) for name, value in trial.params.items()}
    return [*sources, dataclasses.replace(job, measurements=measured, drawn=drawn)]


def own_job(search: Search, trial: Trial, seed: int, root: Path) -> Job:
    """The run of a trial under a seed."""
    return jobs(search, trial, seed, root)[-1]


def scores_of(search: Search, job: Job) -> Scores | None:
    """A done job's objectives; None if one of them was never recorded."""
    values = [score(job, key) for key in search.objectives]
    return None if None in values else tuple(value for value in values if value is not None)


# --- what they say --------------------------------------------------------------------------------


def winners(search: Search, found: Sequence[Trial]) -> list[Trial]:
    """The best of the complete trials, or with several objectives those that none beats in all."""
    complete = [each for each in found if each.state == "complete" and each.number == each.twin]
    signs = [1 if each == "maximize" else -1 for each in search.objectives.values()]
    values = [tuple(s * v for s, v in zip(signs, t.means, strict=True)) for t in complete]
    if len(signs) == 1:
        return [complete[values.index(max(values))]] if complete else []
    pairs = zip(complete, values, strict=True)
    return [trial for trial, mine in pairs if not any(_dominates(other, mine) for other in values)]


def _dominates(one: Scores, other: Scores) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def confirmed_arms(search: Search, found: Sequence[Trial]) -> dict[str, Recipe]:
    """What is run again on fresh seeds: the winners, and the known points beside them."""
    arms = {_named("winner", each): each.recipe for each in winners(search, found)}
    for point in search.points if arms else ():
        known = Trial(-1, point, search.propose(Given(point)), -1)
        if known.recipe not in arms.values():
            arms[_named("known", known)] = known.recipe
    return arms


def _named(role: str, trial: Trial) -> str:
    return f"{role} ({trial.drawn})"


class Given:
    """A trial whose answers are given: what makes a recipe of recorded or known parameters.

    Attributes:
        asked: names that were asked for, in order.
        logarithmic: those of them whose range is one of orders of magnitude.

    Raises:
        ValueError: a parameter that is not given, or that is outside of what is asked for.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.asked: list[str] = []
        self.logarithmic: set[str] = set()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The given value, if it is in the range."""
        self.logarithmic |= {name} if log else set()
        return float(self._in_range(name, low, high, step))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """The given value, if it is in the range."""
        self.logarithmic |= {name} if log else set()
        return int(self._in_range(name, low, high, step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The given value, if it is one of the choices."""
        value = self._given(name)
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; {nearest(value, choices)}")
        return value

    def _given(self, name: str) -> Any:
        self.asked.append(name)
        if name not in self.params:
            given = ", ".join(map(repr, self.params)) or "nothing"
            raise ValueError(f"propose asks for {name!r}, but given is {given}")
        return self.params[name]

    def _in_range(self, name: str, low: float, high: float, step: float | None) -> float:
        value = self._given(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, not a number")
        on_grid = not step or abs((value - low) / step - round((value - low) / step)) < 1e-8
        if not low <= value <= high or not on_grid:
            steps = f" in steps of {step}" if step else ""
            raise ValueError(f"{name} is {value}, outside of {low} to {high}{steps}")
        return value
