"""A full disk at any write: told with path and bytes, nothing lost, gone on with after."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import assert_same, attempt
from lives import LIVES, live
from mounts import mounted, remount

from workbench.records import Run
from workbench.schema import Failure
from workbench.training import checkpoint

pytestmark = pytest.mark.faults

# The points from which on nothing can be written, by what comes before the attempt that meets them,
# with the newest checkpoint that is then whole.
FULL = {
    "from its beginning": {
        "provenance.json.begun": None,
        "data.json.begun": None,
        "metrics.jsonl.torn": None,
        "questions.jsonl.torn": None,
        "rollouts.begun": None,
        "checkpoints.begun": None,
        "progress.json.begun": None,
        "manifest.json.begun": None,
        "history.parquet.begun": 3,
        "questions.parquet.begun": 3,
        "result.json.begun": 3,
        "evaluations.begun": 3,
    },
    "recorded while the next step is drawn": {
        "metrics.jsonl.torn:2": None,
        "questions.jsonl.torn:2": None,
    },
    "after a kill": {"metrics.dropped.jsonl.begun": 1, "questions.jsonl.begun": 1},
    "with a probe": {"probes.begun": 3},
    "measured in parts": {"counted.begun": 3},
}


def test_every_write_of_a_worker_meets_a_full_disk() -> None:
    """The others are of the same kind: a record that was begun again, or what the launcher asks."""
    first = {p.partition(":")[0] for points in LIVES.values() for p in points}
    first = {p for p in first if p.endswith((".begun", ".torn"))}
    others = {"metrics.jsonl.begun", "questions.dropped.jsonl.begun"}
    others |= {"spec.json.begun", "failure.json.begun", "asked.begun"}
    assert {p.partition(":")[0] for points in FULL.values() for p in points} == first - others


@pytest.mark.parametrize(
    ("life", "point"), [(life, point) for life, points in FULL.items() for point in points]
)
def test_a_disk_that_is_full_at_a_write_loses_nothing(
    life: str, point: str, begun: Callable[[str], Run], undisturbed: Callable[[str], Run]
) -> None:
    run = begun(life)
    assert live(life, run, full=point) == 1
    assert run.failure is not None
    assert run.failure["kind"] == Failure.DISK
    assert re.search(rf"no room for {run.path}/.*: [\d,]+ bytes", run.failure["reason"])
    assert checkpoint.latest(run) == FULL[life][point]
    assert live(life, run) == 0
    assert_same(run, undisturbed(life))


def test_a_disk_that_stays_full_ends_the_run_all_the_same(
    tmp_path: Path, undisturbed: Callable[[str], Run]
) -> None:
    run = Run(tmp_path / "seed-0")
    assert attempt(run, full="!checkpoints.begun") == 1
    assert run.failure is None  # there was no room for it either; the launcher tells
    assert attempt(run) == 0
    assert_same(run, undisturbed("from its beginning"))


def test_a_file_system_that_is_too_small(tmp_path: Path, undisturbed: Callable[[str], Run]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The weights fit, the optimizer's state does not.
    with mounted(disk, "-t", "tmpfs", "-o", "size=6m", "none"):
        run = Run(disk / "seed-0")
        assert attempt(run) == 1
        assert run.failure is not None
        assert run.failure["kind"] == Failure.DISK
        assert "step-000001" in run.failure["reason"]
        remount(disk, "size=100m")
        assert attempt(run) == 0
        assert_same(run, undisturbed("from its beginning"))
