"""A study file with anything anywhere: it is planned, or refused in a sentence with its place."""

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import plan
from workbench.studyfile import Mistake, load
from workbench.validate import validate

STUDY = """
from workbench import Data, Evaluation, Optimizer, Recipe, Sampling, Study, Validation, grid, upge
base = Recipe("arithmetic-1m", Data("arithmetic", train=20), steps=4, questions=2, rollouts=2,
              sampling=Sampling(0.9, top_p=1.0, max_tokens=8), optimizer=Optimizer(0.001),
              validation=Validation(every=2, samples=1, problems=3))
gated = base.using(upge.hpt(gate=upge.Switch(at_most=0.5)), updates_per_batch=2)
cells = grid(upge.Estimator, mask=[upge.KeepAll(), upge.RatioClip(0.2, high=0.3)],
             denominator=[upge.OldPolicy(), upge.Unit()], likelihood=[upge.Shaped(0.1)])
later = base.using(upge.grpo()).start_from(base.using(upge.sft()), step=4)
study = Study("fuzzed", [gated, later, *(base.using(each) for each in cells)], seeds=range(2),
              evaluation=Evaluation(samples=4, suites=("chain", "words"), more=(("chain", 8),)))
"""
ARGUMENT = re.compile(r"(?<=[(\[=])[^=()\[\],]+(?:\(\))?(?=[,)\]])")  # whatever is given somewhere
PLACES = [found.span() for found in ARGUMENT.finditer(STUDY)]
ANYTHING = [
    "None", "True", "0", "-1", "3", "10_000", "0.5", "-0.0", "float('nan')", "float('inf')", "1j",
    "''", "'chain'", "'arithmetic'", "b'x'", "()", "[]", "{}", "{1: 2}", "[[]]", "object()", "int",
    "lambda: 1", "print", "range(3)", "base", "upge", "upge.grpo", "upge.grpo()", "upge.Switch",
    "upge.KeepAll()", "Sampling()", "Data", "nothing",
]  # fmt: skip
# Neither takes long: a world of a thousand problems is soon made, a larger number refused.
numbers = (
    st.integers(-5, 1000)
    | st.integers(min_value=1_000_000)
    | st.floats(allow_nan=False, allow_infinity=False)
)
likely = st.integers(1, 40) | st.floats(0, 1)
values = st.sampled_from(ANYTHING) | (likely | numbers | st.text(max_size=30)).map(repr)


def test_it_is_planned_or_refused_with_its_place(tmp_path: Path) -> None:
    assert len(PLACES) > 30
    ends: dict[bool, int] = {True: 0, False: 0}

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(PLACES), values)
    def put(place: tuple[int, int], value: str) -> None:
        text = STUDY[: place[0]] + value + STUDY[place[1] :]
        file = tmp_path / f"study_{sum(ends.values())}.py"
        file.write_text(text)
        ends[refused(file, tmp_path / "mlruns")] += 1

    put()
    assert min(ends.values()) > 20, ends


def refused(file: Path, root: Path) -> bool:
    """Whether a study file is refused; else it has been planned."""
    try:
        found = load(file)
        for variable in found.studies:
            found.checked(variable, validate)
            assert plan.jobs(found.studies[variable], root)
    except Mistake as mistake:
        assert re.match(rf"{re.escape(str(file))}(, line \d+:| )", str(mistake))
        return True
    return False
