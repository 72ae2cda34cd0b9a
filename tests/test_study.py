"""Recipes, grids and studies: what they declare, how cells are labelled, what is refused."""

from collections.abc import Callable
from math import cos, pi

import pytest

from analysis import PassAtK
from workbench import (
    Constant,
    Data,
    Evaluation,
    Recipe,
    Resources,
    Sampling,
    Study,
    WarmupCosine,
    grid,
    upge,
)
from workbench.recipe import Optimizer, Start, Validation
from workbench.study import describe, differences, flatten, labelled

BASE = Recipe("arithmetic-1m", Data("arithmetic"))
SFT, GRPO = BASE.using(upge.sft()), BASE.using(upge.grpo())


# --- grid -----------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    values = grid(Sampling, temperature=[0.6, 1.0], max_tokens=[8, 16, 32])
    pairs = [(value.temperature, value.max_tokens) for value in values]
    assert pairs == [(0.6, 8), (0.6, 16), (0.6, 32), (1.0, 8), (1.0, 16), (1.0, 32)]


def test_a_grid_takes_any_iterable_and_any_function() -> None:
    assert len(grid(upge.hpt, gate=(upge.Switch(k / 8) for k in range(3)))) == 3
    assert grid(BASE.using, method=[upge.sft(), None]) == [SFT, BASE]


# --- studies --------------------------------------------------------------------------------------


def test_cells_run_every_arm_under_a_seed_before_the_next_seed() -> None:
    study = Study("two", {"SFT": SFT, "GRPO": GRPO}, seeds=range(2))
    cells = [(cell.label, cell.seed) for cell in study.cells]
    assert cells == [("SFT", 0), ("GRPO", 0), ("SFT", 1), ("GRPO", 1)]
    assert [cell.recipe for cell in study.cells[:2]] == [SFT, GRPO]
    assert study.recipes == {"SFT": SFT, "GRPO": GRPO}


def test_arms_may_be_recipes_pairs_or_both() -> None:
    study = Study("mixed", [BASE, SFT, ("SFT->GRPO", GRPO.start_from(SFT))])
    assert list(study.recipes) == ["base", "sft", "SFT->GRPO"]
    assert Study("generated", (each for each in (SFT, GRPO))).recipes == {"sft": SFT, "grpo": GRPO}


def test_a_bare_recipe_that_is_there_already_is_listed_once() -> None:
    cells = grid(upge.Estimator, mask=[upge.KeepAll(), upge.RatioClip(0.2)])
    arms = [BASE.using(m) for m in [*cells, upge.grpo(), cells[0]]] + [GRPO]
    assert list(labelled(arms).values()) == [*(BASE.using(cell) for cell in cells), GRPO]


def test_different_recipes_of_one_label_are_told_apart() -> None:
    longer = BASE.using(upge.sft(), steps=99)
    labels = list(labelled([SFT, longer]))
    assert labels[0] == "sft" and labels[1].startswith("sft ") and len(set(labels)) == 2


REFUSED: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("no axis", lambda: grid(Sampling), ValueError, "needs at least one axis"),
    (
        "an empty axis",
        lambda: grid(Sampling, temperature=[]),
        ValueError,
        "axis 'temperature' of the grid is empty",
    ),
    (
        "a million combinations",
        lambda: grid(Sampling, temperature=range(1000), max_tokens=range(1000)),
        ValueError,
        "1,000,000 combinations (1,000 temperature x 1,000 max_tokens), more than 10,000",
    ),
    (
        "a million runs",
        lambda: Study("s", [SFT], seeds=range(10**6)),
        ValueError,
        "study 's' has 1,000,000 combinations (1 arms x 1,000,000 seeds), more than 10,000",
    ),
    (
        "an unknown axis",
        lambda: grid(upge.Estimator, masks=[upge.KeepAll()]),
        TypeError,
        "no axis 'masks'; did you mean mask?",
    ),
    (
        "a class on an axis",
        lambda: grid(upge.Estimator, mask=[upge.RatioClip]),
        TypeError,
        "write RatioClip(...)",
    ),
    ("no arm", lambda: Study("s", []), ValueError, "at least one arm"),
    ("no seed", lambda: Study("s", [SFT], seeds=[]), ValueError, "has no seeds"),
    ("a seed twice", lambda: Study("s", [SFT], seeds=[1, 1]), ValueError, "names a seed twice"),
    ("a negative seed", lambda: Study("s", [SFT], seeds=[-1]), ValueError, "got -1"),
    ("a seed of 1.5", lambda: Study("s", [SFT], seeds=[1.5]), ValueError, "got 1.5"),  # type: ignore[list-item]
    ("a seed of True", lambda: Study("s", [SFT], seeds=[True]), ValueError, "got True"),
    ("a name with spaces", lambda: Study("My Study", [SFT]), ValueError, "'my-study'"),
    ("no name", lambda: Study("", [SFT]), ValueError, "lower-case"),
    (
        "a label twice",
        lambda: Study("s", [("a", SFT), ("a", GRPO)]),
        ValueError,
        "two arms have the label 'a'; labels tell runs apart, so call one 'a 2'",
    ),
    (
        "a method as an arm",
        lambda: Study("s", [upge.sft()]),  # type: ignore[list-item]
        TypeError,
        "write base.using(method)",
    ),
    (
        "a named arm that is no recipe",
        lambda: Study("s", {"a": 3}),  # type: ignore[dict-item]
        TypeError,
        "arm 'a' is 3, not a Recipe",
    ),
    ("a method by name", lambda: BASE.using("grpo"), TypeError, "write upge.grpo()"),  # type: ignore[arg-type]
    ("a function", lambda: BASE.using(upge.grpo), TypeError, "call it: upge.grpo()"),  # type: ignore[arg-type]
    ("a gate", lambda: BASE.using(upge.Switch(0)), TypeError, "Recipe.method takes"),  # type: ignore[arg-type]
    ("an unknown field", lambda: BASE.using(None, stpes=3), TypeError, "did you mean steps?"),
    ("no step", lambda: BASE.using(None, steps=0), ValueError, "Recipe.steps must be at least 1"),
    ("a dtype", lambda: BASE.using(None, dtype="float16"), ValueError, "bfloat16"),
    (
        "more updates than questions",
        lambda: BASE.using(None, questions=4, updates_per_batch=5),
        ValueError,
        "of whole questions, from 1 to 4, got 5; the nearest is 4",
    ),
    (
        "too few questions",
        lambda: BASE.using(None, data=Data("arithmetic", train=3)),
        ValueError,
        "use at most questions=3",
    ),
    (
        "no training data",
        lambda: Data("arithmetic", train=0),
        ValueError,
        "from 1 to 100000 or None, got 0; the nearest is 1",
    ),
    ("an engine", lambda: Sampling(engine="vlm"), ValueError, "'vlm'; did you mean vllm"),
    ("a nucleus", lambda: Sampling(1.0, 0.9), ValueError, "rollouts of a nucleus are not"),
    ("a nucleus of vLLM", lambda: Sampling(1.0, 0.9, engine="vllm"), ValueError, "use top_p=1.0"),
    ("no heat", lambda: Sampling(temperature=0), ValueError, "temperature must be above 0"),
    ("no mass", lambda: Sampling(top_p=0), ValueError, "top_p must be"),
    (
        "a decay",
        lambda: Optimizer(betas=(0.9, 1.0)),
        ValueError,
        "a decay at least 0 and below 1, got 1.0 in (0.9, 1.0); such as 0.9",
    ),
    ("one decay", lambda: Optimizer(betas=(0.9,)), TypeError, "Optimizer.betas takes"),  # type: ignore[arg-type]
    ("no norm", lambda: Optimizer(max_norm=0), ValueError, "max_norm must be above 0"),
    ("never validated", lambda: Validation(every=0), ValueError, "every must be at least 1"),
    ("no sample", lambda: Evaluation(samples=0), ValueError, "samples must be at least 1"),
    (
        "start at 0",
        lambda: GRPO.start_from(SFT, step=0),
        ValueError,
        "must be from 1 to 40, got 0; the nearest is 1",
    ),
    (
        "start too late",
        lambda: GRPO.start_from(SFT, step=41),
        ValueError,
        "from 1 to 40, got 41; the nearest is 40",
    ),
    (
        "a number as a string",
        lambda: Resources(threads="2"),  # type: ignore[arg-type]
        TypeError,
        "Resources.threads takes int, got '2' (a string); write the number without quotes",
    ),
    (
        "a number of seeds",
        lambda: Study("s", [SFT], seeds=3),  # type: ignore[arg-type]
        TypeError,
        "Study.seeds takes Iterable[int], got 3 (int); write several in a list, such as [3]",
    ),
    (
        "a value on an axis",
        lambda: grid(upge.Estimator, mask=upge.KeepAll()),  # type: ignore[arg-type]
        TypeError,
        "axis 'mask' of the grid is KeepAll(), not a list; write mask=[KeepAll()]",
    ),
    (
        "a k alone",
        lambda: PassAtK("p", Study("s", [SFT]), k=8),  # type: ignore[arg-type]
        TypeError,
        "PassAtK.k takes tuple[int, ...], got 8 (int); write several in a list, such as [8]",
    ),
    (
        "resources by number",
        lambda: Study("s", [SFT], resources=2),  # type: ignore[arg-type]
        TypeError,
        "Study.resources takes Resources, got 2 (int); choose one of: Resources",
    ),
    (
        "an evaluation by number",
        lambda: Study("s", [SFT], evaluation=16),  # type: ignore[arg-type]
        TypeError,
        "Study.evaluation takes Evaluation, got 16 (int); choose one of: Evaluation",
    ),
    (
        "a mask for a method",
        lambda: BASE.using(upge.RatioClip(0.2)),  # type: ignore[arg-type]
        TypeError,
        "Recipe.method takes Objective | None, got RatioClip(0.2) (RatioClip); ",
    ),
    (
        "a start that trains nothing",
        lambda: GRPO.start_from(BASE),
        ValueError,
        "Start.recipe has no method, so it trains nothing to start from; leave the start out",
    ),
    (
        "no token",
        lambda: Evaluation(max_tokens=0),
        ValueError,
        "Evaluation.max_tokens must be at least 1",
    ),
    (
        "a value loss without returns",
        lambda: upge.Method(upge.Estimator(), auxiliary=(upge.ValueLoss(),)),
        ValueError,
        "ValueLoss(), but no estimator has the returns that it fits; give one advantage=upge.GAE()",
    ),
    (
        "an unknown suite",
        lambda: Evaluation(suites=("hrad",)).measurements(("easy", "hard"), SFT),
        ValueError,
        "did you mean hard?",
    ),
]


@pytest.mark.parametrize(("what", "make", "error", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_mistake_is_named_with_its_rule(
    what: str, make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


# --- recipes --------------------------------------------------------------------------------------


def test_using_takes_a_bare_estimator_for_rollouts_only_and_changes_fields() -> None:
    estimator = upge.Estimator(upge.RatioClip(0.2))
    assert BASE.using(estimator) == BASE.using(upge.Method(rollouts=estimator))
    assert BASE.using(upge.sft(), steps=3).steps == 3
    assert GRPO.using(None) == BASE


def test_start_from_takes_the_last_checkpoint_unless_told() -> None:
    assert GRPO.start_from(SFT).start == Start(SFT, 40)
    assert GRPO.start_from(SFT, step=7).start == Start(SFT, 7)
    assert GRPO.start_from(SFT) != GRPO


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (WarmupCosine(2), [0.5, 1, 1, 0.5 + 0.5 * cos(pi / 8), 0.5]),
        (WarmupCosine(0, floor=0.2), [1] + [0.6 + 0.4 * cos(pi * k / 10) for k in (1, 2, 3, 6)]),
    ],
    ids=str,
)
def test_schedules(schedule: Constant, factors: list[float]) -> None:
    assert [schedule(step, 10) for step in (0, 1, 2, 3, 6)] == pytest.approx(factors)


def test_a_warm_schedule_ends_at_its_floor() -> None:
    assert WarmupCosine(2, floor=0.1)(10, 10) == pytest.approx(0.1)
    assert WarmupCosine(2, floor=0.1)(99, 10) == pytest.approx(0.1)


def test_an_evaluation_measures_each_suite_with_its_samples() -> None:
    evaluation = Evaluation(8, more=(("hard", 64),))
    found = evaluation.measurements(("easy", "hard"), SFT)
    assert [(m.suite, m.samples, m.max_tokens) for m in found] == [
        ("easy", 8, 128),
        ("hard", 64, 128),
    ]
    chosen = Evaluation(suites=("hard",), max_tokens=9).measurements(("easy", "hard"), SFT)
    assert [(m.suite, m.max_tokens) for m in chosen] == [("hard", 9)]


# --- what a reader sees ---------------------------------------------------------------------------


def test_describe_names_the_method_or_the_base() -> None:
    assert describe(BASE) == "base"
    assert [describe(BASE.using(make())) for make in upge.NAMED.values()] == list(upge.NAMED)


def test_flatten_shows_every_field_whole_and_in_parts() -> None:
    flat = flatten(GRPO)
    assert flat["method.rollouts.mask"] == "RatioClip(0.2)"
    assert flat["method.rollouts.mask.low"] == "0.2"
    assert flat["method.demonstrations"] == "None"
    assert flat["sampling.temperature"] == "1.0"
    assert flat["model"] == "arithmetic-1m"


def test_differences_name_the_fields_that_differ() -> None:
    assert differences(GRPO, GRPO) == {}
    assert differences(GRPO, BASE.using(upge.grpo(), steps=9)) == {"steps": ("40", "9")}
    found = differences(upge.hpt(), upge.hpt(upge.SoftSwitch()))
    assert found["gate"] == ("Switch(0.0)", "SoftSwitch()")
    assert found["gate.at_most"] == ("0.0", "(absent)")
    assert found["gate.slope"] == ("(absent)", "10.0")
