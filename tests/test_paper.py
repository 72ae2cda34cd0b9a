"""The paper's tables and figures, from small run directories of plausible numbers."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import STEPS, make_study, record, record_run

import analysis
from analysis import (
    Components,
    Exclusive,
    Figure,
    GateDecisions,
    PassAtK,
    RolloutGrid,
    Table,
    dynamics,
    paper,
    report,
)
from analysis import load as loading
from analysis.intervals import FEW, of_share
from analysis.panel import Heat
from analysis.published import TABLES
from analysis.style import looks
from workbench import upge
from workbench.passk import t_quantile
from workbench.problems import Corpus, Rows
from workbench.problems.loaders import load
from workbench.recipe import Data, Evaluation, Recipe
from workbench.records import run_of, write_lines
from workbench.schema import File
from workbench.study import Study

METHODS = ("base", "SFT", "GRPO", "SFT->GRPO", "LUFFY", "SRFT", "HPT")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlruns")
    record(make_study(), folder)
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> loading.Runs:
    return loading.runs(make_study(), root)


def evaluations(*rows: tuple[str, int, str, int, int]) -> pd.DataFrame:
    """Of rows (label, seed, problem, level, correct of 4)."""
    frame = pd.DataFrame(rows, columns=["label", "seed", "problem", "level", "correct"])
    return frame.assign(suite="s", samples=4, tokens=0, truncated=0, ungradable=0)


def questions(*rows: tuple[str, int, int, str, float | None]) -> pd.DataFrame:
    """Of rows (label, seed, epoch, question, correct of 4), all of level 1."""
    frame = pd.DataFrame(rows, columns=["label", "seed", "epoch", "question", "correct"])
    return frame.assign(step=1, rollouts=4, level=1, alpha=1.0, beta=0.0)


# --- all of it ------------------------------------------------------------------------------------


def test_every_table_and_figure_of_the_paper_is_written_the_same_twice(root: Path) -> None:
    study = make_study()
    outputs = paper(study, METHODS, gates={"HPT": "0.0"}, paradigms={"HPT": "SFT/ON"})
    names = {each.name for each in outputs}
    assert names == {f"table-{n}" for n in (1, 2, 4, 5, 6)} | {f"figure-{n}" for n in range(2, 9)}
    first = report(study, outputs, root)
    kinds = {"table": {"md", "tex", "csv"}, "figure": {"pdf", "svg", "png"}}
    written = {path.name for path in first.paths}
    for name in names:
        assert {f"{name}.{kind}" for kind in kinds[name.partition("-")[0]]} <= written
    again = ["table-1", "table-2", "table-4", "figure-3", "figure-5"]
    kept = {path: path.read_bytes() for path in first.paths if path.stem in again}
    assert list(report(study, outputs, root, only=again).paths) == list(kept)
    assert {path: path.read_bytes() for path in kept} == kept


ELSEWHERE = """
import sys
from pathlib import Path
from small import make_study
from analysis import AcrossSuites, Change, Comparison, dynamics, paper, report

study = make_study()
shown = (
    *paper(study, tuple(study.recipes)),
    *dynamics(study),
    Comparison("gains", study, ("SFT", "GRPO"), arms=["HPT"]),
    Change("change", study, "length/all"),
    AcrossSuites("across", study, "GRPO"),
)
report(study, shown, Path(sys.argv[2]), source=Path(sys.argv[1]))
"""


def test_processes_that_hash_differently_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Sets of texts are in another order in each process that does not share its hash seed."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    folders = [tmp_path / seed for seed in ("1", "2")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(root), str(folder)],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": folder.name},
        )
        for folder in folders
    ]
    assert [process.wait() for process in processes] == [0, 0]
    one, two = (
        {path.name: path.read_bytes() for path in (folder / "reports" / "small").iterdir()}
        for folder in folders
    )
    assert {"md", "tex", "csv", "svg", "html"} <= {name.rpartition(".")[2] for name in one}
    assert [name for name in {**one, **two} if one.get(name) != two.get(name)] == []


def test_one_output_is_written_alone(root: Path) -> None:
    found = report(make_study(), paper(make_study(), METHODS), root, only="figure-6")
    assert [path.name for path in found.paths] == [f"figure-6.{k}" for k in ("pdf", "svg", "png")]


# --- tables ---------------------------------------------------------------------------------------


def test_methods_are_told_by_their_components() -> None:
    frame = analysis.components({"base": None, "HPT": upge.hpt(), "Mix/ON": upge.mix_on()})
    assert list(frame["method"]) == ["HPT", "HPT", "Mix/ON", "Mix/ON", "Mix/ON"]
    rollouts, demonstrations = frame.to_dict("records")[:2]
    assert rollouts["denominator"] == "OldPolicy"
    assert rollouts["mask"] == "RatioClip(0.2)"
    assert demonstrations["advantage"] == "Ones"
    assert demonstrations["gate"] == "Switch(0.0)"
    assert list(frame["coefficient"])[3:] == ["0.1", "1"]


def test_every_named_method_has_its_components() -> None:
    frame = analysis.components({name: make() for name, make in upge.methods.NAMED.items()})
    assert set(frame["method"]) == set(upge.methods.NAMED)
    assert not frame.isna().any(axis=None)


def test_table_1_shows_other_methods_beside_the_arms(runs: loading.Runs) -> None:
    base = Recipe("arithmetic-1m", Data("arithmetic"))
    study = Study("methods", {"base": base, "GRPO": base.using(upge.grpo())})
    sheet = Components("t", study, methods=[upge.ppo(), upge.gspo()]).sheet(runs)
    assert [row[0].text for row in sheet.rows] == ["GRPO", "ppo", "gspo"]
    assert r"$\pi$\_ref" in sheet.latex()
    assert r"\begin{tabular}{lllllllll}" in sheet.latex()


def test_exclusive_solves_count_what_one_solves_and_the_other_does_not() -> None:
    frame = evaluations(
        ("HPT", 0, "a", 1, 4), ("GRPO", 0, "a", 1, 1),  # ours alone
        ("HPT", 0, "b", 1, 2), ("GRPO", 0, "b", 1, 3),  # both
        ("HPT", 0, "c", 2, 1), ("GRPO", 0, "c", 2, 2),  # theirs alone
        ("HPT", 1, "a", 1, 4), ("HPT", 1, "c", 2, 4),  # a seed without a baseline
        ("GRPO", 2, "a", 1, 4),
    )  # fmt: skip
    found = analysis.exclusive_solves(frame, "HPT", "GRPO")
    assert found.to_dict("list") == {
        "seed": [0, 0], "level": [1, 2], "problems": [2, 1], "ours_only": [1, 0],
        "baseline_only": [0, 1],
    }  # fmt: skip
    strict = analysis.exclusive_solves(frame, "HPT", "GRPO", at_least=0.75)
    assert list(strict["ours_only"]) == [1, 0]
    assert list(strict["baseline_only"]) == [1, 0]


def test_a_baseline_of_one_run_is_compared_with_every_seed() -> None:
    frame = evaluations(
        ("HPT", 0, "a", 1, 4), ("HPT", 1, "a", 1, 0), ("base", 0, "a", 1, 2)
    )  # fmt: skip
    found = analysis.exclusive_solves(frame, "HPT", "base")
    assert list(found["seed"]) == [0, 1]
    assert list(found["baseline_only"]) == [0, 1]


def test_table_4_has_levels_their_sum_and_the_papers_counts(runs: loading.Runs) -> None:
    table = Exclusive("t", make_study(), baselines=("GRPO",), reported=True)
    sheet = table.sheet(runs.of(table.needed))
    assert [row[1].text for row in sheet.rows] == ["1", "4", "5", "all"]
    values = {head.key: entry for head, entry in zip(sheet.heads, sheet.rows[-1], strict=True)}
    assert (values["ours_only_reported"].text, values["baseline_only_reported"].text) == (
        "58",
        "15",
    )
    assert values["ours_only_percent_reported"].text == "11.6"
    count, problems = values["ours_only"].value, values["problems"].value
    percent = values["ours_only_percent"].value
    assert percent.mean == pytest.approx(100 * count.mean / problems)  # type: ignore
    wilson = of_share(count.mean / problems, problems)  # type: ignore
    assert (percent.low, percent.high) == pytest.approx((100 * wilson.low, 100 * wilson.high))  # type: ignore
    assert any("Wilson's 95% interval" in note for note in sheet.notes)
    assert all("reported (paper)" in head.title for head in sheet.heads[7:])


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_are_data_of_the_package(name: str) -> None:
    frame = analysis.reported(name)
    assert len(frame) > 2
    assert "Reported (paper)" in analysis.published.note(name)


def test_reported_numbers_stand_beside_and_say_whose_they_are(runs: loading.Runs) -> None:
    sheet = Table("t", make_study(), reported="table2_qwen7b").sheet(runs)
    at = [head.key for head in sheet.heads].index("avg_reported")
    assert sheet.heads[at].title == "ID avg, reported (paper)"
    shown = {row[0].text: row[at].text for row in sheet.rows}
    assert shown == {
        "base": "19.3", "SFT": "44.5", "GRPO": "43.1", "SFT->GRPO": "46.5", "LUFFY": "49.8",
        "SRFT": "44.2", "HPT": "52.7",
    }  # fmt: skip
    for text in (sheet.markdown(), sheet.latex(), sheet.html()):
        assert "ID avg, reported (paper)" in text
        assert "not measured here" in text


def test_an_arm_may_stand_for_a_row_of_another_name(runs: loading.Runs) -> None:
    table = Table(
        "t", make_study(), arms=("HPT",), reported="table6_gate", reported_rows={"HPT": "0.125"}
    )
    sheet = table.sheet(runs.of(table.needed))
    assert "38.7" in [entry.text for entry in sheet.rows[0]]


def test_accuracy_as_a_frame_is_the_tables(runs: loading.Runs) -> None:
    frame = analysis.accuracy(runs.evaluations)
    row = loading.pick(frame, label="HPT", suite="chain").iloc[0]
    sheet = Table("t", make_study()).sheet(runs)
    (entries,) = (row for row in sheet.rows if row[0].text == "HPT")
    interval = entries[2].value
    assert (row["mean"], row["low"], row["n"]) == (interval.mean, interval.low, interval.units)  # type: ignore


# --- figures --------------------------------------------------------------------------------------


def test_rollout_accuracy_is_averaged_over_seeds_for_every_question_and_epoch() -> None:
    frame = questions(
        ("HPT", 0, 0, "a", 1), ("HPT", 1, 0, "a", 3), ("HPT", 0, 1, "a", 4),
        ("SFT", 0, 0, "a", None),
    )  # fmt: skip
    found = analysis.rollout_accuracy(frame)
    assert found["accuracy"].tolist() == [0.5, 1.0]
    assert found["n"].tolist() == [2, 1]


def test_a_difference_is_of_the_same_question_epoch_and_seeds() -> None:
    frame = questions(
        ("HPT", 0, 0, "a", 4), ("GRPO", 0, 0, "a", 1),
        ("HPT", 0, 1, "b", 4),  # never met by the other
        ("HPT", 1, 0, "a", 0),  # a seed that the other does not have
    )  # fmt: skip
    found = analysis.rollout_difference(frame, "HPT", "GRPO")
    assert found[["question", "epoch", "difference"]].values.tolist() == [["a", 0, 0.75]]


def test_a_grid_has_a_row_a_question_sorted_and_a_panel_a_level(runs: loading.Runs) -> None:
    drawing = RolloutGrid("f", make_study(), arms=("GRPO", "HPT"))
    found = drawing.panels(runs.of(drawing.needed))
    levels = len({heat.title for heat in found.panels})
    assert len(found.panels) == 2 * levels
    assert found.columns == levels
    for heat in found.panels:
        assert isinstance(heat, Heat)
        assert np.all(np.diff(np.nanmean(heat.values, axis=1)) <= 0)
    assert "n = 3, descriptive" in found.note
    nothing = RolloutGrid("f", make_study(), arms=("SFT",))
    assert nothing.panels(runs.of(nothing.needed)).left_out == ("SFT has no rollouts",)


def test_a_difference_grid_is_on_a_scale_around_nothing(runs: loading.Runs) -> None:
    drawing = RolloutGrid("f", make_study(), "GRPO", arms=("HPT",))
    heat = drawing.panels(runs.of(drawing.needed)).panels[0]
    assert isinstance(heat, Heat)
    assert heat.ends == (-1.0, 1.0)
    assert heat.colors == (looks(["GRPO"])["GRPO"].color, "#ffffff", looks(["HPT"])["HPT"].color)
    assert np.nanmax(np.abs(heat.values)) == 0  # both met the same questions with the same luck


def test_two_arms_of_names_that_nobody_knows_differ_in_colour(tmp_path: Path) -> None:
    recipes = make_study().recipes
    study = replace(
        make_study(), arms={"mine": recipes["GRPO"], "yours": recipes["HPT"]}, seeds=(0,)
    )
    for cell in make_study(arms=("GRPO", "HPT"), seeds=(0,)).cells:
        record_run(study, cell, run_of(tmp_path, cell.recipe, cell.seed))
    drawing = RolloutGrid("f", study, "mine", arms=("yours",))
    heat = drawing.panels(loading.runs(study, tmp_path)).panels[0]
    styles = looks(["mine", "yours"])
    assert heat.colors == (styles["mine"].color, "#ffffff", styles["yours"].color)  # type: ignore
    assert styles["mine"].color != styles["yours"].color


def test_a_constant_is_a_line_from_side_to_side_in_its_arms_look(runs: loading.Runs) -> None:
    figure = Figure(
        "f", make_study(), y="offline/sequences", arms=("HPT",), constants={"LUFFY": 1 / 8}
    )
    found = figure.panels(runs.of(figure.needed))
    line = found.panels[0].lines[-1]  # type: ignore
    assert (line.x.tolist(), line.y.tolist()) == ([1.0, STEPS], [0.125, 0.125])
    assert line.key == "LUFFY"
    assert "Constant: LUFFY 0.125." in found.note


def test_the_offline_ratio_is_a_share_of_sequences_as_luffys_is(runs: loading.Runs) -> None:
    outputs = {each.name: each for each in paper(make_study(), METHODS, gates={"HPT": "0.0"})}
    labels = [panel.y_label for panel in outputs["figure-6"].panels(runs).panels]  # type: ignore
    labels += [panel.y_label for panel in outputs["figure-8"].panels(runs).panels]  # type: ignore
    assert labels == ["Offline data ratio (share of sequences)", "", "share of sequences"]


def test_gradient_statistics_are_drawn_for_the_arms_that_have_them(runs: loading.Runs) -> None:
    figure = next(each for each in dynamics(make_study()) if each.name == "gradient")
    measured = copy.copy(runs)
    steps = runs.history["step"].astype("float64")
    columns = {
        "grad/variance": steps,
        "grad/share_sft": steps.where(runs.history["label"] == "HPT"),
    }
    vars(measured)["history"] = runs.history.assign(**columns)
    found = figure.panels(measured)  # type: ignore
    assert found.metrics == ("grad/variance", "grad/share_sft")
    shown = [[line.label for line in panel.lines] for panel in found.panels]
    assert shown == [["SFT", "GRPO", "SFT->GRPO", "LUFFY", "SRFT", "HPT"], ["HPT"]]


def test_a_curve_has_a_t_interval_from_five_seeds_on() -> None:
    seeds = [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0], [5.0, 6.0]]
    rows = [("HPT", seed, step, y) for seed, ys in enumerate(seeds) for step, y in enumerate(ys)]
    history = pd.DataFrame(rows, columns=["label", "seed", "step", "reward/mean"])
    found = analysis.curves(history, "step", "reward/mean")
    assert found["mean"].tolist() == [3.0, 4.0]
    half = t_quantile(FEW - 1) * np.std([1, 2, 3, 4, 5], ddof=1) / 5**0.5
    assert found["high"].tolist() == pytest.approx([3 + half, 4 + half])
    few = analysis.curves(history[history["seed"] < FEW - 1], "step", "reward/mean")
    assert few["low"].isna().all() and set(few["n"]) == {4}
    same = analysis.curves(history.assign(**{"reward/mean": 0.1}), "step", "reward/mean")
    assert same["low"].isna().all() and same["mean"].tolist() == pytest.approx([0.1, 0.1])


def test_a_running_mean_is_taken_of_each_run_by_itself() -> None:
    rows = [("a", 0, 1, 0.0), ("a", 1, 1, 10.0), ("a", 0, 2, 2.0), ("a", 1, 2, 20.0)]
    history = pd.DataFrame(rows, columns=["label", "seed", "step", "reward/mean"])
    found = analysis.curves(history, "step", "reward/mean", smooth=3)
    assert found["mean"].tolist() == [8.0, 8.0]


def test_gate_decisions_are_shares_of_each_level_and_step() -> None:
    frame = questions(("HPT", 0, 0, "a", 0), ("HPT", 0, 0, "b", 4), ("HPT", 0, 0, "c", 4))
    frame = frame.assign(alpha=[0.0, 1.0, 1.0], beta=[1.0, 0.0, 1.0], level=[1, 1, 2])
    found = analysis.gate_decisions(frame)
    assert found.to_dict("records") == [
        {"label": "HPT", "seed": 0, "step": 1, "gate/level_1": 0.5, "gate/level_2": 0.5}
    ]


def test_only_arms_with_a_gate_show_its_decisions(tmp_path: Path) -> None:
    base = Recipe("arithmetic-1m", Data("arithmetic"), steps=STEPS)
    arms = {"GRPO": base.using(upge.grpo()), "HPT": base.using(upge.hpt())}
    study = Study("gated", arms, evaluation=Evaluation(suites=("chain",)))
    for cell in study.cells:
        record_run(study, cell, run_of(tmp_path, cell.recipe, cell.seed))
    found = GateDecisions("g", study).panels(loading.runs(study, tmp_path))
    assert {line.label for panel in found.panels for line in panel.lines} == {"HPT"}  # type: ignore
    assert all(panel.y_range == (-0.04, 1.04) for panel in found.panels)  # type: ignore


def test_throughput_is_of_the_tokens_sampled_and_trained_on_in_a_step(runs: loading.Runs) -> None:
    history = runs.history
    assert loading.pick(history, label="GRPO")["time/tokens_per_second"].unique() == 14_000 / 1.5
    assert loading.pick(history, label="SFT")["time/tokens_per_second"].unique() == 5_000 / 1.5


def test_some_arms_alone_are_shown_in_the_colours_that_they_always_have(runs: loading.Runs) -> None:
    figure = Figure("f", make_study(), arms=("HPT", "GRPO"))
    (panel,) = figure.panels(runs.of(figure.needed)).panels
    assert [line.label for line in panel.lines] == ["GRPO", "HPT"]  # type: ignore
    table = Table("t", make_study(), arms=("HPT",))
    assert [row[0].text for row in table.sheet(runs.of(table.needed)).rows] == ["HPT"]


# --- levels ---------------------------------------------------------------------------------------


def record_questions(study: Study, root: Path, levels: list[list[int] | None]) -> None:
    """A step of each cell for each of the levels, on the first three questions of the small world.

    None leaves them out of the record.
    """
    for cell in study.cells:
        run = run_of(root, cell.recipe, cell.seed)
        run.create(cell.recipe, cell.seed)
        asked = [f"arithmetic/train/{number:05d}" for number in range(3)]
        gate = {"alpha": [1.0] * 3, "beta": [0.0] * 3, "correct": [1] * 3}
        row = {"step": 1, "epoch": 0, "rollouts": 4, "questions": asked, **gate}
        rows = [row | ({} if each is None else {"levels": each}) for each in levels]
        write_lines(run.path / File.QUESTIONS, rows)
        run.finish({})


def test_levels_are_read_from_the_record_where_the_data_is_not_there(tmp_path: Path) -> None:
    data = Corpus("absent", Rows(str(tmp_path / "absent.jsonl")))
    study = Study("absent", {"GRPO": Recipe("arithmetic-1m", data).using(upge.grpo())})
    record_questions(study, tmp_path, [[3, 1, 0], [2, 2, 5]])
    found = loading.runs(study, tmp_path).questions
    assert found["level"].tolist() == [3, 1, 0, 2, 2, 5]


@pytest.mark.parametrize("later", [[], [5, 4, 3]], ids=["without", "without until resumed"])
def test_a_record_without_levels_has_those_of_its_own_data(tmp_path: Path, later: list) -> None:
    arms = {
        f"seed {seed}": Recipe("arithmetic-1m", Data("arithmetic", 40, seed)).using(upge.grpo())
        for seed in range(3)
    }
    study = Study("varied", arms)
    record_questions(study, tmp_path, [None, later] if later else [None])
    found = loading.runs(study, tmp_path).questions
    for label, recipe in arms.items():
        own = [problem.level for problem in load(recipe.data).train[:3]]
        mine = loading.pick(found, label=label)["level"].tolist()
        assert mine == [*own, *later]


# --- compact records ------------------------------------------------------------------------------


def test_compact_records_give_the_same_frames(root: Path, tmp_path: Path) -> None:
    from workbench import plan
    from workbench.tracking.points import write_compact

    study = make_study(arms=("base", "SFT", "HPT", "SFT->GRPO"))
    for job in plan.jobs(study, root):
        folder = tmp_path / job.run.path.relative_to(root)
        folder.mkdir(parents=True)
        write_compact(job, folder)
    ours, theirs = (loading.runs(study, each) for each in (root, tmp_path))
    for name in ("history", "evaluations", "questions", "budget"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_metric_of_one_run_alone_is_no_number_in_the_others(tmp_path: Path) -> None:
    study = make_study(arms=("GRPO",), seeds=(0, 1))
    for cell in study.cells:
        run = run_of(tmp_path, cell.recipe, cell.seed)
        run.create(cell.recipe, cell.seed)
        row = {"step": 1, "timestamp": 1, "reward/mean": 0.5, "loss/total": None}
        write_lines(run.path / File.METRICS, [row | ({"length/all": 3} if cell.seed else {})])
        run.finish({})
    history = loading.runs(study, tmp_path).history
    assert list(history.columns) == [
        "label",
        "seed",
        "step",
        "timestamp",
        "reward/mean",
        "length/all",
    ]
    assert np.isnan(history["length/all"]).tolist() == [True, False]


# --- wrong declarations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Table("t", s, arms=("HTP",)), "Table.arms names arm 'HTP'; did you mean HPT"),
        (lambda s: Table("t", s, reported="table2"), "Table.reported is 'table2'; did you mean"),
        (lambda s: Table("t", s, reported_rows={"HPTT": "x"}), "reported_rows names arm 'HPTT'"),
        (lambda s: Exclusive("t", s, ours="HPTS"), "Exclusive.ours names arm 'HPTS'"),
        (lambda s: Exclusive("t", s, baselines=("LUFY",)), "did you mean LUFFY"),
        (lambda s: Exclusive("t", s, at_least=0), "at_least is a share .* got 0"),
        (lambda s: Exclusive("t", s, suites=("chains",)).check(), "did you mean chain"),
        (lambda s: RolloutGrid("f", s, "GRPO"), "so name them and not it"),
        (lambda s: RolloutGrid("f", s, "GRPQ", arms=("HPT",)), "minus names arm 'GRPQ'"),
        (lambda s: GateDecisions("f", s, smooth=0), "smooth"),
        (lambda s: PassAtK("f", s, arms=("nobody",)), "PassAtK.arms names arm 'nobody'"),
        (lambda s: analysis.reported("table9"), "table9"),
        (lambda s: analysis.pass_at_k(pd.DataFrame(), (1,), over="seed"), "did you mean seeds"),
    ],
)
def test_a_wrong_declaration_is_refused_with_the_nearest_choice(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(make_study("wrong"))
