"""Tables and figures from small run directories made of deterministic, plausible numbers."""

import copy
import csv
from math import isnan, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import ARMS, STEPS, SUITES, make_study, record, record_run

import analysis
from analysis import Dynamics, Figure, LearningCurves, PassAtK, RolloutGrid, Table, report
from analysis import load as loading
from analysis.intervals import over_problems, over_seeds
from analysis.metrics import compact, metric
from analysis.panel import FORMATS
from analysis.report import Output, defaults
from analysis.style import KNOWN, looks
from workbench.passk import t_quantile
from workbench.plan import measurements
from workbench.recipe import Evaluation
from workbench.records import run_of
from workbench.schema import METRICS
from workbench.study import Cell, Study


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of the small study but one, SRFT's with seed 1."""
    folder = tmp_path_factory.mktemp("mlruns")
    record(make_study(), folder, skip=(("SRFT", 1),))
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> loading.Runs:
    return loading.runs(make_study(), root)


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["label"]: row for row in csv.DictReader(text.splitlines())}


# --- frames ---------------------------------------------------------------------------------------


def test_the_history_has_a_row_for_each_step_of_each_run(runs: loading.Runs) -> None:
    history = runs.history
    assert len(history) == (6 * 3 - 1) * STEPS
    assert set(history["label"]) == set(ARMS) - {"base"}
    run = loading.pick(history, label="HPT", seed=2)
    assert run["step"].tolist() == list(range(1, STEPS + 1))
    assert np.isnan(run["length/wrong"]).sum() == STEPS // 7  # null in the record
    assert np.isfinite(run["validation/pass_at_1"]).sum() == STEPS // 10  # absent from most rows


def test_the_evaluations_have_a_row_for_each_problem(runs: loading.Runs, root: Path) -> None:
    study = make_study()
    recipe = study.recipes["GRPO"]
    (measurement,) = [m for m in measurements(study, recipe) if m.suite == "composed"]
    written = pd.read_parquet(run_of(root, recipe, 1).evaluation_path(measurement))
    found = loading.pick(runs.evaluations, label="GRPO", seed=1, suite="composed")
    assert found["correct"].tolist() == written["correct"].tolist()
    assert set(found["samples"]) == {64}


def test_the_questions_have_a_row_for_each_question_of_each_step(runs: loading.Runs) -> None:
    found = loading.pick(runs.questions, label="HPT", seed=0)
    assert len(found) == 2 * STEPS
    first = found.iloc[0]
    assert (first["question"], first["correct"], first["rollouts"]) == ("q1", 3.0, 8)
    assert (first["alpha"], first["beta"]) == (0.0, 1.0)
    assert np.isnan(loading.pick(runs.questions, label="SFT")["correct"]).all()


def test_a_budget_includes_the_checkpoint_that_a_run_starts_from(runs: loading.Runs) -> None:
    spent = runs.budget.groupby("label")[list(loading.SPENT)].first()
    assert spent.loc["GRPO"].tolist() == [540_000, 300_000, 60, 90]
    assert spent.loc["SFT->GRPO"].tolist() == [540_000, 600_000, 120, 180]
    assert spent.loc["base"].tolist() == [0, 0, 0, 0]


def test_a_lost_source_run_makes_the_budget_unknown_not_smaller(tmp_path: Path) -> None:
    study = make_study(arms=("SFT->GRPO",), seeds=(0,))
    record(study, tmp_path)  # SFT itself is not recorded
    found = loading.runs(study, tmp_path)
    assert np.isnan(found.budget[list(loading.SPENT)].to_numpy("float64")).all()
    assert Table("t", study).sheet(found).rows[0][-1].text == "–"


def test_missing_runs_are_left_out_and_counted(runs: loading.Runs) -> None:
    assert runs.seeds("SRFT") == (0, 2)
    assert runs.seeds("base") == (0,)  # one model, whatever the seeds
    assert "1 of 19 runs is not finished and left out: SRFT (seed 1)." in runs.notes


def test_a_missing_evaluation_is_counted_and_its_average_left_out(tmp_path: Path) -> None:
    study = make_study(arms=("base", "GRPO"), seeds=(0,))
    record(study, tmp_path)
    recipe = study.recipes["GRPO"]
    (lost,) = [m for m in measurements(study, recipe) if m.suite == "nesting"]
    run_of(tmp_path, recipe, 0).evaluation_path(lost).unlink()
    found = loading.runs(study, tmp_path)
    note = "1 of 8 evaluations is missing and left out: GRPO (seed 0) on nesting."
    assert note in found.notes
    row = rows_of(Table("t", study).sheet(found).csv())["GRPO"]
    assert row["nesting"] == row["avg"] == ""
    assert row["chain"] != ""


def test_runs_that_are_trained_and_not_measured_give_empty_cells(tmp_path: Path) -> None:
    study = make_study(arms=("GRPO",), seeds=(0,))
    (cell,) = study.cells
    run = run_of(tmp_path, cell.recipe, cell.seed)
    run.create(cell.recipe, cell.seed)
    run.finish({})
    found = report(study, (), tmp_path)
    assert found.rows == (("GRPO", "1", "–", "–", "–", "–", "–", "0", "0", "0", "0"),)
    assert any("4 of 4 evaluations are missing" in note for note in found.notes)
    assert sum("is not drawn" in note for note in found.notes) == 3


def test_arms_that_share_a_run_both_show_it_and_say_so(tmp_path: Path) -> None:
    recipe = make_study(arms=("GRPO",)).recipes["GRPO"]
    study = Study("twins", {"one": recipe, "two": recipe}, evaluation=Evaluation(suites=SUITES))
    ours = Cell("GRPO", recipe, 0)
    record_run(study, ours, run_of(tmp_path, ours.recipe, ours.seed))
    found = loading.runs(study, tmp_path)
    assert found.labels == ("one", "two")
    assert "two is the same run as one." in found.notes


# --- tables ---------------------------------------------------------------------------------------


def test_the_table_has_the_base_first_the_suites_and_the_averages(runs: loading.Runs) -> None:
    sheet = Table("t", make_study()).sheet(runs)
    assert [row[0].text for row in sheet.rows] == list(ARMS)
    titles = [head.title for head in sheet.heads]
    assert titles[:7] == ["Method", "n", "chain", "nesting", "composed", "ID avg", "words"]
    assert titles[7:] == ["Sampled tokens", "Trained tokens", "Steps", "Seconds"]


def test_the_base_is_first_wherever_the_study_has_it(root: Path) -> None:
    found = loading.runs(make_study(arms=("HPT", "base", "GRPO")), root)
    assert found.labels == ("base", "HPT", "GRPO")


def test_a_row_is_the_mean_of_its_seeds_with_a_t_interval(runs: loading.Runs) -> None:
    frame = loading.pick(runs.evaluations, label="LUFFY", suite="chain")
    correct = np.array([run["correct"].to_numpy("float64") for _, run in frame.groupby("seed")])
    shares = 100 * correct.mean(axis=1) / 16
    row = rows_of(Table("t", make_study()).sheet(runs).csv())["LUFFY"]
    half = t_quantile(2) * shares.std(ddof=1) / 3**0.5
    assert float(row["chain"]) == pytest.approx(shares.mean())
    assert float(row["chain_high"]) == pytest.approx(shares.mean() + half)
    assert row["n"] == "3"


def test_an_average_is_of_the_suites_of_its_kind(runs: loading.Runs) -> None:
    row = rows_of(Table("t", make_study()).sheet(runs).csv())["HPT"]
    inside = [float(row[suite]) for suite in ("chain", "nesting", "composed")]
    assert float(row["avg"]) == pytest.approx(sum(inside) / 3)
    assert "avg_ood" not in row  # one suite alone needs no average


def test_the_best_of_each_column_is_bold_in_markdown_and_latex(runs: loading.Runs) -> None:
    sheet = Table("t", make_study()).sheet(runs)
    numbers = rows_of(sheet.csv())
    best = {name: max(float(row[name]) for row in numbers.values()) for name in SUITES}
    for row in sheet.rows:
        for head, entry in zip(sheet.heads, row, strict=True):
            if head.key in best:
                assert entry.best == (entry.text == f"{best[head.key]:.1f}")
    bold = [line for line in sheet.markdown().splitlines() if "**" in line]
    assert len(bold) == 1
    assert bold[0].startswith("| HPT | 3 | **")
    assert rf"\textbf{{{best['chain']:.1f}}}" in sheet.latex()
    assert r"SFT$\rightarrow$GRPO & 3 &" in sheet.latex()
    assert r"\multicolumn{4}{c}{In distribution}" in sheet.latex()
    assert "*" not in sheet.csv()


def test_equal_numbers_are_all_the_best(tmp_path: Path) -> None:
    recipe = make_study(arms=("GRPO",)).recipes["GRPO"]
    study = Study("twins", {"one": recipe, "two": recipe}, evaluation=Evaluation(suites=SUITES))
    ours = Cell("GRPO", recipe, 0)
    record_run(study, ours, run_of(tmp_path, ours.recipe, ours.seed))
    sheet = Table("t", study).sheet(loading.runs(study, tmp_path))
    assert all(row[2].best for row in sheet.rows)


def test_a_table_says_what_its_intervals_are_over(runs: loading.Runs) -> None:
    notes = " ".join(Table("t", make_study()).sheet(runs).notes)
    assert "over seeds (n = 2 to 3, descriptive)" in notes
    assert "over problems (n = 40 to 120), not over training runs" in notes
    assert "avg@16 (64 on composed)" in notes
    assert "1 of 19 runs is not finished" in notes


def test_values_that_are_all_the_same_have_no_interval_and_a_note_says_so(
    runs: loading.Runs,
) -> None:
    perfect = copy.copy(runs)
    frame, chain = runs.evaluations, runs.evaluations["suite"] == "chain"
    solved = frame["correct"].where(~chain, frame["samples"])
    vars(perfect)["evaluations"] = frame.assign(correct=solved)
    sheet = Table("t", make_study()).sheet(perfect)
    column = [head.key for head in sheet.heads].index("chain")
    assert {row[column].plain for row in sheet.rows} == {"100.0"}
    assert "± 0.0" not in sheet.markdown()
    assert "100,,100" not in sheet.csv() and "100,," in sheet.csv()
    note = "Without ±: no t interval, for all values are the same, or one stands alone."
    assert note in sheet.notes
    assert note not in Table("t", make_study()).sheet(runs).notes


def test_rows_may_be_single_runs(runs: loading.Runs) -> None:
    sheet = Table("t", make_study(), rows="seed", budget=False).sheet(runs)
    names = [row[0].text for row in sheet.rows]
    assert len(names) == 18
    assert "HPT, seed 2" in names
    assert not any("over seeds" in note for note in sheet.notes)


def test_columns_may_be_levels_and_values_other_counts(runs: loading.Runs) -> None:
    levels = Table("t", make_study(), columns="level", budget=False).sheet(runs)
    assert [head.key for head in levels.heads] == ["label", "n", "level_1", "level_4", "level_5"]
    tokens = Table("t", make_study(), value="tokens").sheet(runs)
    assert rows_of(tokens.csv())["HPT"]["chain"] == "50"
    assert not any(entry.best for row in tokens.rows for entry in row)


def test_over_problems_is_the_t_interval_for_one_suite_and_adds_variances_for_more() -> None:
    one, two = np.array([0.0, 1.0, 1.0, 0.5]), np.array([0.2, 0.4, 0.9, 0.1])
    single, both = over_problems([one]), over_problems([one, two])
    assert single.half == pytest.approx(t_quantile(3) * one.std(ddof=1) / 2)
    error = (one.var(ddof=1) / 4 + two.var(ddof=1) / 4) ** 0.5 / 2
    assert both.mean == pytest.approx((one.mean() + two.mean()) / 2)
    assert t_quantile(6) * error <= both.half <= t_quantile(3) * error
    assert over_problems([one, one]).half == pytest.approx(
        t_quantile(6) * one.std(ddof=1) / 2 / 2**0.5
    )
    same = over_problems([np.ones(9), np.full(4, 0.1)])
    assert isnan(same.low) and isnan(same.high) and same.units == 13
    assert over_problems([np.ones(9), one]).half > 0
    assert isnan(over_problems([np.array([1.0])]).half)
    assert isnan(over_seeds([1.0]).half)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (12_345, "12.3k"),
        (999_999, "1M"),
        (1_234_567, "1.23M"),
        (-54_000, "-54k"),
        (2.5e9, "2.5B"),
        (nan, "–"),
    ],
)
def test_numbers_are_shown_in_three_digits(number: float, text: str) -> None:
    assert compact(number) == text


# --- figures --------------------------------------------------------------------------------------


def test_a_line_is_the_mean_of_its_runs(runs: loading.Runs) -> None:
    (panel,) = Figure("f", make_study()).panels(runs).panels
    assert [line.label for line in panel.lines] == [label for label in ARMS if label != "base"]
    line = panel.lines[-1]
    assert line.y == pytest.approx(np.mean([y for _, y in line.runs], axis=0))
    assert (panel.x_label, panel.y_label) == ("Step", "Training reward")
    assert len(line.runs) == 3
    assert (
        "mean over seeds (n = 2 to 3, descriptive)" in Figure("f", make_study()).panels(runs).note
    )


def test_a_smooth_line_is_a_running_mean_over_faint_runs(runs: loading.Runs) -> None:
    rough = Figure("f", make_study()).panels(runs).panels[0].lines[0]
    found = Figure("f", make_study(), smooth=5).panels(runs)
    smooth = found.panels[0].lines[0]
    assert smooth.y[10] == pytest.approx(rough.y[8:13].mean())
    assert smooth.y[0] == pytest.approx(rough.y[:3].mean())
    assert "Running means of 5 steps." in found.note
    assert smooth.runs[0][1][10] == pytest.approx(rough.runs[0][1][8:13].mean())


def test_an_arm_that_stays_where_it_is_has_no_curve(runs: loading.Runs) -> None:
    figure = Figure("f", make_study(), x="budget/sampled_tokens", y=("reward/mean",))
    labels = [line.label for line in figure.panels(runs).panels[0].lines]
    assert "SFT" not in labels
    assert "GRPO" in labels


def test_a_metric_that_no_run_has_is_left_out_and_named(runs: loading.Runs) -> None:
    figure = Figure("f", make_study(), y=("reward/mean", "loss/auxiliary"))
    found = figure.panels(runs)
    assert [panel.title for panel in found.panels] == ["Training reward"]
    assert found.left_out == ("no run has the metric loss/auxiliary",)
    shown = Dynamics("d", make_study()).panels(runs)
    assert "Loss of active demonstrations" not in [panel.title for panel in shown.panels]
    assert "1 of 19 runs is missing." in shown.note


def test_a_start_at_another_runs_checkpoint_is_told(runs: loading.Runs) -> None:
    note = "SFT->GRPO: starts at step 60 of SFT; its own steps are drawn."
    study = make_study()
    for figure in (Figure("f", study), LearningCurves("l", study), Dynamics("d", study)):
        assert note in figure.panels(runs).note.splitlines()
    for grid in (
        RolloutGrid("g", study, arms=("SFT->GRPO",)),
        RolloutGrid("g", study, "SFT->GRPO", arms=("HPT",)),
    ):
        assert note in grid.panels(runs.of(grid.needed)).note.splitlines()
    assert "starts" not in Figure("f", study).panels(runs.of(("HPT", "SFT"))).note
    alone = make_study(arms=("SFT->GRPO",))  # SFT is no arm of it
    assert loading.runs(alone, runs.frames.root).starts(["SFT->GRPO"]) == [note]


def test_colors_may_stand_for_a_field_of_the_recipe() -> None:
    figure = Figure("f", make_study(), color="start")
    keys = figure.keys(tuple(ARMS))
    assert keys["HPT"] == "None"
    assert keys["SFT->GRPO"] != "None"


def test_learning_curves_have_a_panel_for_each_level(runs: loading.Runs) -> None:
    panels = LearningCurves("l", make_study()).panels(runs).panels
    assert [panel.title for panel in panels] == [
        "All levels",
        "Level 1: chain",
        "Level 2: long_chain",
        "Level 3: precedence",
        "Level 4: nesting",
        "Level 5: composed",
    ]
    assert {panel.y_label for panel in panels} == {"Validation accuracy (share)"}


def test_pass_at_k_is_drawn_to_half_the_samples_with_bands(runs: loading.Runs) -> None:
    found = PassAtK("p", make_study()).panels(runs)
    by_title = {panel.title: panel for panel in found.panels}
    assert list(by_title) == ["chain", "nesting", "composed", "words (OOD)"]
    assert by_title["chain"].lines[0].x.tolist() == [1, 2, 4, 8]
    assert by_title["composed"].lines[0].x.tolist() == [1, 2, 4, 8, 16, 32]
    for line in by_title["chain"].lines:
        assert line.band is not None
        assert np.all(line.band[0] <= line.y + 1e-9)
        assert np.all(line.y <= line.band[1] + 1e-9)
        assert np.all(np.diff(line.y) >= 0)
    assert "over seeds (n = 2 to 3, descriptive)" in found.note
    assert "of one run: 95% t interval over problems (n = 40)" in found.note


def test_pass_at_1_is_the_tables_number(runs: loading.Runs) -> None:
    numbers = rows_of(Table("t", make_study()).sheet(runs).csv())
    for over in ("seeds", "problems"):
        figure = PassAtK("p", make_study(), suites=("chain",), k=(1, 16), over=over)
        (panel,) = figure.panels(runs).panels
        for line in panel.lines:
            assert line.y[0] == pytest.approx(float(numbers[line.label]["chain"]))


def test_looks_are_fixed_for_methods_and_stable_for_the_rest() -> None:
    one = looks(["HPT", "mine", "SFT → GRPO", "theirs"])
    two = looks(["theirs", "GRPO", "mine", "hpt"])
    assert one["HPT"] == two["hpt"] == KNOWN["hpt"]
    assert one["SFT → GRPO"] == KNOWN["sft->grpo"]
    assert (one["mine"], one["theirs"]) == (two["mine"], two["theirs"])
    many = looks([f"arm {n}" for n in range(48)])
    assert len(set(many.values())) == 48
    known = list(KNOWN.values())
    for part in ("color", "marker"):
        assert len({getattr(look, part) for look in known}) == len(known)


# --- wrong declarations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Table("t", s, value="pass_at_one"), "did you mean pass_at_1"),
        (lambda s: Table("t", s, columns="suites"), "did you mean suite"),
        (lambda s: Figure("f", s, y="policy/entropie"), "did you mean policy/entropy"),
        (lambda s: Figure("f", s, y=("reward/mean", "grad")), "no metric 'grad'"),
        (lambda s: Figure("f", s, x="steps"), "no metric 'steps'; did you mean step"),
        (lambda s: Figure("f", s, color="optimiser.learning_rate"), "optimizer.learning_rate"),
        (lambda s: Figure("f", s, smooth=0), "smooth"),
        (lambda s: PassAtK("p", s, over="seed"), "did you mean seeds"),
        (
            lambda s: PassAtK("p", s, k=(0, 1)),
            "k must be at least 1, got 0 in .*; the nearest",
        ),
        (lambda s: PassAtK("p", s, suites=("chains",)), "did you mean chain"),
        (lambda s: PassAtK("p", s, suites=("chain",), k=(1, 32)), "k = 32 on chain.* n = 16"),
    ],
)
def test_a_wrong_name_fails_before_anything_is_drawn(root: Path, make, message: str) -> None:
    study = make_study("wrong")
    with pytest.raises(ValueError, match=message):
        report(study, (Table("first", study), make(study)), root, only="first")
    assert not (root / "reports" / "wrong").exists()


def test_every_metric_can_be_drawn() -> None:
    for key in METRICS:
        assert Figure("f", make_study(), y=key).y == (key,)
    assert metric("validation/level_3").label == "Validation accuracy, level 3"


def test_a_study_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run .*19 to train"):
        report(make_study(), (), tmp_path)


def test_outputs_need_names_of_their_own_that_exist(root: Path) -> None:
    study = make_study()
    with pytest.raises(ValueError, match="two outputs are named 'same'"):
        report(study, (Table("same", study), Figure("same", study)), root)
    with pytest.raises(ValueError, match="did you mean results"):
        report(study, (), root, only="result")


# --- reports --------------------------------------------------------------------------------------


def test_a_report_writes_the_same_bytes_again(root: Path) -> None:
    study = make_study()
    outputs: tuple[Output, ...] = (
        Table("results", study),
        Figure("reward", study, smooth=3),
        PassAtK("pass-at-k", study, suites=("chain", "words")),
        Table("of-another-study", make_study("other")),
    )
    first = report(study, outputs, root)
    names = [path.name for path in first.paths]
    assert names[:3] == ["results.md", "results.tex", "results.csv"]
    figures = [f"{n}.{kind}" for n in ("reward", "pass-at-k") for kind in FORMATS]
    assert names[3:] == [*figures, "report.html"]
    written = {path: path.read_bytes() for path in first.paths}
    second = report(study, outputs, root)
    assert {path: path.read_bytes() for path in second.paths} == written
    assert second == first
    assert first.folder == root / "reports" / "small"


def test_a_report_gives_the_main_table_and_its_notes(root: Path) -> None:
    study = make_study()
    found = report(study, (), root, only=["results"])
    assert [path.suffix for path in found.paths] == [".md", ".tex", ".csv"]
    assert found.columns[:3] == ("Method", "n", "chain")
    assert found.rows[0][0] == "base"
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert any("1 of 19 runs is not finished" in note for note in found.notes)


def test_a_figure_with_nothing_to_show_is_noted_and_not_drawn(root: Path) -> None:
    study = make_study()
    found = report(study, (Figure("empty", study, y="loss/auxiliary"),), root)
    assert [path.name for path in found.paths] == ["report.html"]
    assert "empty is not drawn: no run has the metric loss/auxiliary." in found.notes


def test_a_figure_of_what_never_differs_is_not_drawn_and_says_what_that_is(root: Path) -> None:
    study = make_study()
    found = report(study, (Figure("flat", study, y=("time/step", "length/wrong")),), root)
    said = "the same for all arms throughout: Step 1.5, Length of wrong responses 50"
    assert f"flat is not drawn: {said}." in found.notes


def test_a_study_that_declares_nothing_has_default_outputs() -> None:
    names = [each.name for each in defaults(make_study())]
    assert names == ["results", "learning-curves", "dynamics", "pass-at-k"]
    few = make_study(evaluation=Evaluation(samples=2))
    assert "pass-at-k" not in [each.name for each in defaults(few)]


def test_matplotlib_is_left_as_it_was(root: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    study = make_study()
    report(study, (Figure("one", study),), root)
    assert dict(matplotlib.rcParams) == before


def test_analysis_imports_neither_torch_nor_mlflow() -> None:
    import subprocess
    import sys

    code = "import sys, analysis; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert analysis.__all__ == sorted(analysis.__all__)


def test_panels_in_which_all_arms_are_one_number_become_a_note(runs: loading.Runs) -> None:
    flat = copy.copy(runs)
    vars(flat)["history"] = runs.history.assign(**{"policy/kl_old": 0.0})
    found = Figure("f", make_study(), y=("reward/mean", "policy/kl_old")).panels(flat)
    assert [panel.title for panel in found.panels] == ["Training reward"]
    assert "The same for all arms throughout: KL to the old policy 0." in found.note
    alone = Figure("f", make_study(), y="policy/kl_old").panels(flat)
    assert len(alone.panels) == 1
    assert "policy/kl_old" not in Dynamics("d", make_study()).panels(flat).metrics


@pytest.mark.parametrize(
    ("low", "high", "number"),
    [
        (0.0, 5e-4, None),  # a KL, or one token in 2,000 masked
        (1e-4, 3e-4, None),
        (0.0, 8e-6, 0.0),
        (0.9995, 1.0004, 1.0),
        (5e-4, 5e-4, 5e-4),
        (0.99, 1.0, None),
    ],
)
def test_one_number_is_told_from_small_ones_but_not_from_rounding(
    runs: loading.Runs, low: float, high: float, number: float | None
) -> None:
    near = copy.copy(runs)
    values = np.resize([low, high], len(runs.history))
    vars(near)["history"] = runs.history.assign(**{"policy/kl_old": values})
    found = Figure("f", make_study(), y=("reward/mean", "policy/kl_old")).panels(near)
    assert len(found.panels) == (2 if number is None else 1)
    shown = "" if number is None else f"KL to the old policy {number:g}."
    assert shown in found.note
