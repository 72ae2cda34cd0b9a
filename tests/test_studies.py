"""Every study in studies/ builds its plan, and says what it asks."""

import ast
from pathlib import Path

import pytest

from workbench import Sampling, Search, Study, Validation, replace, upge
from workbench.identity import load_module
from workbench.plan import resolve, validate
from workbench.records import run_of
from workbench.resources import Resources
from workbench.search import check
from workbench.training.loop import train
from workbench.training.trainer import open_trainer
from workbench.trials import Given

STUDIES = sorted(Path(__file__).parents[1].glob("studies/*.py"))


def studies_of(path):
    return [value for value in vars(load_module(str(path))).values() if isinstance(value, Study)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_plans_and_is_valid(path, tmp_path):
    for study in studies_of(path):
        validate(study)
        assert len(resolve(study, tmp_path)) >= len(study.cells)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_search_is_valid(path):
    for value in vars(load_module(str(path))).values():
        if isinstance(value, Search):
            check(value)


def test_the_gate_is_searched_for_hard_and_soft_with_the_weight_of_imitation():
    propose = load_module(str(Path(__file__).parents[1] / "studies" / "gate_search.py")).propose
    hard = propose(Given({"gate": "switch", "at_most": 0.25, "sft_coefficient": 0.3}))
    soft = propose(Given({"gate": "soft", "centre": 0.5, "slope": 8.0, "sft_coefficient": 1.0}))
    assert hard.method.gate == upge.Switch(0.25)
    assert soft.method.gate == upge.SoftSwitch(0.5, 8.0)
    assert hard.method.demonstrations[0].coefficient == 0.3


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_opens_with_its_question(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    assert "?" in docstring.split("\n\n")[0]


def test_the_component_grid_has_named_methods_among_its_cells():
    (study,) = studies_of(Path(__file__).parents[1] / "studies" / "components.py")
    assert len(study.recipes) == 3 * 3 * 2 * 2 + 3  # GRPO is a cell of the grid
    methods = [recipe.method for recipe in study.recipes.values()]
    for named in (upge.grpo(), upge.sft(), upge.luffy(), upge.hpt()):
        assert named in methods


@pytest.mark.parametrize("label", ["grpo", "RatioClip(0.2) · Unit · GroupCentered · Shaped(0.1)"])
def test_cells_of_the_component_grid_train(label, tmp_path):
    (study,) = studies_of(Path(__file__).parents[1] / "studies" / "components.py")
    recipe = replace(
        study.recipes[label],
        steps=2,
        questions=4,
        sampling=Sampling(max_tokens=64),
        validation=Validation(every=2, samples=1, problems=5),
    )
    run = run_of(tmp_path, recipe, 0)
    run.create(recipe, 0)
    train(open_trainer(run, Resources()), run)
    assert [row["step"] for row in run.rows()] == [0, 1, 2]
    assert run.rows()[-1]["optim/gradient_norm"] >= 0
