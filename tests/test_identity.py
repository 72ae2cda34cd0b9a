"""Values: one canonical form each, restored from it, and nothing unstable let in."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import chain
from math import inf, isfinite, nan
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import pytest

import workbench
from workbench import (
    Data,
    Evaluation,
    Optimizer,
    Recipe,
    Sampling,
    Validation,
    WarmupCosine,
    replace,
    upge,
)
from workbench.identity import (
    Component,
    canonical,
    fingerprint,
    imports,
    load_module,
    nearest,
    restore,
    subclasses,
)
from workbench.problems.habit import Glimpses, Mixture
from workbench.recipe import Measurement, Schedule
from workbench.resources import Resources
from workbench.rules import Within
from workbench.study import Search
from workbench.training.pretrain import Architecture

BASE = Recipe("arithmetic-1m", Data("arithmetic", train=300, seed=2))
SFT = BASE.using(upge.sft(), steps=20)


class Plain(Component):
    number: float
    count: int = 1
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (0, 0.5)
    maybe: int | None = None
    mixed: float | str = "none"


class Twin(Component):
    number: float
    count: int = 1
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (0, 0.5)
    maybe: int | None = None
    mixed: float | str = "none"


class Second(Component):
    version: ClassVar[int] = 2
    number: float = 0.0


RECIPES = {
    "base": BASE,
    **{name: BASE.using(make()) for name, make in upge.NAMED.items()},
    "an estimator": BASE.using(upge.Estimator(upge.RatioClip(0.2) & upge.ClipCov())),
    "a phase": BASE.using(upge.grpo()).start_from(SFT),
    "a phase in the middle": BASE.using(upge.grpo()).start_from(SFT, step=7),
    "three phases": BASE.using(upge.hpt()).start_from(BASE.using(upge.grpo()).start_from(SFT)),
    "every part": replace(
        BASE,
        sampling=Sampling(0.7, max_tokens=64),
        optimizer=Optimizer(1e-3, betas=(0.8, 0.95), schedule=WarmupCosine(5), skip_above=80),
        validation=Validation(every=5, problems=10),
        dtype="bfloat16",
    ),
}
VALUES = {
    **RECIPES,
    "an evaluation": Evaluation(8, more=(("hard", 64),), suites=("easy", "hard")),
    "a measurement": Measurement("easy", 8, 0.6, 0.95, 128, 0),
    "plain": Plain(1, words=("a", "b"), pair=(1, 2), maybe=None, mixed="x"),
    "another version": Second(1.5),
}
every_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


@every_value
def test_a_value_is_restored_from_its_canonical_form(value: Component) -> None:
    written = json.dumps({"form": canonical(value), "homes": imports(value)})
    read = json.loads(written)
    again = restore(read["form"], read["homes"])
    assert again == value and hash(again) == hash(value)
    assert fingerprint(again) == fingerprint(value)
    assert str(again) == str(value)


def test_a_recipe_prints_as_the_python_that_makes_it() -> None:
    public = {name: getattr(workbench, name) for name in workbench.__all__}
    names = {**public, **{name: getattr(upge, name) for name in upge.__all__}}
    for value in RECIPES.values():
        assert eval(str(value), names) == value


def test_different_values_have_different_fingerprints() -> None:
    assert len({fingerprint(value) for value in VALUES.values()}) == len(VALUES)
    assert len(set(VALUES.values())) == len(VALUES)


def test_the_class_and_its_version_are_part_of_the_identity() -> None:
    assert Plain(1) != Twin(1)
    assert fingerprint(Plain(1)) != fingerprint(Twin(1))
    assert canonical(Second(1)) == {"Second@2": {"number": 1.0}}


SAME = [
    (Plain(1), Plain(1.0)),
    (Plain(-0.0), Plain(0.0)),
    (Plain(1, words=["a"]), Plain(1, words=("a",))),  # type: ignore[arg-type]
    (Plain(1, pair=(1, 2)), Plain(1, pair=(1, 2.0))),
    (Plain(1, mixed=2), Plain(1, mixed=2.0)),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_a_number_has_one_form(one: Plain, other: Plain) -> None:
    assert one == other and str(one) == str(other) and fingerprint(one) == fingerprint(other)


UNSTABLE = [lambda: 0, object(), {1, 2}, {"a": 1}, b"bytes", 1j, Path("here"), print, Plain]


@pytest.mark.parametrize("value", UNSTABLE, ids=lambda value: type(value).__name__)
def test_a_value_without_a_stable_form_is_refused(value: object) -> None:
    for held in (value, [value], (1, (value,))):
        with pytest.raises(TypeError, match="no stable form"):
            fingerprint(held)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_a_finite_number_has_no_fingerprint(value: float) -> None:
    with pytest.raises(ValueError):
        fingerprint(value)


MISTAKES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Plain(nan), TypeError, "Plain.number takes float, got nan"),
    (lambda: Plain("1"), TypeError, "without quotes"),  # type: ignore[arg-type]
    (lambda: Plain(True), TypeError, "takes float, got True"),
    (lambda: Plain(1, count=1.0), TypeError, "count takes int, got 1.0"),  # type: ignore[arg-type]
    (lambda: Plain(1, count=True), TypeError, "count takes int, got True"),
    (lambda: Plain(1, words="ab"), TypeError, "words takes"),  # type: ignore[arg-type]
    (lambda: Plain(1, words=("a", 1)), TypeError, "words takes"),  # type: ignore[arg-type]
    (lambda: Plain(1, pair=(1,)), TypeError, "pair takes"),  # type: ignore[arg-type]
    (lambda: Plain(1, maybe="x"), TypeError, "maybe takes int | None"),  # type: ignore[arg-type]
    (lambda: Plain(1, cuont=2), TypeError, "did you mean count?"),  # type: ignore[call-arg]
    (lambda: replace(Plain(1), numbr=2), TypeError, "did you mean number?"),
]


@pytest.mark.parametrize(("make", "error", "message"), MISTAKES, ids=[m for *_, m in MISTAKES])
def test_a_field_of_the_wrong_kind_is_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_restoring_says_what_changed_since() -> None:
    with pytest.raises(ValueError, match="no longer defines Gone"):
        restore({"Gone": {}}, {"Gone": "workbench.recipe"})
    with pytest.raises(ValueError, match="now version 1; the record has version 3"):
        restore({"Data@3": {"name": "x"}}, {"Data": "workbench.recipe"})
    with pytest.raises(TypeError, match="has no field 'size'"):
        restore({"Data": {"name": "x", "size": 3}}, {"Data": "workbench.recipe"})


def test_a_component_of_a_study_file_is_restored_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my_study.py"
    file.write_text(
        "from workbench.upge import Advantage, Estimator\n"
        "class Halved(Advantage):\n"
        "    by: float = 2.0\n"
        "value = Estimator(advantage=Halved(4))\n"
    )
    module = load_module(str(file))
    assert load_module(str(file)) is module
    homes = imports(module.value)
    assert homes["Halved"] == str(file) and homes["Estimator"] == "workbench.upge.estimator"
    assert restore(canonical(module.value), homes) == module.value


def test_a_study_file_that_is_missing_or_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study file"):
        load_module(str(tmp_path / "absent.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_module(str(broken))
    broken.write_text("answer = 42\n")
    assert load_module(str(broken)).answer == 42


def test_nearest_names_the_closest_or_lists_all() -> None:
    assert nearest("setps", ["steps", "start"]) == "did you mean steps?"
    assert nearest("zzz", ["steps", "start"]) == "choose one of: steps, start"


def _ranges(kind: Any) -> Iterator[tuple[type, Within]]:
    """Every range in a type, with the type of its numbers."""
    if get_origin(kind) is Annotated:
        number, *rules = get_args(kind)
        return ((number, rule) for rule in rules if isinstance(rule, Within))
    return chain.from_iterable(_ranges(inner) for inner in get_args(kind))


def test_what_a_range_proposes_is_within_it() -> None:
    kinds = [*subclasses(Component), Resources, Search, Mixture, Glimpses, Architecture]
    found = [
        (*each, field.default)
        for kind in kinds
        for field in fields(kind)
        for each in _ranges(get_type_hints(kind, include_extras=True)[field.name])
    ]
    assert len(found) > 70
    for number, rule, default in found:
        ends = [rule.at_least - 1, rule.above, rule.at_most + 1, rule.below]
        for beyond in (number(end) for end in ends if isfinite(end)):
            assert not rule.admits(beyond), rule
            proposed = rule.hint(beyond, default).rsplit(maxsplit=1)[1]
            assert rule.admits(number(proposed)) and str(number(proposed)) == proposed, rule


BOUNDS = [
    (
        Within(at_least=0, at_most=1, what="a share"),
        "a share from 0 to 1",
        1.7,
        "the nearest is 1.0",
    ),
    (Within(above=0, at_most=1), "above 0 and at most 1", 0.0, "such as 1.0"),
    (Within(above=0, such_as=2), "above 0", -3.0, "such as 2.0"),
    (Within(at_least=1), "at least 1", 0, "the nearest is 1"),
    (Within(at_least=0, below=1, such_as=0.5), "at least 0 and below 1", 1.0, "such as 0.5"),
]


@pytest.mark.parametrize(("rule", "text", "value", "hint"), BOUNDS, ids=[b[1] for b in BOUNDS])
def test_a_range_says_its_bounds_and_the_nearest(
    rule: Within, text: str, value: float, hint: str
) -> None:
    assert (str(rule), rule.admits(value), rule.hint(value, None)) == (text, False, hint)


def test_the_default_is_named_where_a_bound_is_itself_not_valid() -> None:
    assert Within(above=0).hint(0.0, 0.3) == "such as 0.3"
    assert Within(above=1, such_as=3).hint(0.0, 0.3) == "such as 3.0"


def test_subclasses_are_found_at_any_depth() -> None:
    assert WarmupCosine in subclasses(Schedule)
    assert {upge.Estimator, upge.Method} <= set(subclasses(Component))


def test_replacing_nothing_changes_nothing() -> None:
    for value in VALUES.values():
        assert replace(value) == value
    assert replace(Plain(1), count=3) == Plain(1, count=3)


def test_two_classes_of_one_name_in_a_value_are_refused() -> None:
    class Pair(Component):
        one: Component
        other: Component

    def elsewhere() -> Component:
        return type("Twin", (Component,), {"__module__": "json"})()

    class Twin(Component):
        pass

    assert imports(Pair(Twin(), Twin()))["Twin"] == __name__
    with pytest.raises(TypeError, match="two classes are named Twin"):
        imports(Pair(Twin(), elsewhere()))
