"""Tables of records give the frames that the lines give, and never others."""

from pathlib import Path

import pandas as pd
import pytest
from small import make_study, record

from analysis import records
from workbench import plan
from workbench.cli import main
from workbench.compact import TABLES, read, write_tables
from workbench.records import Run
from workbench.schema import File


@pytest.fixture
def run(tmp_path: Path) -> Run:
    study = make_study(arms=("HPT",), seeds=[0])
    record(study, tmp_path)
    (job,) = plan.jobs(study, tmp_path)
    return job.run


@pytest.mark.parametrize("frame", [records.history, records.questions], ids=lambda f: f.__name__)
def test_a_table_gives_the_frame_of_its_lines_beside_them_and_alone(frame, run):
    expected = frame(run)
    write_tables(run, run.path)
    pd.testing.assert_frame_equal(frame(run), expected)
    for lines in TABLES:
        (run.path / lines).unlink()
    pd.testing.assert_frame_equal(frame(run), expected)


def test_a_table_is_read_only_where_it_is_of_these_very_lines(run):
    write_tables(run, run.path)
    path = run.path / File.METRICS
    assert "reward/mean" in read(run, File.METRICS).column_names
    path.write_text(path.read_text().replace("reward/mean", "reward/maen"))
    assert "reward/mean" not in read(run, File.METRICS).column_names
    run.append(File.METRICS, {"step": 61, "timestamp": 1})
    assert records.history(run)["step"].iloc[-1] == 61


def test_a_table_of_no_run_of_the_workbench_is_read_where_there_are_no_lines(run):
    (run.path / File.METRICS).unlink()
    pd.DataFrame({"step": [1], "timestamp": [2], "a/b": [0.5]}).to_parquet(
        run.path / File.HISTORY_TABLE
    )
    assert records.history(run)["a/b"].tolist() == [0.5]


STUDIES = """
from small import make_study
from analysis import Table

first = make_study("first", arms=("SFT", "HPT"))
second = make_study("second", arms=("LUFFY",))
tables = Table("results", first), Table("results", second)
"""


def test_partial_records_are_exported_and_reported_with_what_is_missing(tmp_path, capsys):
    file, root, kept = tmp_path / "studies.py", tmp_path / "mlruns", tmp_path / "kept"
    file.write_text(STUDIES)
    elsewhere = ["--root", str(tmp_path / "fresh"), "--from", str(kept), "--only", "results"]
    record(make_study(arms=("SFT", "HPT")), root, skip=(("HPT", 1), ("HPT", 2)))
    assert main(["export", str(file), "--root", str(root), "--to", str(kept)]) == 0
    assert main(["report", str(file), *elsewhere]) == 0
    said = capsys.readouterr()
    assert "HPT (seed 1), HPT (seed 2)" in said.out
    assert "not reported: study 'second' has no finished run" in said.err
    table = (tmp_path / "fresh" / "reports" / "first" / "results.md").read_text()
    assert "2 of 6 runs are not finished and left out" in table
    (tmp_path / "none").mkdir()
    assert main(["report", str(file), "--from", str(tmp_path / "none")]) == 2
