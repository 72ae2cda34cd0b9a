"""Declarations of studies and searches: which recipes, which seeds, how evaluated. No effects."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log2, prod
from typing import Any, Protocol, TypeVar, cast

from workbench.identity import Component, conform, field_names, fingerprint, subclasses
from workbench.recipe import Evaluation, Probe, Recipe
from workbench.resources import Resources
from workbench.rules import Count, Name, Within, nearest
from workbench.samplers import Sampler, Tpe, Wilcoxon, WithinRun

T = TypeVar("T", bound=Component)

MOST = 10_000  # cells of a grid or a study: more is a mistake, and would take hours to plan


def grid(make: Callable[..., T], **axes: Iterable[Any]) -> list[T]:
    """Every combination of the axes, the last one fastest, as values.

    >>> grid(Sampling, temperature=[0.6, 1.0], max_tokens=[64, 128])  # four Samplings

    Raises:
        TypeError: an axis that is not a field.
        ValueError: no axis, one without values, or more than `MOST` combinations.
    """
    if not axes:
        raise ValueError("grid() needs at least one axis, such as mask=[upge.KeepAll()]")
    made: Any = make
    if not callable(make):
        raise TypeError(f"grid() combines a class or function, got {make!r}; write upge.Estimator")
    known = field_names(made) if isinstance(made, type) else list(axes)
    for name in axes:
        if name not in known:
            raise TypeError(f"{made.__name__} has no axis {name!r}; {nearest(name, known)}")
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(
                f"axis {name!r} of the grid is {values!r}, not a list; write {name}=[{values!r}]"
            )
    choices = {name: list(values) for name, values in axes.items()}
    for name, values in choices.items():
        if not values:
            raise ValueError(f"axis {name!r} of the grid is empty: give it at least one value")
    _refuse_too_many("the grid", {name: len(values) for name, values in choices.items()})
    combinations = itertools.product(*choices.values())
    return [make(**dict(zip(choices, values, strict=True))) for values in combinations]


def _refuse_too_many(owner: str, counts: Mapping[str, int]) -> None:
    total = prod(counts.values())
    if total > MOST:
        factors = " x ".join(f"{count:,} {name}" for name, count in counts.items())
        raise ValueError(
            f"{owner} has {total:,} combinations ({factors}), more than {MOST:,}; leave values "
            "out, or let a Search draw from them"
        )


@dataclass(frozen=True)
class Cell:
    """One run of a study: a recipe with a seed, under the label that people read."""

    label: str
    recipe: Recipe
    seed: int


Arms = Mapping[str, Recipe] | Iterable[Recipe | tuple[str, Recipe]]


@dataclass(frozen=True)
class Study:
    """A question asked of several recipes, each under the same seeds and the same evaluation.

    Attributes:
        name: of the MLflow experiment and the report; lower-case letters, digits, `-` and `_`.
        arms: recipes by label; bare recipes are labelled by what tells them apart.
        seeds: one run for each.
        evaluation: on the test suites, after training.
        probes: measurements of the gradient, each at a checkpoint of every arm.
        resources: what a cell may use; never part of a result.
        question: what the study asks; the study file's docstring where it is empty.

    Raises:
        ValueError: no arms, no seeds, more than `MOST` cells, two arms of one label, or a name that
            paths cannot carry.
    """

    name: Name
    arms: Arms
    seeds: Iterable[int] = (0,)
    evaluation: Evaluation = Evaluation()
    probes: Iterable[Probe] = ()
    resources: Resources = Resources()
    question: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        conform(self)
        object.__setattr__(self, "arms", labelled(self.arms))
        object.__setattr__(self, "seeds", checked_seeds(f"study {self.name!r}", self.seeds))
        counts = {"arms": len(self.recipes), "seeds": len(tuple(self.seeds))}
        _refuse_too_many(f"study {self.name!r}", counts)
        object.__setattr__(self, "probes", tuple(self.probes))
        for probe in self.probes:
            if not isinstance(probe, Probe):
                raise TypeError(f"Study.probes takes probes, got {probe!r}; write Probe([method])")

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The arms by label."""
        return cast(dict[str, Recipe], self.arms)

    @property
    def cells(self) -> list[Cell]:
        """Every run of the study, seeds outermost so that a first seed of all arms ends early."""
        return [Cell(lb, r, seed) for seed in self.seeds for lb, r in self.recipes.items()]


SEED = Within(at_least=0, at_most=2**63 - 1, what="a whole number")


def checked_seeds(owner: str, given: Iterable[int]) -> tuple[int, ...]:
    """The seeds in order; raises ValueError for none, one that is no seed, or one named twice."""
    seeds = tuple(given)
    if not seeds:
        raise ValueError(f"{owner} has no seeds; for example seeds=range(3)")
    for seed in seeds:
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if not whole or not SEED.admits(seed):
            hint = SEED.hint(seed, None) if whole else "for example seeds=range(3)"
            raise ValueError(f"a seed of {owner} must be {SEED}, got {seed!r}; {hint}")
    once = list(dict.fromkeys(seeds))
    if len(once) < len(seeds):
        raise ValueError(f"{owner} names a seed twice: {list(seeds)}; write {once}")
    return seeds


def labelled(arms: Arms) -> dict[str, Recipe]:
    """Arms by label, in order; a bare recipe that is there already is not listed twice.

    Raises:
        TypeError: an arm that is not a recipe.
        ValueError: no arms, or one label for two recipes.
    """
    given: list[Any] = list(arms.items()) if isinstance(arms, Mapping) else list(arms)
    if not given:
        raise ValueError("a study needs at least one arm: its grid is empty")
    pairs: list[tuple[Any, Any]] = [
        each if isinstance(each, tuple) and len(each) == 2 else (None, each) for each in given
    ]
    for label, recipe in pairs:
        if not isinstance(recipe, Recipe):
            what = f"arm {label!r}" if label is not None else "an arm"
            hint = "; write base.using(method)" if isinstance(recipe, Component) else ""
            hint = "; write (label, recipe)" if isinstance(recipe, tuple) else hint
            raise TypeError(f"{what} is {recipe!r}, not a Recipe{hint}")
        if label is not None and not (isinstance(label, str) and label):
            usual = str(label) if isinstance(label, int | float) else describe(recipe)
            raise TypeError(f"an arm's label is a text, got {label!r}; such as {usual!r}")
    found: dict[str, Recipe] = {}
    for label, recipe in pairs:
        name = label if label is not None else describe(recipe)
        if name not in found:
            found[name] = recipe
        elif label is not None:
            taken = {given for given, _ in pairs}
            free = next(f"{name} {n}" for n in itertools.count(2) if f"{name} {n}" not in taken)
            raise ValueError(
                f"two arms have the label {name!r}; labels tell runs apart, so call one {free!r}"
            )
        elif found[name] != recipe:
            found[f"{name} {fingerprint(recipe)[:8]}"] = recipe
    return found


def describe(recipe: Recipe) -> str:
    """A short label for people: the method's name or components, never parsed by anything."""
    if recipe.method is None:
        return "base"
    return recipe.method.label


def differences(one: Component, other: Component) -> dict[str, tuple[str, str]]:
    """Fields, dotted, whose printed values differ between two values: what a reader must know."""
    return differing(flatten(one), flatten(other))


def differing(left: Mapping[str, str], right: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Fields, flattened, that two values do not have in common."""
    keys = [*left, *(key for key in right if key not in left)]
    absent = "(absent)"
    pairs = {key: (left.get(key, absent), right.get(key, absent)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def flatten(value: Component, prefix: str = "") -> dict[str, str]:
    """Every field by dotted name, as printed: `method.gate` and `method.gate.at_most` both."""
    found: dict[str, str] = {}
    for name in field_names(value):
        item = getattr(value, name)
        found[prefix + name] = str(item)
        if isinstance(item, Component):
            found |= flatten(item, f"{prefix}{name}.")
    return found


# --- searches -------------------------------------------------------------------------------------


class Asks(Protocol):
    """What `propose` may ask of a trial: the part of `optuna.Trial` that draws parameters."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


V = TypeVar("V")


def choose(trial: Asks, name: str, choices: Iterable[V]) -> V:
    """One of any values, components too: the trial draws among their printed forms.

    Raises:
        ValueError: no choices, or two that print the same.
    """
    given = list(choices)
    named = {str(choice): choice for choice in given}
    if not given:
        raise ValueError(f"choose(trial, {name!r}, ...) needs at least one choice")
    if len(named) < len(given):
        raise ValueError(f"two choices of {name!r} print the same: {', '.join(map(str, given))}")
    return named[trial.suggest_categorical(name, list(named))]


@dataclass(frozen=True)
class Search:
    """The best recipe among those that `propose` makes, sought by Optuna over whole trials.

    A trial is one recipe under every seed; its score is the mean over them. The winner, and each
    `known` point beside it, is run again on the seeds of `confirm`, which no choice has seen: only
    these runs make a table.

    Attributes:
        name: of the MLflow experiment and the report, as a study's.
        propose: makes a recipe from what it asks of a trial; the same answers, the same recipe.
        maximize, minimize: one metric or several, `validation/pass_at_1` or any of training (the
            last step's), `eval/<suite>/pass_at_1` or `eval/<suite>/length` of the evaluation,
            where the suite may be `avg` or `avg_ood`. Several have a Pareto front of winners.
        trials: how many, counting those that propose a recipe again (they cost nothing).
        seeds: of every trial.
        confirm: fresh seeds for the winner.
        sampler: draws the parameters.
        between_seeds: stops trials that are worse than the best; they are trained seed by seed.
        within_run: stops runs that are worse than others were at the same step.
        known: parameters of good points, tried first; components may stand for themselves.
        evaluation: of the winner. A trial is measured on the suites that its score needs only.
        resources: what a cell may use; never part of a result.
        question: what the search asks; the study file's docstring where it is empty.

    Raises:
        ValueError: a name that paths cannot carry, no objective, seeds that confirm nothing, or
            pruning that cannot work.
    """

    name: Name
    propose: Callable[[Any], Recipe]
    maximize: str | Iterable[str] = ()
    minimize: str | Iterable[str] = ()
    trials: Count = 30
    seeds: Iterable[int] = (0, 1, 2)
    confirm: Iterable[int] = (100, 101, 102)
    sampler: Sampler = Tpe()
    between_seeds: Wilcoxon | None = None
    within_run: WithinRun | None = None
    known: Iterable[Mapping[str, Any]] = ()
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    question: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_kinds()
        conform(self)
        for each in ("maximize", "minimize"):
            keys = getattr(self, each)
            object.__setattr__(self, each, (keys,) if isinstance(keys, str) else tuple(keys))
        for each in ("seeds", "confirm"):
            object.__setattr__(
                self, each, checked_seeds(f"search {self.name!r}", getattr(self, each))
            )
        points = ({k: _drawn(v) for k, v in point.items()} for point in self.known)
        object.__setattr__(self, "known", tuple(points))
        self._check_objectives()
        self._check_seeds()

    def _check_kinds(self) -> None:
        if not callable(self.propose):
            raise TypeError(
                f"Search.propose is a function of a trial, got {self.propose!r}; "
                "write lambda trial: base.using(...)"
            )
        kinds = {"sampler": Sampler, "between_seeds": Wilcoxon, "within_run": WithinRun}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name == "sampler"):
                known = [f"{each.__name__}()" for each in subclasses(kind) or [kind]]
                raise TypeError(f"Search.{name} is {value!r}; {nearest(value, known)}")

    def _check_objectives(self) -> None:
        keys = list(self.objectives)
        if not keys:
            example = "maximize='validation/pass_at_1'"
            raise ValueError(f"search {self.name!r} has no objective; for example {example}")
        if len(keys) < len((*self.maximize, *self.minimize)):
            raise ValueError(f"search {self.name!r} names an objective twice")
        if len(keys) > 1 and (self.between_seeds or self.within_run):
            raise ValueError(
                f"search {self.name!r} has {len(keys)} objectives, and a trial that is worse in "
                "one may be better in another; leave out between_seeds and within_run"
            )

    def _check_seeds(self) -> None:
        seeds, confirm = tuple(self.seeds), tuple(self.confirm)
        both = sorted({*seeds} & {*confirm})
        if both:
            raise ValueError(
                f"Search.confirm has seeds {both}, which the search chooses by; use others, such "
                f"as confirm=range({max(seeds) + 1}, {max(seeds) + 4})"
            )
        if self.between_seeds is None:
            return
        least = floor(-log2(self.between_seeds.p)) + 1  # the smallest p of n pairs is 2^-n
        if len(seeds) <= least:
            raise ValueError(
                f"{self.between_seeds} stops nothing with {len(seeds)} seeds: n pairs have a "
                f"p-value of 2^-n at least, so it takes {least} seeds to stop a trial and one more "
                f"to save; use at least {least + 1} seeds"
            )

    @property
    def objectives(self) -> dict[str, str]:
        """Each objective's direction, `maximize` or `minimize`."""
        return {
            **dict.fromkeys(self.maximize, "maximize"),
            **dict.fromkeys(self.minimize, "minimize"),
        }

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """The known points as a trial's parameters."""
        return cast(tuple[dict[str, Any], ...], self.known)

    def study_of(self, label: str, recipe: Recipe, seeds: Iterable[int]) -> Study:
        """A recipe that was proposed, as a study of one arm."""
        arms = {label: recipe}
        return Study(self.name, arms, seeds, evaluation=self.evaluation, resources=self.resources)

    def confirmation(self, arms: Mapping[str, Recipe]) -> Study:
        """The study of what is run again on fresh seeds."""
        question = f"How good are the winners of {self.name} on seeds that did not choose them?"
        return Study(
            f"{self.name}-winner",
            arms,
            self.confirm,
            evaluation=self.evaluation,
            resources=self.resources,
            question=question,
        )


def _drawn(value: Any) -> Any:
    """A known value in the form that a trial draws it in: components by their printed form."""
    return str(value) if isinstance(value, Component) else value
