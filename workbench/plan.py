"""What a study will train, how far that is, and what is left of it.

Cells that are the same estimator share one run: with one optimizer step a batch the current and
the old policy are equal, so recipes that differ only in what tells those apart are one recipe.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import provenance
from workbench.identity import fingerprint, replace
from workbench.problems import loaders
from workbench.recipe import (
    Measurement,
    Probe,
    Recipe,
    Start,
)
from workbench.records import Run, cells_root, folder_of, read_json, run_in, run_of
from workbench.schema import File
from workbench.study import Cell, Study, describe


@dataclass(frozen=True)
class Planned:
    """A cell of a study with its run; `same_as` is the label of the arm that is trained for it."""

    cell: Cell
    run: Run
    same_as: str | None = None


@dataclass(frozen=True)
class Job:
    """One run to train and measure.

    Attributes:
        label: the arm it is trained for.
        measurements: evaluations of its last checkpoint.
        probes: measurements of the gradient at its checkpoints.
        keep: steps whose checkpoints other runs start from, or a probe is at.
        needs: directory of the run that it starts from.
        also: labels of other arms that are the same estimator.
        drawn: what a search drew for its recipe, by the names that MLflow shows.
    """

    label: str
    recipe: Recipe
    seed: int
    run: Run
    measurements: tuple[Measurement, ...] = ()
    probes: tuple[Probe, ...] = ()
    keep: tuple[int, ...] = ()
    needs: Path | None = None
    also: tuple[str, ...] = ()
    drawn: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people; nothing parses it."""
        return f"{self.label} · seed {self.seed}"

    @property
    def missing(self) -> list[str]:
        """What its run directory still lacks, in words."""
        if not self.run.finished:
            return ["a result"]
        kept = [n for n in self.keep if not self.run.checkpoint_path(n).exists()]
        unmeasured = [m for m in self.measurements if not self.run.evaluation_path(m).exists()]
        lost = [f"the checkpoint of step {n}" for n in kept]
        probes = [p for p in self.probes if not self.run.probe_path(p).exists()]
        at = [f"the probe of step {p.step} at distance {p.distance}" for p in probes]
        return lost + [m.suite for m in unmeasured] + at

    @property
    def done(self) -> bool:
        """Whether training has a result and every measurement is there."""
        return not self.missing


def merged(one: Job, other: Job) -> Job:
    """A job of one run that asks for all that either does; it goes by the first one's label."""
    return dataclasses.replace(
        one,
        measurements=tuple(dict.fromkeys((*one.measurements, *other.measurements))),
        probes=tuple(dict.fromkeys((*one.probes, *other.probes))),
        keep=tuple(sorted({*one.keep, *other.keep})),
        drawn={**other.drawn, **one.drawn},
    )


@dataclass(frozen=True)
class Status:
    """How far a job is: `finished`, `trained`, `running`, `interrupted`, `failed` or `waiting`."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Cost:
    """What is still to be trained: steps, sampled tokens at most, and seconds if any was timed."""

    steps: int
    tokens: int
    seconds: float | None


# --- which runs -----------------------------------------------------------------------------------


def simplified(recipe: Recipe) -> Recipe:
    """The recipe with everything dropped that cannot act: two that agree in it are the same."""
    method = recipe.method
    if method is not None and recipe.updates_per_batch * recipe.epochs_per_batch == 1:
        method = method.on_policy()
    start = recipe.start
    if start is not None:
        start = Start(simplified(start.recipe), start.step)
    return replace(recipe, method=method, start=start)


def resolve(study: Study, root: Path) -> list[Planned]:
    """Every cell of the study with the run directory that answers for it."""
    trained = _trained_for(study.recipes)
    folders = {label: folder_of(root, study.recipes[label]) for label in set(trained.values())}
    planned = []
    for cell in study.cells:
        label = trained[cell.label]
        run = run_in(folders[label], seed_of(cell))
        planned.append(Planned(cell, run, None if label == cell.label else label))
    return planned


def seed_of(cell: Cell) -> int:
    """The seed that a cell's run has: a model left as it is has one run, whatever the seeds."""
    untrained = cell.recipe.method is None and cell.recipe.start is None
    return 0 if untrained else cell.seed


def _trained_for(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """The label of the arm that is trained for each arm: the first that is the same estimator.

    One that others start from goes before it, because they look for exactly that run.
    """
    sources = {fingerprint(r.start.recipe) for r in recipes.values() if r.start is not None}
    classes: dict[str, list[str]] = {}
    for label, recipe in recipes.items():
        classes.setdefault(fingerprint(simplified(recipe)), []).append(label)
    found = {}
    for labels in classes.values():
        wanted = [lb for lb in labels if sources and fingerprint(recipes[lb]) in sources]
        found |= dict.fromkeys(labels, (wanted or labels)[0])
    return found


def jobs(study: Study, root: Path) -> list[Job]:
    """Every run that the study needs, once, each after the one that it starts from."""
    found: dict[Path, Job] = {}
    also: dict[Path, list[str]] = {}
    measured = {label: measurements(study, recipe) for label, recipe in study.recipes.items()}
    for planned in resolve(study, root):
        cell, path = planned.cell, planned.run.path
        label = planned.same_as or cell.label
        if planned.same_as is not None and cell.label not in also.setdefault(path, []):
            also[path].append(cell.label)
        recipe, probes = study.recipes[label], tuple(study.probes)
        keep = tuple(sorted({p.step for p in probes if p.step}))
        job = Job(label, recipe, seed_of(cell), planned.run, measured[label], probes, keep)
        found.setdefault(path, job)
    for job in list(found.values()):
        _add_sources(job, root, found)
    named = [dataclasses.replace(j, also=tuple(also.get(p, ()))) for p, j in found.items()]
    return _sources_first(named)


def measurements(study: Study, recipe: Recipe) -> tuple[Measurement, ...]:
    """What the study measures of a recipe's last checkpoint."""
    return study.evaluation.measurements(tuple(loaders.outside(recipe.data)), recipe)


def _add_sources(job: Job, root: Path, found: dict[Path, Job]) -> None:
    """Links a job to the run that it starts from, which is planned too if no arm is that run."""
    start = job.recipe.start
    if start is None:
        return
    run = run_of(root, start.recipe, job.seed)
    source = found.get(run.path)
    if source is None:
        label = f"{describe(start.recipe)} (for {job.label})"
        source = Job(label, start.recipe, job.seed, run)
    keep = tuple(sorted({*source.keep, start.step}))
    found[run.path] = dataclasses.replace(source, keep=keep)
    found[job.run.path] = dataclasses.replace(found[job.run.path], needs=run.path)
    _add_sources(found[run.path], root, found)


def _sources_first(jobs: list[Job]) -> list[Job]:
    by_path = {job.run.path: job for job in jobs}
    ordered: dict[Path, Job] = {}

    def place(job: Job) -> None:
        if job.needs is not None:
            place(by_path[job.needs])
        ordered.setdefault(job.run.path, job)

    for job in jobs:
        place(job)
    return list(ordered.values())


# --- how far it is, and what is left --------------------------------------------------------------


def status(job: Job) -> Status:
    """How far a job is, from its run directory alone."""
    missing = job.missing
    if not missing:
        return Status("finished")
    if job.run.held:
        return Status("running")
    failure = job.run.failure
    if failure is not None and failure["kind"] != "interrupted":
        return Status("failed", failure["reason"])
    if job.run.finished:
        return Status("trained", f"not measured yet: {', '.join(missing)}")
    if any((job.run.path / file).exists() for file in (File.PROVENANCE, File.METRICS)):
        return Status("interrupted", failure["reason"] if failure else "its process died")
    return Status("waiting")


def is_stale(job: Job, code: provenance.Code) -> bool:
    """Whether the code that computes results has changed since the run was trained."""
    path = job.run.path / File.PROVENANCE
    return path.exists() and provenance.changed(read_json(path), code)


def cost(jobs: Iterable[Job], root: Path) -> Cost:
    """What the unfinished of the jobs will cost."""
    left = [job for job in jobs if not job.run.finished]
    steps = sum(steps_of(job.recipe) for job in left)
    timed = seconds_a_step({_sizes(job.recipe) for job in left}, root)
    known = [
        steps_of(j.recipe) * timed[_sizes(j.recipe)] for j in left if _sizes(j.recipe) in timed
    ]
    return Cost(steps, sum(tokens_of(job.recipe) for job in left), sum(known) if known else None)


def steps_of(recipe: Recipe) -> int:
    """Training steps; none where the model is left as it is."""
    return 0 if recipe.method is None else recipe.steps


def tokens_of(recipe: Recipe) -> int:
    """Tokens sampled for training if every rollout is as long as may be."""
    if recipe.method is None or not recipe.method.samples_rollouts:
        return 0
    return recipe.steps * recipe.questions * recipe.rollouts * recipe.sampling.max_tokens


Sizes = tuple[str, ...]


def _sizes(recipe: Recipe) -> Sizes:
    """What the time of a step depends on: the model, the sizes, and whether rollouts are drawn."""
    batch = (recipe.questions, recipe.rollouts, recipe.updates_per_batch, recipe.epochs_per_batch)
    sampled = recipe.method is not None and recipe.method.samples_rollouts
    return (str(recipe.model), *map(str, batch), str(recipe.sampling.max_tokens), str(sampled))


def seconds_a_step(wanted: set[Sizes], root: Path) -> dict[Sizes, float]:
    """Mean recorded seconds of a step for each of the sizes that some finished run has."""
    found: dict[Sizes, float] = {}
    for path in cells_root(root).glob(f"*/seed-*/{File.RESULT}"):
        if wanted <= found.keys():
            break
        run = Run(path.parent)
        keys = [
            key for key in _recorded_sizes(run.spec["parameters"]) if key in wanted - found.keys()
        ]
        rows = run.rows() if keys else []
        seconds = [row["time/step"] for row in rows if row.get("time/step") is not None]
        sampled = any(row.get("budget/sampled_tokens") for row in rows)
        for key in keys:
            if seconds and key[-1] == str(sampled):
                found[key] = sum(seconds) / len(seconds)
    return found


def _recorded_sizes(parameters: Mapping[str, Any]) -> list[Sizes]:
    names = ("model", "questions", "rollouts", "updates_per_batch", "epochs_per_batch")
    start = tuple(parameters[name] for name in (*names, "sampling.max_tokens"))
    return [(*start, "True"), (*start, "False")]


def measurements_json(job: Job) -> str:
    """A job's measurements as the worker's command line carries them."""
    return json.dumps([dataclasses.asdict(m) for m in job.measurements])
