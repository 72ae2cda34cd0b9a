"""The paper's runs on models of its own size: planned anywhere, and dry-run with all but the scale.

A dry run has two random layers of the same architecture, a tokenizer of the same kind, the same
columns, prompts and suites, six steps, and short answers. Every arm is by the transformers engine
in one process, and HPT of every file also by vLLM; teams are in training/test_team.py.
"""

import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis import Table, report, reported
from analysis.exclusive import REPORTED as EXCLUSIVE_SOLVES
from analysis.load import suites_of
from analysis.output import Tabular
from analysis.published import TABLES, accuracy_of
from workbench import (
    Constant,
    Data,
    Model,
    Recipe,
    Sampling,
    Study,
    Validation,
    presets,
    replace,
    upge,
)
from workbench.cli_report import outputs
from workbench.doctor import study_checks
from workbench.identity import load_module
from workbench.plan import measurements
from workbench.problems import Problem, Verdict
from workbench.records import run_of
from workbench.resources import Lacking, Resources
from workbench.schema import AVERAGE, AVERAGE_OOD
from workbench.study import differences
from workbench.studyfile import StudyFile
from workbench.training.evaluation import measure
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.policy import configured, load_policy, reading_settings
from workbench.training.sequences import Sequence
from workbench.validate import validate

FOLDER = Path(__file__).parents[1] / "studies" / "large"
FILES = sorted(FOLDER.glob("*.py"))
STEPS, TOKENS = 6, 16
BY_VLLM = Sampling(engine="vllm")


def module_of(name: str):
    return load_module(str(FOLDER / f"{name}.py"))


def studies_of(name: str) -> dict[str, Study]:
    return {v.name: v for v in vars(module_of(name)).values() if isinstance(v, Study)}


# --- what they are --------------------------------------------------------------------------------


def test_the_files_differ_in_model_data_and_gate_alone() -> None:
    small, large, llama = (module_of(name).arms for name in ("qwen_1_5b", "qwen_7b", "llama_8b"))
    for label, recipe in small.items():
        changed = {key.partition(".")[0] for key in differences(recipe, large[label])}
        assert changed == ({"model", "start"} if label == "SFT->GRPO" else {"model"})
        other = {key.partition(".")[0] for key in differences(recipe, llama[label])}
        assert other <= {"model", "data", "start", "method"}
        assert "method" not in other or label == "HPT"
    assert llama["HPT"].method == upge.hpt(upge.Switch(2 / 8))


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_arm_has_the_papers_setting(name: str) -> None:
    for label, recipe in module_of(name).arms.items():
        assert (recipe.steps, recipe.questions) == (500, 128)
        assert recipe.rollouts == (7 if label == "LUFFY" else 8)
        assert (recipe.sampling.temperature, recipe.sampling.max_tokens) == (1.0, 8192)
        adamw = recipe.optimizer
        assert (adamw.learning_rate, adamw.weight_decay) == (5e-6, 0.01)
        assert (adamw.betas, adamw.schedule) == ((0.9, 0.999), Constant())
        assert recipe.dtype == "bfloat16"


def test_evaluation_is_the_papers() -> None:
    (main, seen) = (studies_of("qwen_7b")[name] for name in ("qwen-7b", "qwen-7b-pass-at-k"))
    found = {m.suite: m for m in measurements(main, main.recipes["HPT"])}
    many = {suite for suite, m in found.items() if m.samples == 32}
    assert many == {"aime24", "aime25", "amc23"}
    assert {m.samples for suite, m in found.items() if suite not in many} == {1}
    assert {(m.temperature, m.top_p, m.max_tokens) for m in found.values()} == {(0.6, 0.95, 8192)}
    assert len(found) == 8
    large_k = measurements(seen, seen.recipes["HPT"])
    assert {(m.suite, m.samples) for m in large_k} == {(suite, 2048) for suite in many}
    assert seen.recipes == main.recipes  # the same checkpoints: nothing is trained for Pass@k


def test_pass_at_k_is_drawn_up_to_1024() -> None:
    for name in ("qwen_1_5b", "qwen_7b"):
        figure = module_of(name).figure_2
        assert [figure.ks(m)[-1] for m in figure.study.evaluation.suites] == [1024, 1024, 1024]


def test_the_rollouts_of_figures_3_and_4_are_of_255_problems_met_50_times() -> None:
    module = module_of("qwen_7b")
    assert module.figure_3.study is module.figure_4.study is module.seen
    for recipe in module.seen.recipes.values():
        assert (recipe.data.train, recipe.questions, recipe.steps) == (255, 85, 150)
        assert recipe.questions * recipe.steps == 50 * recipe.data.train


@pytest.mark.parametrize("table", [name for name in TABLES if name != EXCLUSIVE_SOLVES])
def test_every_column_that_the_paper_reports_is_a_suite_or_an_average(table: str) -> None:
    main = studies_of("qwen_7b")["qwen-7b"]
    methods = reported(table).iloc[:, 0]
    columns = {column for method in methods for column in accuracy_of(table, str(method))}
    assert len(columns) == len(reported(table).columns) - 1
    assert columns <= {*suites_of(main).names, AVERAGE, AVERAGE_OOD}


def test_qwen_is_lengthened_and_llama_left_alone() -> None:
    qwen = module_of("qwen_7b").arms["HPT"].model
    assert str(qwen) == "Model('Qwen/Qwen2.5-Math-7B', rope_theta=40000.0, positions=16384)"
    assert module_of("llama_8b").arms["HPT"].base == Model("meta-llama/Llama-3.1-8B")


# --- planned where nothing of it is ---------------------------------------------------------------


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_plan_needs_no_network_and_names_what_is_not_here(name: str, tmp_path: Path) -> None:
    empty = {"HF_HOME": str(tmp_path / "hub"), "COLUMNS": "300"}
    command = [sys.executable, "-m", "workbench", "plan", str(FOLDER / f"{name}.py")]
    done = subprocess.run(
        [*command, "--on", "h100-80gb", "--root", str(tmp_path)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **empty},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lacking = [ln for ln in done.stdout.splitlines() if ln.startswith("not here, so not checked")]
    wanted = [module_of(name).arms["HPT"].base.name, "Elliott/Openr1-Math-46k-8192", "ai2_arc"]
    assert all(any(each in line for line in lacking) for each in (*wanted, "Idavidrein/gpqa"))
    assert "GiB: fits" in done.stdout
    assert "GPU hours at most" in done.stdout


# --- dry runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """Makes the recipes of a study small: its model, tables, steps, tokens, luck, and no more."""
    torch.manual_seed(0)
    here = str(Path(tiny_models.__file__).parent)  # where the graders' processes find the luck
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path_factory.mktemp("tiny")
    models = {
        "qwen": tiny_models.qwen(folder / "qwen"),
        "llama": tiny_models.llama(folder / "llama"),
    }

    def shrunk(recipe: Recipe, engine: str = "transformers") -> Recipe:
        kind = "qwen" if "Qwen" in recipe.base.name else "llama"
        model = replace(recipe.base, name=models[kind])
        start = recipe.start
        if start is not None:
            start = replace(start, recipe=shrunk(start.recipe), step=STEPS)
        return replace(
            recipe,
            model=model if isinstance(recipe.model, Model) else model.name,
            data=tiny_models.local(recipe.data, folder / recipe.data.name),
            steps=STEPS,
            questions=4,
            sampling=replace(recipe.sampling, engine=engine, max_tokens=TOKENS),
            validation=Validation(every=STEPS, samples=1, problems=2),
            start=start,
        )

    yield shrunk
    monkeypatch.undo()


def ran(study: Study, recipe: Recipe, root: Path) -> None:
    """Trains one arm, and what it starts from, and measures it on one problem of each suite."""
    if recipe.start is not None:
        ran(study, recipe.start.recipe, root)
    run = run_of(root, recipe, 0)
    if not run.finished:
        run.create(recipe, 0)
    trainer = open_trainer(run, Resources(recompute=True))
    if recipe.method is not None and not run.finished:
        train(trainer, run)
        assert len(run.rows()) == STEPS + 1
        assert run.rows()[-1]["optim/nonfinite"] == 0
    for each in measurements(study, recipe):
        measure(run, trainer.policy, trainer.engine, trainer.data, each)
    run.finish({"steps": trainer.progress.step})


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_arm_trains_and_is_measured_and_all_is_drawn_but_for_the_scale(
    name, tiny, tmp_path
) -> None:
    module = module_of(name)
    file = StudyFile(Path(f"{name}.py"), module, {})
    for study in [each for each in vars(module).values() if isinstance(each, Study)]:
        evaluation = replace(study.evaluation, problems=1, max_tokens=8)
        small = Study(
            study.name, {k: tiny(v) for k, v in study.recipes.items()}, evaluation=evaluation
        )
        for label, recipe in small.recipes.items():
            if "pass-at-k" not in study.name or label in ("Base", "HPT"):  # 2,048 answers each
                ran(small, recipe, tmp_path)
        declared = [dataclasses.replace(each, study=small) for each in outputs(file, study)]
        assert declared
        found = report(small, declared, tmp_path)
        written = {path.name for path in found.paths}
        for each in declared:
            kinds = ("md", "tex", "csv") if isinstance(each, Tabular) else ("pdf", "svg", "png")
            assert {f"{each.name}.{kind}" for kind in kinds} <= written, found.notes
            if isinstance(each, Table):
                rows = (found.folder / f"{each.name}.csv").read_text().splitlines()[1:]
                assert len(rows) == len(each.arms or small.recipes)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make install-vllm")
@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_hpt_trains_and_is_measured_by_vllm_as_it_asks(name, tiny, tmp_path) -> None:
    module = module_of(name)
    study = next(each for each in vars(module).values() if isinstance(each, Study))
    recipe = module.arms["HPT"]
    assert recipe.sampling.engine == "vllm"
    evaluation = replace(study.evaluation, problems=1, max_tokens=8)
    small = Study(study.name, {"HPT": tiny(recipe, "vllm")}, evaluation=evaluation)
    ran(small, small.recipes["HPT"], tmp_path)
    rows = run_of(tmp_path, small.recipes["HPT"], 0).rows()[1:]
    assert all(0 < row["ratio/engine_mismatch"] < 1 for row in rows)


# --- a model with settings of its own -------------------------------------------------------------


def test_settings_of_a_model_reach_its_configuration_and_its_frequencies(tmp_path) -> None:
    folder = tiny_models.qwen(tmp_path)
    model = presets.long_qwen(folder)
    config = configured(folder, model)
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (4e4, 16384)
    assert configured(folder).rope_parameters["rope_theta"] == 1e4
    policy = load_policy(folder, torch.device("cpu"), "float32", 1.0, values=False, base=model)
    found = policy.model.model.rotary_emb.inv_freq  # head width 32: theta^(-2j/32)
    torch.testing.assert_close(found, 40_000.0 ** (-torch.arange(16) / 16))
    assert reading_settings(policy)["max_position_embeddings"] == 16_384


def test_settings_of_a_rotary_embedding_need_one(tmp_path) -> None:
    GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"rotary embedding, which model .* does not have"):
        configured(str(tmp_path), Model(str(tmp_path), positions=64))


def test_the_policy_that_learns_is_the_one_that_samples_without_dropout(tmp_path) -> None:
    folder = tiny_models.qwen(tmp_path)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=400)
    assert config.resid_pdrop > 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    policy = load_policy(folder, torch.device("cpu"), "float32", 1.0, values=False)
    asked = Problem("one", "1+1", "2", level=1)
    layout = policy.lay_out([Sequence(asked, 0, (1, 2, 3), (4, 5, 6), "2", Verdict.CORRECT)])
    learned = policy.score(layout).logprobs
    policy.model.eval()
    torch.testing.assert_close(learned, policy.score(layout).logprobs, rtol=0, atol=0)


@pytest.mark.parametrize("fields", [{"rope_theta": 0.0}, {"positions": 0}], ids=str)
def test_a_setting_outside_its_rule_is_refused(fields) -> None:
    with pytest.raises(ValueError, match="Model"):
        Model("arithmetic-1m", **fields)


def test_positions_of_a_model_are_the_limit_of_its_answers() -> None:
    recipe = Recipe(Model("arithmetic-1m", positions=100), Data("arithmetic"))
    long = replace(recipe, sampling=Sampling(max_tokens=76))
    validate(Study("short", [replace(recipe, sampling=Sampling(max_tokens=75))]))
    with pytest.raises(ValueError, match="reads 100 tokens"):
        validate(Study("long", [long]))


def test_what_a_machine_lacks_is_an_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    study = Study("vllm", [Recipe("arithmetic-1m", Data("arithmetic"), sampling=BY_VLLM)])
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is here")
    with pytest.raises(Lacking, match="not installed"):
        validate(study)
    lacking: list[str] = []
    validate(study, lacking)
    assert len(lacking) == 1
    file = StudyFile(Path("x.py"), sys, {"s": study})
    assert not all(fine for fine, _ in study_checks(file, tmp_path))


def test_recomputed_layers_give_the_same_gradient(tmp_path) -> None:
    recipe = Recipe(
        "arithmetic-1m",
        Data("arithmetic", train=20),
        upge.sft(),
        steps=1,
        questions=4,
        validation=Validation(samples=1, problems=1),
    )
    losses, gradients = [], []
    for recompute in (False, True):
        run = run_of(tmp_path / str(recompute), recipe, 0)
        run.create(recipe, 0)
        trainer = open_trainer(run, Resources(recompute=recompute))
        assert trainer.policy.model.is_gradient_checkpointing is recompute
        train(trainer, run)
        losses.append(run.rows()[-1]["loss/total"])
        gradients.append(run.rows()[-1]["optim/gradient_norm"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6)
