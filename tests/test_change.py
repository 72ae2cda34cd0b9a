"""Declared changes within runs: what they refuse, their hash, and their tables and figures."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small import STEPS, make_study, record

from analysis import Change, report
from analysis import load as loading
from analysis.forest import forest
from analysis.scores import inside
from workbench.identity import fingerprint
from workbench.study import Study

ARMS = ("base", "SFT", "GRPO", "SFT->GRPO", "HPT")
GROWS_AND_STAYS = ((0, 1 / 4), (3 / 8, 5 / 8), (3 / 4, 1))
QUARTER = STEPS // 4


def small(name: str = "changed", **fields: object) -> Study:
    return make_study(name, ARMS, **{"seeds": range(6), **fields})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seeds of five arms, but GRPO's fourth and all of SFT's."""
    folder = tmp_path_factory.mktemp("mlruns")
    skip = [("GRPO", 3), *(("SFT", seed) for seed in range(6))]
    record(small(), folder, skip=tuple(skip))
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> loading.Runs:
    return loading.runs(small(), root)


# --- declarations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(metric="length/al"), "no metric 'length/al'; did you mean length/all"),
        (dict(arms=("HTP",)), "Change.arms names arm 'HTP'; did you mean HPT"),
        (
            dict(arms=("base",)),
            "'base', which is not trained; choose of: SFT, GRPO, SFT->GRPO, HPT",
        ),
        (dict(windows=((0, 1),)), r"two or more .* got \(\(0.0, 1.0\),\); such as \(\(0.0, 0.25\)"),
        (dict(windows=((0, 0.5), (0.4, 1))), "one after the other"),
        (dict(windows=((0, 0.5), (1, 0.6))), "one after the other"),
        (dict(windows=((0, 0), (0, 1))), "one after the other"),
        (dict(windows=((0, 0.5), (0.5, 1.5))), "a share from 0 to 1, got 1.5 .*the nearest is 1"),
        (dict(alpha=1.0), "a chance above 0 and below 1"),
        (dict(windows=((0, 0.001), (0.5, 1))), r"no step in the window \(0.0, 0.001\) of the 60"),
    ],
    ids=str,
)
def test_a_wrong_change_is_named_before_any_training(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Change("c", small(), **{"metric": "length/all", **fields}).check()


def test_a_study_that_trains_nothing_has_no_change() -> None:
    with pytest.raises(ValueError, match="has no arm that is trained"):
        Change("c", make_study(arms=("base",)), "length/all")


@pytest.mark.parametrize(
    ("total", "counts"), [(60, (15, 15)), (48, (12, 12)), (5, (1, 1)), (2, (0, 1))]
)
def test_steps_lie_in_a_window_by_their_middle(total: int, counts: tuple[int, int]) -> None:
    steps = np.arange(1.0, total + 1)
    halves = [inside(steps, total, half) for half in ((0, 0.5), (0.5, 1))]
    assert not (halves[0] & halves[1]).any() and (halves[0] | halves[1]).all()
    quarters = [inside(steps, total, each) for each in ((0, 1 / 4), (3 / 4, 1))]
    assert tuple(each.sum() for each in quarters) == counts


def test_the_hash_is_of_all_that_is_decided_and_of_nothing_else() -> None:
    first = Change("c", small(), "length/all", arms=("HPT",))
    same = Change("d", small("another"), "length/all", ((0, 1 / 4), (3 / 4, 1)), arms=["HPT"])
    assert fingerprint(first.family) == fingerprint(same.family)
    others = [
        replace(first, arms=("GRPO",)),
        replace(first, metric="policy/entropy"),
        replace(first, windows=GROWS_AND_STAYS),
        replace(first, alpha=0.01),
        replace(first, seed=1),
        replace(first, study=small(seeds=range(5))),
    ]
    hashes = [fingerprint(each.family) for each in (first, *others)]
    assert len(set(hashes)) == len(hashes)
    assert f"Hash {hashes[0][:16]}." in first.declared
    assert "Declared: 1 change of Response length (tokens) within a run" in first.declared
    assert "the smallest Holm p that 6 seeds can attain is 0.0312" in first.declared


# --- tables ---------------------------------------------------------------------------------------


def test_a_change_is_of_the_same_run_late_minus_early(runs: loading.Runs) -> None:
    change = Change("c", small(), "length/all", arms=("HPT",))
    (row,) = change.frame(runs).to_dict("records")
    history = loading.pick(runs.history, label="HPT")
    early = history[history["step"] <= QUARTER].groupby("seed")["length/all"].mean()
    late = history[history["step"] > STEPS - QUARTER].groupby("seed")["length/all"].mean()
    each = (late - early).to_numpy()
    assert list(row["each"].values()) == pytest.approx(each)
    assert (row["before"], row["after"]) == pytest.approx((early.mean(), late.mean()))
    found = stats.ttest_1samp(each, 0).confidence_interval(0.95)
    assert (row["difference"].low, row["difference"].high) == pytest.approx((found.low, found.high))
    assert row["p"] == row["smallest_p"] == row["holm_p"] == 2**-5  # it grows with every seed


def test_growing_and_staying_are_two_changes_of_each_arm_in_one_family(runs: loading.Runs) -> None:
    change = Change("c", small(), "length/all", GROWS_AND_STAYS, arms=("HPT", "GRPO"))
    sheet = change.sheet(runs)
    assert [[entry.text for entry in row[:2]] for row in sheet.rows] == [
        ["HPT", "0–25% → 37.5–62.5%"],
        ["HPT", "37.5–62.5% → 75–100%"],
        ["GRPO", "0–25% → 37.5–62.5%"],
        ["GRPO", "37.5–62.5% → 75–100%"],
    ]
    assert [head.title for head in sheet.heads] == [
        "Arm", "Steps", "Before", "After", "Seeds", "Difference", "Each seed", "p", "Smallest p",
        "Holm p",
    ]  # fmt: skip
    rows = list(csv.DictReader(sheet.csv().splitlines()))
    assert [row["n"] for row in rows] == ["6", "6", "5", "5"]
    assert [len(row["each_seed"].split()) for row in rows] == [6, 6, 5, 5]
    assert float(rows[0]["after"]) == pytest.approx(float(rows[1]["before"]))
    assert min(float(row["holm_p"]) for row in rows) == 4 * 2**-5
    notes = " ".join(sheet.notes)
    assert change.size == 4 and "Declared: 4 changes" in notes
    assert "Difference: after minus before, in the same run" in notes
    assert "over seeds (n = 5 to 6)" in notes


def test_arms_without_runs_stay_in_the_family(runs: loading.Runs) -> None:
    change = Change("c", small(), "length/all")
    sheet = change.sheet(runs)
    assert [row[0].text for row in sheet.rows] == ["SFT", "GRPO", "SFT->GRPO", "HPT"]
    assert {entry.text for entry in sheet.rows[0][2:]} == {"–"}
    rows = list(csv.DictReader(sheet.csv().splitlines()))
    assert (rows[0]["n"], rows[0]["p"]) == ("0", "")
    assert float(rows[3]["holm_p"]) == 4 * float(rows[3]["p"])


def test_fewer_than_five_seeds_are_descriptive(tmp_path: Path) -> None:
    study = small(seeds=range(3))
    record(study, tmp_path)
    change = Change("c", study, "length/all", arms=("HPT",))
    (row,) = change.sheet(loading.runs(study, tmp_path)).rows
    assert row[4].text == "n = 3, descriptive"
    assert "none can reach alpha: descriptive" in change.declared


# --- reports --------------------------------------------------------------------------------------


def test_a_change_is_written_as_a_table_and_a_figure(root: Path, runs: loading.Runs) -> None:
    change = Change("length", small(), "length/all", GROWS_AND_STAYS, arms=("HPT",))
    names = [path.name for path in report(small(), [change], root).paths]
    kinds = ("md", "tex", "csv", "pdf", "svg", "png")
    assert names == [*(f"length.{kind}" for kind in kinds), "report.html"]
    page = forest(change, runs)
    assert page is not None
    (ax,) = page.axes
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["HPT, 0–25% → 37.5–62.5%", "HPT, 37.5–62.5% → 75–100%"]
    assert ax.get_xlabel() == "Change of Response length (tokens)"
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [6, 6]  # type: ignore
