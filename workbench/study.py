"""Declarations of studies: which recipes, which seeds, how they are evaluated. No side effects."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from workbench.identity import Component, field_names, fingerprint, nearest
from workbench.recipe import Evaluation, Probe, Recipe
from workbench.resources import Resources

T = TypeVar("T", bound=Component)


def grid(make: Callable[..., T], **axes: Iterable[Any]) -> list[T]:
    """Every combination of the axes, the last one fastest, as values.

    >>> grid(Sampling, temperature=[0.6, 1.0], top_p=[0.95, 1.0])  # four Samplings

    Raises:
        TypeError: an axis that is not a field.
        ValueError: no axis, or one without values.
    """
    if not axes:
        raise ValueError("grid() needs at least one axis, such as mask=[upge.KeepAll()]")
    made: Any = make
    known = field_names(made) if isinstance(made, type) else list(axes)
    for name in axes:
        if name not in known:
            raise TypeError(f"{made.__name__} has no axis {name!r}; {nearest(name, known)}")
    choices = {name: list(values) for name, values in axes.items()}
    for name, values in choices.items():
        if not values:
            raise ValueError(f"axis {name!r} of the grid is empty: give it at least one value")
    combinations = itertools.product(*choices.values())
    return [make(**dict(zip(choices, values, strict=True))) for values in combinations]


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
        ValueError: no arms, no seeds, two arms of one label, or a name that paths cannot carry.
    """

    name: str
    arms: Arms
    seeds: Iterable[int] = (0,)
    evaluation: Evaluation = Evaluation()
    probes: Iterable[Probe] = ()
    resources: Resources = Resources()
    question: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(
                f"a study's name is of lower-case letters, digits, - and _, got {self.name!r}; "
                f"for example {re.sub(r'[^a-z0-9_-]+', '-', self.name.lower()).strip('-')!r}"
            )
        object.__setattr__(self, "arms", labelled(self.arms))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "probes", tuple(self.probes))
        if not self.seeds:
            raise ValueError(f"study {self.name!r} has no seeds; for example seeds=range(3)")
        for seed in self.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise ValueError(f"a seed is a whole number of 0 or more, got {seed!r}")
        if len(set(self.seeds)) < len(tuple(self.seeds)):
            raise ValueError(f"study {self.name!r} names a seed twice: {self.seeds}")

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The arms by label."""
        return cast(dict[str, Recipe], self.arms)

    @property
    def cells(self) -> list[Cell]:
        """Every run of the study, seeds outermost so that a first seed of all arms ends early."""
        return [Cell(lb, r, seed) for seed in self.seeds for lb, r in self.recipes.items()]


def labelled(arms: Arms) -> dict[str, Recipe]:
    """Arms by label, in order; a bare recipe that is there already is not listed twice.

    Raises:
        TypeError: an arm that is not a recipe.
        ValueError: no arms, or one label for two recipes.
    """
    given: list[Any] = list(arms.items()) if isinstance(arms, Mapping) else list(arms)
    if not given:
        raise ValueError("a study needs at least one arm: its grid is empty")
    pairs: list[tuple[str | None, Recipe]] = [
        each if isinstance(each, tuple) else (None, each) for each in given
    ]
    for label, recipe in pairs:
        if not isinstance(recipe, Recipe):
            what = f"arm {label!r}" if label is not None else "an arm"
            hint = "; write base.using(method)" if isinstance(recipe, Component) else ""
            raise TypeError(f"{what} is {recipe!r}, not a Recipe{hint}")
    found: dict[str, Recipe] = {}
    for label, recipe in pairs:
        name = label if label is not None else describe(recipe)
        if name not in found:
            found[name] = recipe
        elif label is not None:
            raise ValueError(f"two arms have the label {name!r}; labels tell runs apart")
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
