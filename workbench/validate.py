"""Everything wrong with a study that shows before anything is trained."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

from workbench import models
from workbench.identity import imports, join, nearest, replace
from workbench.plan import measurements, steps_of
from workbench.problems import Chat, Corpus, Dataset, loaders
from workbench.recipe import (
    ACCURACY,
    Data,
    Evaluation,
    Measurement,
    Model,
    Probe,
    Recipe,
    check_vllm_temperature,
)
from workbench.records import read_json
from workbench.resources import Lacking
from workbench.schema import VALIDATION_LEVEL
from workbench.study import Study, describe


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
                check_level("Resources.best_by", study.resources.best_by, label, each)
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


def check_level(field: str, key: str, label: str, recipe: Recipe) -> None:
    """Refuses to go by the accuracy on a level that the arm's validation problems do not have."""
    known = _accuracies(recipe.data, recipe.validation.problems)
    if recipe.method is not None and key not in known:
        raise ValueError(
            f"{field} is {key!r}, which arm {label!r} does not measure; {nearest(key, known)}"
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
        shown = sum(problem.demonstration is not None for problem in data.train)
        if not recipe.method.samples_rollouts and shown < recipe.questions:
            raise ValueError(
                f"arm {label!r} takes {recipe.questions} questions a step and learns of "
                f"demonstrations alone, but of data {data.name!r} only {shown} have one; use at "
                f"most questions={shown}"
            )


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
