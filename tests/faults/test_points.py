"""Killed at every fault point, a run that goes on ends as the one that was never disturbed.

Every durable write has its points by itself (see `workbench.durable`). The table of lives lists
those that a worker passes; one that is not in it fails the suite, and so does one that no worker
passes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import assert_same, attempt, passed_path
from lives import KILLED_EARLIER, LIVES, live

from workbench.records import Run

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("life", "point"), [(life, point) for life, points in LIVES.items() for point in points]
)
def test_killed_at_a_point_and_resumed_it_ends_the_same(
    life: str, point: str, begun: Callable[[str], Run], undisturbed: Callable[[str], Run]
) -> None:
    run = begun(life)
    assert live(life, run, fault=point) == -9, "it never came by"
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
