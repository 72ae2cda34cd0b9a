"""A study file with anything anywhere: it is planned, or refused in a sentence with its place."""

import random
import re
from pathlib import Path

import pytest

from workbench import plan
from workbench.studyfile import Mistake, load

STUDY = """
from workbench import Data, Evaluation, Optimizer, Recipe, Sampling, Study, Validation, grid, upge
base = Recipe("arithmetic-1m", Data("arithmetic", train=20), steps=4, questions=2, rollouts=2,
              sampling=Sampling(1.0, top_p=0.9, max_tokens=8), optimizer=Optimizer(0.001),
              validation=Validation(every=2, samples=1, problems=3))
gated = base.using(upge.hpt(gate=upge.Switch(at_most=0.5)), updates_per_batch=2)
cells = grid(upge.Estimator, mask=[upge.KeepAll(), upge.RatioClip(0.2, high=0.3)],
             denominator=[upge.OldPolicy(), upge.Unit()], likelihood=[upge.Shaped(0.1)])
later = base.using(upge.grpo()).start_from(base.using(upge.sft()), step=4)
study = Study("fuzzed", [gated, later, *(base.using(each) for each in cells)], seeds=range(2),
              evaluation=Evaluation(samples=4, suites=("chain", "words"), more=(("chain", 8),)))
"""
ARGUMENT = re.compile(r"(?<=[(\[=])[^=()\[\],]+(?:\(\))?(?=[,)\]])")  # whatever is given somewhere
ANYTHING = [
    "None", "True", "0", "-1", "3", "10_000", "0.5", "-0.0", "float('nan')", "float('inf')", "1j",
    "''", "'chain'", "'arithmetic'", "b'x'", "()", "[]", "{}", "{1: 2}", "[[]]", "object()", "int",
    "lambda: 1", "print", "range(3)", "base", "upge", "upge.grpo", "upge.grpo()", "upge.Switch",
    "upge.KeepAll()", "Sampling()", "Data", "nothing",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_it_is_planned_or_refused_with_its_place(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    places = [found.span() for found in ARGUMENT.finditer(STUDY)]
    assert len(places) > 30
    refused = 0
    for number in range(40):
        file = tmp_path / f"study_{number}.py"
        start, end = chance.choice(places)
        text = STUDY[:start] + chance.choice(ANYTHING) + STUDY[end:]
        file.write_text(text)
        try:
            found = load(file)
            for variable in found.studies:
                found.checked(variable, plan.validate)
                assert plan.jobs(found.studies[variable], tmp_path / "mlruns")
        except Mistake as mistake:
            assert re.match(rf"{re.escape(str(file))}(, line \d+:| )", str(mistake)), text
            refused += 1
    assert refused > 10
