"""Declared comparisons: what they refuse, their hash, and their tables from run directories."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small import make_study, record

from analysis import AcrossSuites, Comparison, Figure, PassAtK, report
from analysis import load as loading
from analysis.forest import forest
from analysis.panel import Panel, draw
from analysis.sheet import Sheet
from analysis.style import looks
from workbench.cli import main
from workbench.identity import fingerprint
from workbench.passk import mean_pass_at_k_over_samples
from workbench.recipe import Sampling
from workbench.study import Study

ARMS = ("base", "SFT", "GRPO", "HPT")


def small(name: str = "compared", **fields: object) -> Study:
    return make_study(name, ARMS, **{"seeds": range(6), **fields})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seeds of four arms, but GRPO's fourth."""
    folder = tmp_path_factory.mktemp("mlruns")
    record(small(), folder, skip=(("GRPO", 3),))
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> loading.Runs:
    return loading.runs(small(), root)


def rows_of(sheet: Sheet) -> list[dict[str, str]]:
    return list(csv.DictReader(sheet.csv().splitlines()))


# --- declarations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(baseline="GRP"), "Comparison.baseline names arm 'GRP'; did you mean GRPO"),
        (dict(baseline=("SFT", "SFT")), "'gains' names .'GRPO', 'SFT'. twice"),
        (dict(baseline=()), "needs a baseline; choose of: base, SFT, GRPO, HPT"),
        (dict(baseline="SFT", arms=("HTP",)), "Comparison.arms names arm 'HTP'; did you mean HPT"),
        (dict(baseline="SFT", arms=("HPT", "SFT")), "compares 'SFT' with itself"),
        (dict(baseline="SFT", metric="policy/entropie"), "did you mean policy/entropy"),
        (dict(baseline="SFT", metric="policy/entropy", k=4), "is of training: it has no suites"),
        (dict(baseline="SFT", k=0), "k must be at least 1, got 0; the nearest is 1"),
        (dict(baseline="SFT", k=(1, 1)), r"each once, got \(1, 1\)"),
        (
            dict(baseline="SFT", alpha=5),
            "a chance above 0 and below 1, got 5.0; such as 0.05",
        ),
        (
            dict(baseline="SFT", draws=10),
            "must be at least 1000, got 10; the nearest is 1000",
        ),
        (dict(baseline=("SFT", "GRPO", "HPT")), "no arm beside its baseline"),
        (dict(baseline="SFT", suites=("chains",)), "'gains' has no suite 'chains'; did you mean"),
        (dict(baseline="SFT", k=64), "k = 64 on chain, which has n = 16"),
    ],
    ids=str,
)
def test_a_wrong_comparison_is_named_before_any_training(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison("gains", small(), **fields).check()


def test_arms_that_no_seed_tells_apart_are_refused() -> None:
    base, grpo = (small().recipes[label] for label in ("base", "GRPO"))
    other = base.using(None, sampling=Sampling(max_tokens=64))
    study = Study("twins", {"base": base, "other": other, "GRPO": grpo, "again": grpo})
    with pytest.raises(ValueError, match="neither is trained"):
        Comparison("c", study, "base", arms=("other",))
    with pytest.raises(ValueError, match="the same estimator and shares its run"):
        Comparison("c", study, "GRPO", arms=("again",)).check()


def test_across_suites_refuses_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="did you mean GRPO"):
        AcrossSuites("a", small(), "GRP0")
    with pytest.raises(ValueError, match="k must be at least 1"):
        AcrossSuites("a", small(), "GRPO", k=0)
    with pytest.raises(ValueError, match="n = 16"):
        AcrossSuites("a", small(), "GRPO", suites=("chain",), k=17).check()


def test_arms_are_all_that_are_trained_and_no_baseline() -> None:
    found = Comparison("gains", small(), ("base", "SFT"), k=(1, 8))
    assert found.pairs == (("GRPO", "base"), ("HPT", "base"), ("GRPO", "SFT"), ("HPT", "SFT"))
    assert found.size == 8


def test_the_hash_is_of_all_that_is_decided_and_of_nothing_else() -> None:
    first = Comparison("gains", small(), "SFT", arms=("HPT",))
    same = Comparison("another-name", small("another-study"), ("SFT",), arms=["HPT"], k=(1,))
    assert fingerprint(first.family) == fingerprint(same.family)
    longer = {
        label: recipe.using(recipe.method, steps=61) for label, recipe in small().recipes.items()
    }
    others = [
        replace(first, baseline="GRPO"),
        replace(first, arms=("GRPO",)),
        replace(first, metric="policy/entropy"),
        replace(first, suites=("chain",)),
        replace(first, k=8),
        replace(first, alpha=0.01),
        replace(first, seed=1),
        replace(first, study=small(seeds=range(5))),
        replace(first, study=replace(small(), arms=longer)),
    ]
    hashes = [fingerprint(each.family) for each in (first, *others)]
    assert len(set(hashes)) == len(hashes)
    assert f"Hash {hashes[0][:16]}." in first.declared


@pytest.mark.parametrize(
    ("seeds", "least", "reaches"), [(3, "0.5", False), (6, "0.0625", False), (8, "0.0156", True)]
)
def test_the_declaration_says_what_its_seeds_can_attain(
    seeds: int, least: str, reaches: bool
) -> None:
    found = Comparison("gains", small(seeds=range(seeds)), "SFT", arms=("GRPO", "HPT")).declared
    assert f"the smallest Holm p that {seeds} seeds can attain is {least}" in found
    assert ("none can reach alpha: descriptive" in found) is not reaches


# --- tables ---------------------------------------------------------------------------------------


def test_a_difference_is_paired_on_common_seeds(runs: loading.Runs) -> None:
    (row,) = (
        Comparison("gains", small(), "GRPO", arms=("HPT",), suites=("chain", "nesting"))
        .frame(runs)
        .to_dict("records")
    )
    frame = loading.pick(runs.evaluations, suite=("chain", "nesting"))
    means = (
        frame.assign(share=100 * frame["correct"] / frame["samples"])
        .groupby(["label", "seed", "suite"])["share"]
        .mean()
    )
    by_seed = means.groupby(["label", "seed"]).mean()
    each = (by_seed["HPT"] - by_seed["GRPO"]).dropna()
    assert row["n"] == 5 and list(row["each"]) == [0, 1, 2, 4, 5]
    assert list(row["each"].values()) == pytest.approx(each.to_numpy())
    found = stats.ttest_1samp(each.to_numpy(), 0).confidence_interval(0.95)
    assert (row["difference"].low, row["difference"].high) == pytest.approx((found.low, found.high))
    assert row["p"] == row["smallest_p"] == 2**-4  # HPT is above GRPO with every seed
    assert row["problems"].units == 80
    assert row["problems"].mean == pytest.approx(row["difference"].mean)


def test_the_table_shows_each_seed_both_intervals_and_three_ps(runs: loading.Runs) -> None:
    sheet = Comparison("gains", small(), ("SFT", "GRPO"), arms=("HPT",)).sheet(runs)
    titles = [head.title for head in sheet.heads]
    assert titles == [
        "Arm",
        "Against",
        "Seeds",
        "Difference",
        "Each seed",
        "p",
        "Smallest p",
        "Holm p",
        "Over problems",
    ]
    first, second = sheet.rows
    assert [entry.text for entry in first[:3]] == ["HPT", "SFT", "n = 6"]
    assert len(first[4].text.split()) == 6 and len(second[4].text.split()) == 5
    assert [entry.text for entry in first[5:8]] == ["0.0312", "0.0312", "0.0625"]
    row = rows_of(sheet)[0]
    assert (
        float(row["over_problems_low"])
        < float(row["difference"])
        < float(row["over_problems_high"])
    )
    assert row["each_seed"].startswith("0:")
    notes = " ".join(sheet.notes)
    assert "mean over chain, nesting, composed" in notes
    assert "over seeds (n = 5 to 6)" in notes
    assert "120 problems resampled with all their seeds and samples" in notes
    assert "1 of 19 runs is not finished" in notes


def test_holms_p_marks_a_difference_only_where_the_family_allows_it(runs: loading.Runs) -> None:
    def bold(alpha: float, **fields: object) -> list[bool]:
        made = Comparison("gains", small(), "SFT", alpha=alpha, **fields)
        return [row[3].best for row in made.sheet(runs).rows]

    assert bold(0.05, arms=("HPT",)) == [True]  # one comparison: 1/32
    assert bold(0.05) == [False, False]  # two comparisons: 1/16
    assert bold(0.07)[1]


def test_fewer_than_five_seeds_are_descriptive(tmp_path: Path) -> None:
    study = small(seeds=range(3))
    record(study, tmp_path)
    found = loading.runs(study, tmp_path)
    sheet = Comparison("gains", study, "SFT", arms=("HPT",)).sheet(found)
    (row,) = sheet.rows
    assert row[2].text == "n = 3, descriptive"
    assert (row[5].text, row[6].text) == ("0.25", "0.25")
    assert any("over seeds (n = 3, descriptive)" in note for note in sheet.notes)


def test_a_model_left_as_it_is_stands_beside_every_seed(runs: loading.Runs) -> None:
    comparison = Comparison("gains", small(), "base", arms=("HPT", "GRPO"), suites=("chain",))
    sheet = comparison.sheet(runs)
    assert [row[2].text for row in sheet.rows] == ["n = 6", "n = 5"]
    assert any(note == "base is one model, the same beside every seed." for note in sheet.notes)
    frame = loading.pick(runs.evaluations, suite="chain")
    shares = 100 * frame["correct"] / frame["samples"]
    means = frame.assign(share=shares).groupby(["label", "seed"])["share"].mean()
    wanted = means["HPT"] - means["base"].item()
    assert list(comparison.frame(runs)["each"][0].values()) == pytest.approx(wanted.to_numpy())


def test_arms_without_runs_stay_in_the_family(tmp_path: Path) -> None:
    study = small(seeds=range(6))
    record(study, tmp_path, skip=tuple(("HPT", seed) for seed in range(6)))
    comparison = Comparison("gains", study, "SFT")
    sheet = comparison.sheet(loading.runs(study, tmp_path))
    grpo, hpt = rows_of(sheet)
    assert [entry.text for entry in sheet.rows[1][2:]] == ["–"] * 7
    assert hpt["n"] == "0" and hpt["p"] == ""
    assert float(grpo["holm_p"]) == min(1, 2 * float(grpo["p"]))


def test_several_k_are_one_family(runs: loading.Runs) -> None:
    sheet = Comparison(
        "gains", small(), "SFT", arms=("HPT",), suites=("composed",), k=(1, 32)
    ).sheet(runs)
    assert [row[2].text for row in sheet.rows] == ["1", "32"]
    rows = rows_of(sheet)
    assert [float(row["holm_p"]) for row in rows] == [min(1, 2 * float(row["p"])) for row in rows]
    assert any("Pass@1 and Pass@32 (percent), composed" in note for note in sheet.notes)


def test_a_metric_of_training_is_compared_by_its_mean_over_steps(runs: loading.Runs) -> None:
    comparison = Comparison("entropy", small(), "GRPO", arms=("SFT",), metric="policy/entropy")
    (row,) = comparison.frame(runs).to_dict("records")
    means = runs.history.groupby(["label", "seed"])["policy/entropy"].mean()
    wanted = (means["SFT"] - means["GRPO"]).dropna()
    assert list(row["each"].values()) == pytest.approx(wanted.to_numpy())
    sheet = comparison.sheet(runs)
    assert sheet.rows[0][-1].text == "–"  # no problems to resample
    assert "mean over steps" in sheet.notes[0]
    assert not any("Over problems" in note for note in sheet.notes)


def test_across_suites_has_the_middle_half_and_the_chance_to_improve(runs: loading.Runs) -> None:
    across = AcrossSuites("across", small(), "GRPO")
    frame = across.frame(runs).set_index("label")
    shares = runs.evaluations.assign(
        share=100 * runs.evaluations["correct"] / runs.evaluations["samples"]
    )
    means = (
        loading.pick(shares, label="SFT", suite=runs.suites.inside)
        .groupby(["seed", "suite"])["share"]
        .mean()
    )
    assert frame.loc["SFT", "iqm"].mean == pytest.approx(stats.trim_mean(means.to_numpy(), 0.25))
    assert frame.loc["SFT", "iqm"].low < frame.loc["SFT", "iqm"].mean < frame.loc["SFT", "iqm"].high
    assert frame.loc["SFT", "n"] == 6 and frame.loc["GRPO", "n"] == 5
    assert frame.loc["GRPO", "improvement"] is None
    assert frame.loc["HPT", "improvement"].mean > 0.9
    sheet = across.sheet(runs)
    assert [row[0].text for row in sheet.rows] == list(ARMS)
    base = sheet.rows[0]
    assert "[" not in base[2].text  # one run has no interval
    assert any("With 5 runs a percentile bootstrap covers less" in note for note in sheet.notes)


def test_across_few_seeds_is_descriptive(tmp_path: Path) -> None:
    study = small(seeds=range(3))
    record(study, tmp_path)
    notes = AcrossSuites("across", study, "GRPO").sheet(loading.runs(study, tmp_path)).notes
    assert "Runs: one a seed (n = 3, descriptive)." in notes


# --- figures of training --------------------------------------------------------------------------


def test_many_seeds_have_a_band_and_each_is_drawn_thinner(runs: loading.Runs) -> None:
    found = Figure("f", small(), smooth=5).panels(runs)
    (panel,) = found.panels
    assert isinstance(panel, Panel)
    assert [len(line.runs) for line in panel.lines] == [6, 5, 6]
    for line in panel.lines:
        assert line.band is not None
        assert np.mean([y for _, y in line.runs], axis=0) == pytest.approx(line.y)
    assert "Line: mean over seeds (n = 5 to 6). Faint: each seed." in found.note
    assert "Band: 95% t interval over seeds (n = 5 to 6)." in found.note
    first = panel.lines[0]
    few, many = (
        widths(replace(panel, lines=(replace(first, runs=each),)))
        for each in (first.runs[:3], first.runs)
    )
    assert (len(few), len(many)) == (3, 6) and max(many) < min(few)


def widths(panel: Panel) -> list[float]:
    """Of the faint lines on its page."""
    (ax,) = draw([panel], looks(["SFT"])).axes
    return [line.get_linewidth() for line in ax.lines if (line.get_alpha() or 1) < 1]


# --- figures of Pass@k ----------------------------------------------------------------------------


def test_pass_at_k_draws_each_seed_and_names_what_its_band_is_over(runs: loading.Runs) -> None:
    found = {
        over: PassAtK("p", small(), suites=("composed",), over=over).panels(runs)
        for over in ("seeds", "problems", "samples")
    }
    widths = []
    for panels in found.values():
        line = panels.panels[0].lines[-1]
        assert len(line.runs) == 6
        assert line.y == pytest.approx(np.mean([y for _, y in line.runs], axis=0))
        widths.append(line.band[1][0] - line.band[0][0])
    assert "Faint: each seed." in found["seeds"].note
    assert (
        "interval over samples (n = 64 a problem), not over training runs" in found["samples"].note
    )
    assert widths[2] < widths[0] < widths[1]
    mine = loading.pick(runs.evaluations, label="HPT", suite="composed")
    wanted = mean_pass_at_k_over_samples(mine["samples"], mine["correct"], [1])
    assert widths[2] == pytest.approx(100 * (wanted.high - wanted.low)[0])


def test_the_papers_estimator_is_lower_at_every_k_but_one(runs: loading.Runs) -> None:
    both = [
        PassAtK("p", small(), suites=("chain",), estimator=name).panels(runs)
        for name in ("unbiased", "with_replacement")
    ]
    fair, low = (each.panels[0].lines[-1].y for each in both)
    assert fair[0] == pytest.approx(low[0])
    assert np.all(low[1:] < fair[1:])
    assert "biased low" in both[1].note and "biased" not in both[0].note
    with pytest.raises(ValueError, match="did you mean with_replacement"):
        PassAtK("p", small(), estimator="with_replacment")
    with pytest.raises(ValueError, match="over is 'samples'"):
        PassAtK("p", small(), over="samples", estimator="with_replacement")


# --- reports --------------------------------------------------------------------------------------


def test_a_report_writes_the_same_statistics_again(root: Path) -> None:
    study = small()
    outputs = (Comparison("gains", study, ("SFT", "GRPO")), AcrossSuites("across", study, "GRPO"))
    first = report(study, outputs, root)
    tables = [f"{name}.{kind}" for name in ("gains", "across") for kind in ("md", "tex", "csv")]
    figures = [f"gains.{kind}" for kind in ("pdf", "svg", "png")]
    assert [path.name for path in first.paths] == [*tables, *figures, "report.html"]
    written = [path.read_bytes() for path in first.paths]
    assert [path.read_bytes() for path in report(study, outputs, root).paths] == written
    declared = outputs[0].declared.encode()
    assert declared in written[1]  # LaTeX has the notes as comments, unescaped
    for one, two in pairwise(written):
        assert one != two


def test_a_forest_has_a_row_for_each_pair_and_a_point_for_each_seed(runs: loading.Runs) -> None:
    comparison = Comparison("gains", small(), ("SFT", "GRPO"), arms=("HPT",), alpha=0.0626)
    page = forest(comparison, runs)
    assert page is not None
    (ax,) = page.axes
    minus = "\N{MINUS SIGN}"
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        f"HPT {minus} SFT",
        f"HPT {minus} GRPO",
    ]
    seeds = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    frame = comparison.frame(runs)
    assert [list(each) for each in seeds] == [list(each.values()) for each in frame["each"]]
    means = [line for line in ax.lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in means] == [each.mean for each in frame["difference"]]
    filled = [line.get_markerfacecolor() for line in means]
    assert filled == ["#d55e00" if p <= 0.0626 else "white" for p in frame["holm_p"]]
    untrained = Study("empty", dict(small().recipes), seeds=(99,), evaluation=small().evaluation)
    empty = loading.runs(untrained, runs.frames.root)
    assert forest(Comparison("gains", untrained, "SFT"), empty) is None


def test_a_plan_prints_what_is_declared_and_refuses_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
from analysis import Change, Comparison
from workbench import Data, Recipe, Study, upge

base = Recipe("arithmetic-1m", Data("arithmetic"), steps=2)
arms = {{"SFT": base.using(upge.sft()), "GRPO": base.using(upge.grpo())}}
study = Study("declared", arms, seeds=range(6))
gains = Comparison("gains", study, {baseline!r})
longer = Change("longer", study, "length/all", ((0, 0.5), (0.5, 1)))
"""
    path = tmp_path / "declared.py"
    path.write_text(text.format(baseline="SFT"))
    assert main(["plan", str(path), "--root", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "gains: Declared: 1 comparison of Pass@1" in printed and "Hash " in printed
    assert "longer: Declared: 2 changes of Response length (tokens) within a run" in printed
    wrong = tmp_path / "wrong.py"
    wrong.write_text(text.format(baseline="SFTT"))
    assert main(["run", str(wrong), "--root", str(tmp_path)]) == 2
    assert "did you mean SFT?" in capsys.readouterr().err
    assert not (tmp_path / "cells").exists()
