"""Run directories: durable, torn lines dropped, garbage refused, one holder."""

import fcntl
import json
import os
import threading

import pytest

from workbench import Data, Evaluation, Recipe, durable, replace, upge
from workbench.records import Held, Run, append_line, new_file, read_lines, run_of, write_json
from workbench.schema import File

RECIPE = Recipe("arithmetic-1m", Data("arithmetic"), upge.hpt())


@pytest.fixture
def run(tmp_path):
    found = run_of(tmp_path, RECIPE, 3)
    found.create(RECIPE, 3)
    return found


def test_a_spec_restores_the_recipe(run):
    assert run.recipe() == RECIPE
    assert run.seed == 3
    assert run.path.parent.name.startswith("hpt-")
    assert run.spec["parameters"]["method.gate"] == "Switch(0.0)"
    assert run.spec["parameters"]["method.gate.at_most"] == "0.0"


def test_directories_follow_the_recipe_and_nothing_else(tmp_path):
    paths = {
        run_of(tmp_path, recipe, seed).path
        for recipe in (RECIPE, replace(RECIPE, steps=41), RECIPE.using(upge.grpo()))
        for seed in (0, 1)
    }
    assert len(paths) == 6


def test_a_torn_last_line_is_left_out_and_cut_off_before_the_next(run, caplog):
    run.append(File.METRICS, {"step": 1})
    path = run.path / File.METRICS
    path.write_bytes(path.read_bytes() + b'{"step": 2, "rew')
    assert run.rows() == [{"step": 1}]
    assert "torn" in caplog.text
    run.append(File.METRICS, {"step": 2})
    assert run.rows() == [{"step": 1}, {"step": 2}]


def test_garbage_before_the_last_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(b'{"a":1}\n\x00\x00garbage\n{"a":2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)


def test_a_run_has_one_holder_at_a_time(run):
    with run.claim():
        assert run.held
        with pytest.raises(Held, match="is held by process"), Run(run.path).claim():
            pass
    assert not run.held


def test_a_look_at_whether_a_run_is_held_keeps_nobody_from_it(run):
    with run.claim():
        pass
    with open(run.path / File.LOCK) as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # what `held` does, for a moment
        done = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        with run.claim():
            assert run.held
        done.join()


def test_rewind_sets_later_rows_aside_and_remembers_their_times(run):
    for step in (1, 2, 3):
        run.append(File.METRICS, {"step": step, "timestamp": 100 + step, "reward/mean": step / 10})
        run.append(File.QUESTIONS, {"step": step})
    assert run.rewind(1) == {2: 102, 3: 103}
    assert [row["step"] for row in run.rows()] == [1]
    assert [row["step"] for row in run.rows(File.QUESTIONS)] == [1]
    dropped = read_lines(run.path / "metrics.dropped.jsonl")
    assert [row["step"] for row in dropped] == [2, 3]


def test_only_a_result_makes_a_run_finished(run):
    run.fail("error", "it broke")
    assert not run.finished and run.failure == {"kind": "error", "reason": "it broke"}
    run.finish({"steps": 1})
    assert run.finished and run.failure is None and run.result == {"steps": 1}


def test_a_file_that_fails_half_way_is_not_there(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), new_file(path, "w") as handle:
        handle.write("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def _write_folder(path):
    with durable.new_folder(path, "folder") as folder:
        (folder / "file").write_text("x")


# What is done to a path, and whether a file, a folder or nothing is there before.
NAMED = {
    "a new file": (lambda path: write_json(path, {}), ""),
    "a new folder": (_write_folder, ""),
    "a folder in place of one": (_write_folder, "folder"),
    "the first line": (lambda path: durable.append(path, b"line\n"), ""),
    "a file that goes": (durable.remove, "file"),
    "a folder that goes": (lambda path: durable.remove_tree(path, "folder"), "folder"),
    "one that moves in": (lambda path: durable.move(path.parent / "other", path, "x"), ""),
    "one that moves out": (lambda path: durable.move(path, path.parent / "a" / "b", "x"), "file"),
}


@pytest.mark.parametrize("what", NAMED)
def test_a_name_is_durable_once_it_is_there_or_gone(what, tmp_path, monkeypatch):
    act, before = NAMED[what]
    path, synced = tmp_path / "folder" / "path", []
    path.parent.mkdir()
    (path.parent / "other").touch()
    if before == "folder":
        path.mkdir()
    elif before:
        path.touch()

    def fsync(descriptor):
        if os.path.samestat(os.fstat(descriptor), path.parent.stat()):
            synced.append(path.exists())

    monkeypatch.setattr(os, "fsync", fsync)
    act(path)
    assert synced and synced[-1] is path.exists()


def test_a_line_more_needs_no_new_name(tmp_path, monkeypatch):
    durable.append(tmp_path / "lines", b"one\n")
    monkeypatch.setattr(durable, "sync", lambda _: pytest.fail("for nothing"))
    durable.append(tmp_path / "lines", b"two\n")


@pytest.mark.parametrize(
    "words",
    [
        "cannot write: No space left on device (os error 28)",
        "##### File history.parquet #####\n[Errno 28] No space left on device",
    ],
)
def test_a_full_disk_that_is_told_in_words_is_one(words, tmp_path):
    """As safetensors does and, for what its threads could not download, MLflow."""
    with (
        pytest.raises(durable.DiskFull, match=r"no room for .*: 5 bytes of it were written"),
        durable.new_folder(tmp_path / "made", "made") as folder,
    ):
        (folder / "part").write_text("bytes")
        raise RuntimeError(words)
    assert not list(tmp_path.iterdir())


def test_evaluations_have_an_identity_of_their_own(run):
    def paths(evaluation):
        return {run.evaluation_path(m).name for m in evaluation.measurements(("a", "b"), RECIPE)}

    plain = paths(Evaluation(samples=16))
    assert paths(Evaluation(samples=16)) == plain
    assert len(paths(Evaluation(samples=16, more=(("a", 64),))) & plain) == 1
    assert not paths(Evaluation(samples=16, temperature=1.0)) & plain
    with pytest.raises(ValueError, match="did you mean"):
        Evaluation(suites=("aa",)).measurements(("a", "bb"), RECIPE)


def test_append_creates_the_folder(tmp_path):
    append_line(tmp_path / "new" / "x.jsonl", {"a": 1})
    assert read_lines(tmp_path / "new" / "x.jsonl") == [{"a": 1}]
