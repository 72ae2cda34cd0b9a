"""What a study will train, what that costs, and everything wrong with it that shows beforehand.

Cells that are the same estimator share one run: with one optimizer step a batch the current and
the old policy are equal, so recipes that differ only in what tells those apart are one recipe.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench import models, provenance
from workbench.identity import fingerprint, imports, join, nearest, replace
from workbench.problems import Chat, Corpus, Dataset, loaders
from workbench.recipe import (
    ACCURACY,
    Data,
    Evaluation,
    Measurement,
    Model,
    Probe,
    Recipe,
    Start,
    check_vllm_temperature,
)
from workbench.records import Run, cells_root, folder_of, read_json, run_in, run_of
from workbench.resources import Lacking
from workbench.schema import VALIDATION_LEVEL, File
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


# --- what is wrong with it ------------------------------------------------------------------------


def validate(study: Study, lacking: list[str] | None = None) -> None:
    """Raises ValueError on what can be known to be wrong before anything is trained.

    Args:
        study: all of its arms are checked, and what they start from.
        lacking: takes what this machine lacks for it, a sentence each, in place of an error; what
            needs that stays unchecked.

    Raises:
        Lacking: a model, data, a package or a device is not to be had here.
    """
    homes: dict[str, str] = {}
    for label, recipe in study.recipes.items():
        _check_identity(label, recipe, homes)
        for each in _with_sources(recipe):
            _or_note(partial(_check_engine, each, study.evaluation), lacking)
            _or_note(partial(_check_prompt, each), lacking)
            if _has_data(each, lacking):
                _check_data(label, each)
                sampled = each.sampling.max_tokens
                _or_note(partial(_check_length, each, "Sampling.max_tokens", sampled), lacking)
                _check_best(label, each, study.resources.best_by)
        measured = measurements(study, recipe)
        if not _has_data(recipe, lacking):
            continue
        if study.evaluation.max_tokens is not None:
            longest = study.evaluation.max_tokens
            _or_note(partial(_check_length, recipe, "Evaluation.max_tokens", longest), lacking)
        _check_problems(label, recipe, measured)
        for probe in study.probes:
            _check_probe(label, recipe, probe)
    for suite, _ in study.evaluation.more:
        if study.evaluation.suites and suite not in study.evaluation.suites:
            raise ValueError(
                f"Evaluation.more asks for more of suite {suite!r}, which Evaluation.suites leaves "
                f"out; add it there or choose one of: {', '.join(study.evaluation.suites)}"
            )


def _or_note(check: Callable[[], object], lacking: list[str] | None) -> None:
    """Makes a check; what the machine lacks for it goes into the list, once, if there is one."""
    try:
        check()
    except Lacking as error:
        if lacking is None:
            raise
        if str(error) not in lacking:
            lacking.append(str(error))


def _has_data(recipe: Recipe, lacking: list[str] | None) -> bool:
    """Whether the data can be read here; what of it cannot goes into the list, if there is one."""
    if lacking is None:
        return True
    missing = _lacking_data(recipe.data)
    lacking += [each for each in missing if each not in lacking]
    return not missing


@lru_cache(maxsize=8)
def _lacking_data(data: Data | Corpus) -> list[str]:
    return loaders.lacking(data)


def _check_identity(label: str, recipe: Recipe, homes: dict[str, str]) -> None:
    """Refuses what no record could tell apart; adds where the recipe's classes are to `homes`."""
    try:
        for name, home in imports(recipe).items():
            join(homes, name, home)
    except TypeError as error:
        raise TypeError(f"arm {label!r}: {error}") from error


def _with_sources(recipe: Recipe) -> Iterator[Recipe]:
    yield recipe
    if recipe.start is not None:
        yield from _with_sources(recipe.start.recipe)


def _check_length(recipe: Recipe, field: str, tokens: int) -> None:
    """Refuses responses for which the model has no positions left after the longest prompt."""
    limit, prompt = _positions(recipe.base, recipe.data)
    if limit is not None and prompt + tokens > limit:
        room = limit - prompt
        hint = f"use at most {room}" if room > 0 else "use a model that reads more"
        raise ValueError(
            f"{field} is {tokens}, but model {recipe.base.name!r} reads {limit} tokens, and the "
            f"longest prompt of {recipe.data.name!r} has {prompt} of them; {hint}"
        )


@lru_cache(maxsize=64)
def _positions(model: Model, data: Data | Corpus) -> tuple[int | None, int]:
    """Tokens that the model reads, None if only the hub can say, and those of the longest prompt.

    A chat's are not counted, as its template needs all of transformers: at least 1 is left for it.
    """
    limit, loaded = model.positions or models.positions(model.name), loaders.load(data)
    if limit is None or isinstance(loaded.prompt, Chat):
        return limit, 1
    allowed = data.longest if isinstance(data, Corpus) else None
    lengths = [1]
    for part, problems in loaded.parts.items():
        found = models.lengths(model.name, [loaded.prompt(each.question) for each in problems])
        dropped = part in ("train", "validation") and allowed is not None  # where they are longer
        lengths += [n for n in found if not dropped or n <= allowed]
    return limit, max(lengths)


def _check_best(label: str, recipe: Recipe, key: str) -> None:
    """Refuses to choose checkpoints by the accuracy on a level that validation does not have."""
    known = _accuracies(recipe.data, recipe.validation.problems)
    if recipe.method is not None and key not in known:
        raise ValueError(
            f"Resources.best_by is {key!r}, which arm {label!r} does not measure; "
            f"{nearest(key, known)}"
        )


@lru_cache(maxsize=64)
def _accuracies(data: Data | Corpus, problems: int | None) -> tuple[str, ...]:
    levels = {each.level for each in loaders.load(data).validation[:problems] if each.level}
    return (ACCURACY.known[0], *(VALIDATION_LEVEL.format(level=n) for n in sorted(levels)))


def _check_engine(recipe: Recipe, evaluation: Evaluation) -> None:
    engine = recipe.sampling.engine
    if engine == "vllm":
        check_vllm_temperature(recipe.sampling.temperature)
        check_vllm_temperature(evaluation.temperature)
    if find_spec(engine) is None:
        raise Lacking(
            f"Sampling.engine is {engine!r}, which is not installed; pip install "
            f"'post-training-workbench[{engine}]', or use engine='transformers'"
        )


def _check_prompt(recipe: Recipe) -> None:
    """Refuses a chat prompt for a local model without a chat template; the hub is not asked."""
    folder = Path(models.locate(recipe.base.name))
    config = folder / "tokenizer_config.json"
    if not isinstance(recipe.data, Corpus) or not isinstance(recipe.data.prompt, Chat):
        return
    if not config.is_file() or any(folder.glob("chat_template*")):
        return
    if not read_json(config).get("chat_template"):
        raise ValueError(
            f"model {recipe.base.name!r} has no chat template for {recipe.data.prompt}; give the "
            "text itself, as Text(...) or one of workbench.problems.prompts"
        )


def _check_data(label: str, recipe: Recipe) -> None:
    data = loaders.load(recipe.data)
    if len(data.train) < recipe.questions:
        raise ValueError(
            f"arm {label!r} takes {recipe.questions} questions a step, but data {data.name!r} has "
            f"only {len(data.train)}; use at most questions={len(data.train)}"
        )
    if recipe.validation.problems is not None and recipe.validation.problems > len(data.validation):
        raise ValueError(
            f"Validation.problems is {recipe.validation.problems}, but data {data.name!r} has "
            f"{len(data.validation)} validation problems; use at most that, or None for all"
        )
    if recipe.method is not None and recipe.method.needs_demonstrations:
        _check_demonstrations(label, recipe, data)


def _check_problems(label: str, recipe: Recipe, measured: tuple[Measurement, ...]) -> None:
    """Refuses to measure more problems than any of the suites has."""
    sizes = {suite.name: len(suite.problems) for suite in loaders.load(recipe.data).suites}
    most = max((sizes[each.suite] for each in measured), default=0)
    for each in measured:
        if each.problems is not None and each.problems > most:
            raise ValueError(
                f"Evaluation.problems is {each.problems}, but of the suites of arm {label!r} the "
                f"largest has {most} problems; use at most that, or None for all"
            )


def _check_probe(label: str, recipe: Recipe, probe: Probe) -> None:
    last = steps_of(recipe)
    if probe.step > last:
        raise ValueError(
            f"a probe is at step {probe.step}, but arm {label!r} has {last} steps; use at most that"
        )
    if probe.distance and probe.along is None and recipe.method is None:
        raise ValueError(
            f"a probe has distance {probe.distance}, but arm {label!r} has no method to go along; "
            "say one: Probe(..., along=upge.grpo())"
        )
    if probe.distance > recipe.questions:
        raise ValueError(
            f"a probe has distance {probe.distance}, but a batch of arm {label!r} has "
            f"{recipe.questions} questions and every optimizer step needs one; use at most "
            f"{recipe.questions}"
        )
    data = loaders.load(recipe.data)
    if probe.questions > len(data.train):
        raise ValueError(
            f"a probe takes {probe.questions} questions, but data {data.name!r} has only "
            f"{len(data.train)}; use at most that"
        )
    for method in probe.methods:
        if method.needs_demonstrations:
            _check_demonstrations(label, replace(recipe, method=method), data)


def _check_demonstrations(label: str, recipe: Recipe, data: Dataset) -> None:
    if not any(problem.demonstration is not None for problem in data.train):
        raise ValueError(
            f"arm {label!r} trains {describe(recipe)} on demonstrations, but data {data.name!r} "
            "has none; choose data with demonstrations, or a method of rollouts only such as "
            "upge.grpo()"
        )


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
