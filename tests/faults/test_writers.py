"""Killed at what all but the worker write: a search, the driver of a cluster, the store, a report.

The table of writes names every durable one in the source with the points that it has. One that is
not in it fails the suite, and so do points at which nothing is killed. What is written otherwise is
in the table of tests/test_sources.py.
"""

import ast
import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import apart
from lives import COMMANDS, LIVES, STORE, lines, new
from small import make_study, record
from written import FILES, LIBRARY, calls

from analysis import LearningCurves, Table
from analysis.report import report
from workbench import Data, Median, Recipe, Search, trials, upge
from workbench.durable import DiskFull
from workbench.launch import local
from workbench.launch.lease import Lease
from workbench.launch.local import Launcher
from workbench.launch.room import Slot
from workbench.plan import Job
from workbench.records import Run
from workbench.resources import Resources
from workbench.search import Searcher, run

pytestmark = pytest.mark.faults

# --- which writes there are -----------------------------------------------------------------------

DURABLE = {"new_file", "new_folder", "append", "append_line", "write_json", "write_lines"} | {
    "remove", "remove_tree", "move", "fault"}  # fmt: skip

# Where something is written durably, and what its points are named after.
WRITES = {
    "workbench/records.py create": ["spec.json"],
    "workbench/records.py finish": ["result.json"],
    "workbench/records.py fail": ["failure.json"],
    "workbench/records.py forget_failure": ["failure.json"],
    "workbench/records.py ask_to_stop": ["stop.json"],
    "workbench/records.py withdraw_stop": ["stop.json"],
    "workbench/records.py append": ["metrics.jsonl", "questions.jsonl"],
    "workbench/records.py rewind": [
        "metrics.jsonl", "metrics.dropped.jsonl", "questions.jsonl", "questions.dropped.jsonl",
        "rollouts"],
    "workbench/records.py ask": ["asked"],
    "workbench/records.py write_json": [],  # what the others call, here and below
    "workbench/records.py write_lines": [],
    "workbench/records.py append_line": [],
    "workbench/compact.py write_tables": ["history.parquet", "questions.parquet"],
    "workbench/cli_search.py export": ["trials.jsonl"],
    "workbench/cli_report.py update": ["drawn"],
    "workbench/provenance.py record": ["provenance.json"],
    "workbench/provenance.py share": ["provenance.json"],
    "workbench/worker.py _complete": ["again", "counted"],
    "workbench/worker.py _make_again": ["checkpoints"],
    "workbench/training/data.py open_data": ["data.json"],
    "workbench/training/checkpoint.py save": ["checkpoints", "progress.json", "manifest.json"],
    "workbench/training/checkpoint.py prune": ["checkpoints"],
    "workbench/training/checkpoint.py discard_corrupt": ["checkpoints"],
    "workbench/training/record.py write_rollouts": ["rollouts"],
    "workbench/training/evaluation.py measure": ["counted", "evaluations"],
    "workbench/training/probe.py probe": ["probes"],
    "workbench/trials.py _append": ["trials.jsonl"],
    "workbench/launch/lease.py _write": [".driver.json", ".runner.json"],
    "workbench/tracking/store.py ensure_store": ["mlflow.db"],
    "analysis/report.py _write_text": ["report.html", "tables"],
    "analysis/panel.py save": ["figures"],
    "analysis/tracked.py _copy": ["tracked"],
}  # fmt: skip


def is_durable(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    return owner in ("", "durable", "records") and name in DURABLE


def test_every_durable_write_has_points_and_is_killed_at_each() -> None:
    found = {
        f"{file.relative_to(LIBRARY)} {function}"
        for file in FILES
        for function, call in calls(ast.parse(file.read_text()))
        if is_durable(call)
    }
    assert found == WRITES.keys()
    commands = [points for each in COMMANDS.values() for points in each.values()]
    tables = [*LIVES.values(), *OTHERS.values(), *commands, STORE]
    killed_at = {point.partition(":")[0].rpartition(".")[0] for table in tables for point in table}
    asked_of_mlflow = {"mlflow"}  # which the test alone has points for
    assert killed_at - asked_of_mlflow == {name for names in WRITES.values() for name in names}


# --- who writes them ------------------------------------------------------------------------------

KEY = "validation/pass_at_1"
BASE = Recipe("arithmetic-1m", Data("arithmetic"), steps=8)

# Holds its run as the worker does, says that it began, and takes the steps that it is told to.
STAND_IN = """
echo began >> attempts
for step in $(seq %d); do
  row="{\\"step\\": $step, \\"timestamp\\": $step, \\"validation/pass_at_1\\": %s}"
  echo "$row" >> metrics.jsonl
  sleep 0.1
  if [ -e stop.json ]; then exit 130; fi
done
echo '{"steps": 1}' > result.json
"""


def propose(trial: Any) -> Recipe:
    return BASE.using(upge.hpt(gate=upge.Switch(trial.suggest_float("at_most", 0, 1, step=0.125))))


PLAIN = Search("gate", propose, maximize=KEY, seeds=(0, 1), trials=4)
KNOWN = [{"at_most": 1.0}, {"at_most": 0.0}]
PRUNED = dataclasses.replace(
    PLAIN, name="pruned", seeds=(0,), trials=2, known=KNOWN, within_run=Median(startup=1)
)
AGAIN = dataclasses.replace(PRUNED, name="again", within_run=None)


def seek(of: Search, root: Path) -> None:
    """Runs a search with workers that score what the threshold is."""

    def command(job: Job) -> list[str]:
        score = job.recipe.method.gate.at_most + job.seed / 100  # type: ignore[union-attr]
        script = STAND_IN % (20 if of.within_run else 1, score)
        held = ["flock", "--nonblock", "--conflict-exit-code", "3", "lock", "sh", "-c"]
        return ["env", "-C", str(job.run.path), *held, script]

    local.slots = lambda _: [Slot("one"), Slot("two")][: 1 if of.within_run else 2]
    launcher = Launcher([], Resources(device="cpu"), root, command, poll=0.01)
    for _ in run(Searcher(of, root), launcher, of.trials):
        pass


def seek_again(root: Path) -> None:
    """A search that stops a run, and one that wants it whole."""
    seek(PRUNED, root)
    seek(AGAIN, root)


def hold(alone: bool, root: Path) -> None:
    with Lease(root, alone, beat=0.05).hold():
        pass


STUDY = make_study(arms=("base", "SFT"), seeds=(0, 1))


def write_report(root: Path) -> None:
    report(STUDY, [Table("results", STUDY), LearningCurves("curves", STUDY)], root)


OTHERS = {
    "a search": lines("trials.jsonl"),
    "a search that stops a run": new("stop.json"),
    "a search that wants what was stopped": ["stop.json.removed"],
    "the driver of a cluster": new(".driver.json"),
    "a runner of this host": new(".runner.json"),
    "a report": [*new("figures"), *new("report.html")],
}


def attempts(root: Path) -> list[int]:
    """How often each run was begun, once nobody trains any more."""
    while any(Run(path.parent).held for path in root.rglob("attempts")):
        time.sleep(0.02)
    return [len(path.read_text().split()) for path in root.rglob("attempts")]


@pytest.mark.parametrize("point", OTHERS["a search"])
def test_a_search_goes_on_as_if_nothing_had_been(point: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert apart(seek, PLAIN, killed, fault=point) == -9
    assert apart(seek, PLAIN, killed) == 0
    assert apart(seek, PLAIN, whole) == 0
    mine, other = trials.trials(PLAIN, killed), trials.trials(PLAIN, whole)
    assert [(t.params, t.scores) for t in mine] == [(t.params, t.scores) for t in other]
    assert len(mine) == 4
    assert set(attempts(killed)) == {1}  # what trained when the runner died was waited for


@pytest.mark.parametrize("point", OTHERS["a search that stops a run"])
def test_a_run_that_is_given_up_is_not_begun_again(point: str, tmp_path: Path) -> None:
    assert apart(seek, PRUNED, tmp_path, fault=point) == -9
    assert apart(seek, PRUNED, tmp_path) == 0
    assert attempts(tmp_path) == [1, 1]
    first, second = trials.trials(PRUNED, tmp_path)
    # A worker that nobody could ask any more comes to its end, and has its score.
    asked = point == "stop.json.renamed"
    assert (first.state, second.state) == ("complete", "pruned" if asked else "complete")


def test_a_request_to_stop_that_was_withdrawn_half_way_binds_nobody(tmp_path: Path) -> None:
    (point,) = OTHERS["a search that wants what was stopped"]
    assert apart(seek_again, tmp_path, fault=point) == -9
    assert apart(seek, AGAIN, tmp_path) == 0
    assert [t.state for t in trials.trials(AGAIN, tmp_path)] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("who", "point"),
    [(w, p) for w in ("the driver of a cluster", "a runner of this host") for p in OTHERS[w]],
)
def test_one_that_dies_as_it_takes_the_store_keeps_it_from_nobody(
    who: str, point: str, tmp_path: Path
) -> None:
    assert apart(hold, who == "the driver of a cluster", tmp_path, fault=point) == -9
    hold(True, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", OTHERS["a report"])
def test_a_report_is_written_whole_the_next_time(point: str, tmp_path: Path) -> None:
    def files(root: Path) -> dict[str, bytes]:
        found = (root / "reports" / STUDY.name).glob("[!.]*")
        return {path.name: path.read_bytes() for path in found}

    record(STUDY, tmp_path)
    write_report(tmp_path)
    before = files(tmp_path)
    assert apart(write_report, tmp_path, fault=point) == -9
    assert files(tmp_path) == before  # each file is the old one or the new one
    write_report(tmp_path)
    assert files(tmp_path) == before
    assert list((tmp_path / "reports").rglob(".*")) == []  # what the dead one had begun is gone


# --- a full disk ----------------------------------------------------------------------------------


def say(act: Callable[..., None], *given: Any) -> None:
    """Does it, and writes down what a full disk makes it say."""
    *_, root = given
    try:
        act(*given)
    except DiskFull as error:
        root.with_name("said").write_text(str(error))


FULL = {
    "trials.jsonl.torn": (seek, PLAIN),
    "stop.json.begun": (seek, PRUNED),
    ".driver.json.begun": (hold, True),
    ".runner.json.begun": (hold, False),
    "figures.begun": (write_report,),
    "report.html.begun": (write_report,),
}


@pytest.mark.parametrize("point", FULL)
def test_a_full_disk_is_told_with_path_and_bytes_and_gone_on_after(
    point: str, tmp_path: Path
) -> None:
    root = tmp_path / "mlruns"
    record(STUDY, root)
    assert apart(say, *FULL[point], root, full=point) == 0
    said = (tmp_path / "said").read_text()
    assert re.match(rf"no room for {root}/.*: [\d,]+ bytes of it were written", said)
    assert apart(*FULL[point], root) == 0
    for of, states in ((PLAIN, {"complete"}), (PRUNED, {"complete", "pruned"})):
        if of in FULL[point]:
            found = trials.trials(of, root)
            assert len(found) == of.trials
            assert {trial.state for trial in found} <= states
