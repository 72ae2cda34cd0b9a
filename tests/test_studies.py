"""Every study in studies/ builds its plan, and says what it asks."""

import ast
from pathlib import Path

import pytest

from analysis.load import runs as load
from analysis.output import Output
from workbench import Sampling, Search, Study, Validation, replace, upge
from workbench.identity import load_module
from workbench.plan import jobs, resolve
from workbench.records import run_of
from workbench.resources import Resources
from workbench.search import check
from workbench.study import differences
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.trials import Given, confirmed_arms, left_aside, trials
from workbench.validate import validate

STUDY = Path(__file__).parents[1] / "studies"
STUDIES = sorted(STUDY.glob("*.py"))


@pytest.fixture
def paper():
    return load_module(str(STUDY / "paper.py"))


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


@pytest.mark.parametrize("name", ["moments", "paper_learning_rates", "paper"])
def test_kept_records_are_those_of_the_studies_runs(name):
    """A run's directory is named after a hash of its whole recipe: a change of it loses them."""
    kept = STUDY / "records" / name.replace("_", "-")
    runs = [job.run for study in studies_of(STUDY / f"{name}.py") for job in jobs(study, kept)]
    found = {run.path for run in runs if run.finished}
    assert found == {path.parent for path in kept.glob("cells/*/*/result.json")}


def test_kept_records_of_the_gate_search_are_those_of_its_trials():
    search = load_module(str(STUDY / "gate_search.py")).gate_search
    kept = STUDY / "records" / "gate-search"
    found = trials(search, kept)
    assert [len(each.scores) for each in found] == [3] * search.trials
    assert left_aside(search, kept) == 0
    fresh = search.confirmation(confirmed_arms(search, found))
    assert all(job.done for job in jobs(fresh, kept))


def test_the_gate_is_searched_for_hard_and_soft_with_the_weight_of_imitation():
    propose = load_module(str(STUDY / "gate_search.py")).propose
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
    (study,) = studies_of(STUDY / "components.py")
    assert len(study.recipes) == 3 * 3 * 2 * 2 + 3  # GRPO is a cell of the grid
    methods = [recipe.method for recipe in study.recipes.values()]
    for named in (upge.grpo(), upge.sft(), upge.luffy(), upge.hpt()):
        assert named in methods


def tiny(recipe, **changes):
    return replace(
        recipe,
        steps=2,
        questions=4,
        sampling=Sampling(max_tokens=64),
        validation=Validation(every=2, samples=1, problems=5),
        **changes,
    )


def trained(recipe, root, seed=0):
    run = run_of(root, recipe, seed)
    run.create(recipe, seed)
    train(open_trainer(run, Resources()), run)
    run.finish({"steps": recipe.steps})
    return run


@pytest.mark.parametrize("label", ["grpo", "RatioClip(0.2) · Unit · GroupCentered · Shaped(0.1)"])
def test_cells_of_the_component_grid_train(label, tmp_path):
    (study,) = studies_of(STUDY / "components.py")
    run = trained(tiny(study.recipes[label]), tmp_path)
    assert [row["step"] for row in run.rows()] == [0, 1, 2]
    assert run.rows()[-1]["optim/gradient_norm"] >= 0


# --- the paper ------------------------------------------------------------------------------------


def test_arms_of_the_paper_differ_in_method_alone_and_have_equal_budgets(paper):
    for label, recipe in paper.arms.items():
        changed = {key.partition(".")[0] for key in differences(paper.arms["GRPO"], recipe)}
        own = {"SFT->GRPO": {"steps", "start"}, "LUFFY": {"rollouts"}}.get(label, set())
        assert changed <= {"method", "optimizer", *own}, label
    assert paper.arms["LUFFY"].rollouts + 1 == paper.arms["GRPO"].rollouts
    second = paper.arms["SFT->GRPO"]
    assert second.start.recipe == paper.arms["SFT"]
    assert second.start.step + second.steps == paper.STEPS


def test_the_paper_declares_each_of_its_tables_and_figures(paper):
    names = {
        each.name
        for value in vars(paper).values()
        for each in (value if isinstance(value, tuple) else (value,))
        if isinstance(each, Output)
    }
    tables = {f"table-{number}" for number in (1, 2, 4, 5, 6)}
    assert tables | {f"figure-{number}" for number in range(2, 9)} <= names


@pytest.mark.parametrize("label", ["OFF/ON", "Mix/ON", "HPT, gamma 2/8", "SRFT"])
def test_cells_of_the_paper_train(paper, label, tmp_path):
    assert trained(tiny(paper.arms[label]), tmp_path).rows()[-1]["optim/gradient_norm"] >= 0


def test_a_learning_rate_is_chosen_by_validation_and_missing_runs_are_said(tmp_path):
    module = load_module(str(STUDY / "paper_learning_rates.py"))
    few = [label for label in module.search.recipes if label.startswith("SFT at")]
    arms = {each: tiny(module.search.recipes[each]) for each in few}
    study = Study("few", arms, [module.SEED], module.search.evaluation)
    runs = [trained(arms[each], tmp_path, module.SEED) for each in few[:2]]
    sheet = module.Choice("choice", study).sheet(load(study, tmp_path))
    cells = sheet.rows[0][1:]
    scores = [100 * run.rows()[-1]["validation/pass_at_1"] for run in runs]
    missing = len(few) - len(runs)
    assert [cell.value for cell in cells] == [*scores, *[None] * missing]
    best = [score == max(scores) for score in scores]
    assert [cell.best for cell in cells] == [*best, *[False] * missing]
    assert any("SFT at 0.001" in note for note in sheet.notes)
