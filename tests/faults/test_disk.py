"""A full disk at any write: told with path and bytes, nothing lost, gone on with after."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import assert_same, attempt

from workbench.records import Run
from workbench.schema import Failure
from workbench.training import checkpoint

pytestmark = pytest.mark.faults

# The point from which on nothing can be written, and the newest checkpoint that is then whole.
FULL = {
    "provenance.json.begun": None,
    "metrics.jsonl.torn": None,
    "questions.jsonl.torn": None,
    "rollouts.begun": None,
    "checkpoints.begun": None,
    "progress.json.begun": None,
    "manifest.json.begun": None,
    "history.parquet.begun": 3,
    "result.json.begun": 3,
    "evaluations.begun": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole") / "seed-0")
    assert attempt(run) == 0
    return run


@pytest.mark.parametrize("point", FULL)
def test_a_disk_that_is_full_at_a_write_loses_nothing(
    point: str, tmp_path: Path, whole: Run
) -> None:
    run = Run(tmp_path / "seed-0")
    assert attempt(run, full=point) == 1
    assert run.failure is not None
    assert run.failure["kind"] == Failure.DISK
    assert re.search(rf"no room for {run.path}/.*: [\d,]+ bytes", run.failure["reason"])
    assert checkpoint.latest(run) == FULL[point]
    assert attempt(run) == 0
    assert_same(run, whole)


def test_a_disk_that_stays_full_ends_the_run_all_the_same(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path / "seed-0")
    assert attempt(run, full="!checkpoints.begun") == 1
    assert run.failure is None  # there was no room for it either; the launcher tells
    assert attempt(run) == 0
    assert_same(run, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 6 MB: the weights fit, the optimizer's state does not."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_file_system_that_is_too_small(small_disk: Path, whole: Run) -> None:
    run = Run(small_disk / "seed-0")
    assert attempt(run) == 1
    assert run.failure is not None
    assert run.failure["kind"] == Failure.DISK
    assert "step-000001" in run.failure["reason"]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert attempt(run) == 0
    assert_same(run, whole)
