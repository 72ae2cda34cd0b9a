"""Killed at every fault point, a run that goes on ends as the one that was never disturbed.

Every durable write has its points by itself (see `workbench.durable`). The table below lists those
that a worker passes in its life; one that is not in it fails the suite, and so does one that no
worker passes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import assert_same, attempt, passed_path

from workbench.records import Run

pytestmark = pytest.mark.faults


def new(name: str) -> list[str]:
    """The points of a file that is written whole."""
    return [f"{name}.{stage}" for stage in ("begun", "written", "renamed")]


def lines(name: str) -> list[str]:
    """The points of a record: the second line of it, so that there is one before."""
    return [f"{name}.{stage}:2" for stage in ("torn", "appended")]


KILLED_EARLIER = "metrics.jsonl.appended:3"  # recorded, and its checkpoint not yet saved
AGAIN = [2]  # a step whose checkpoint a finished run keeps neither as the best nor as the last

# What came before the attempt that is killed, what it is asked for, and the points that it passes.
LIVES = {
    "from its beginning": [
        *new("spec.json"),
        *new("provenance.json"),
        *new("data.json"),
        *lines("metrics.jsonl"),
        *lines("questions.jsonl"),
        *new("rollouts"),
        *new("checkpoints"),
        *new("progress.json"),
        *new("manifest.json"),
        "checkpoints.hidden",
        "checkpoints.removed",
        *new("history.parquet"),
        *new("questions.parquet"),
        *new("result.json"),
        *new("evaluations"),
    ],
    "after a kill": [
        *new("metrics.dropped.jsonl"),
        *new("metrics.jsonl"),
        *new("questions.dropped.jsonl"),
        *new("questions.jsonl"),
        "rollouts.removed",
    ],
    "with an error": new("failure.json"),
    "after an error": ["failure.json.removed"],
    "with a probe": [*new("asked"), *new("probes")],
    "for a checkpoint": ["checkpoints.moved", "again.hidden", "again.removed"],
}


def live(life: str, run: Run, fault: str = "") -> int:
    """One attempt of that life, with what comes before it."""
    if life == "after a kill" and not run.path.exists():
        assert attempt(run, KILLED_EARLIER) == -9
    if life == "after an error" and not run.path.exists():
        assert attempt(run, tokens=0) == 1
    if life in ("for a checkpoint", "with a probe") and not run.finished:
        assert attempt(run) == 0
    if life == "with an error":
        return attempt(run, fault, tokens=0)
    if life == "with a probe":
        return attempt(run, fault, probed=True)
    return attempt(run, fault, keep=AGAIN if life == "for a checkpoint" else ())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run that each life leads to, made once, and with the points that it passed."""
    made: dict[str, Run] = {}

    def of(life: str) -> Run:
        if life not in made:
            run = Run(tmp_path_factory.mktemp("whole") / "seed-0")
            status = live(life, run)
            assert status == (1 if life == "with an error" else 0)
            made[life] = run
        return made[life]

    return of


@pytest.mark.parametrize(
    ("life", "point"), [(life, point) for life, points in LIVES.items() for point in points]
)
def test_killed_at_a_point_and_resumed_it_ends_the_same(
    life: str, point: str, tmp_path: Path, undisturbed: Callable[[str], Run]
) -> None:
    run = Run(tmp_path / "seed-0")
    assert live(life, run, point) == -9, "it never came by"
    again = "from its beginning" if life == "with an error" else life
    assert live(again, run) == 0
    assert_same(run, undisturbed(again))


def test_every_point_that_is_passed_is_one_to_be_killed_at(
    undisturbed: Callable[[str], Run],
) -> None:
    passed = {p for life in LIVES for p in json.loads(passed_path(undisturbed(life)).read_text())}
    assert passed == {point.partition(":")[0] for points in LIVES.values() for point in points}


def test_a_step_run_again_keeps_the_time_of_its_first_record(tmp_path: Path) -> None:
    run = Run(tmp_path / "seed-0")
    assert attempt(run, KILLED_EARLIER) == -9
    first = {row["step"]: row["timestamp"] for row in run.rows()}
    assert attempt(run, "metrics.jsonl.renamed") == -9  # taken back, and not yet run again
    assert attempt(run) == 0
    again = {row["step"]: row["timestamp"] for row in run.rows()}
    assert {step: again[step] for step in first} == first
