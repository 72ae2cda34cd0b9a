"""The process that a command is, killed at each of its own durable writes, and the command again.

Its workers are stand-ins, which leave the records that a run has: what kills the real ones is in
test_points.py. What is written into MLflow, over whose writes a crash has the same power, is killed
after each of its requests. The table of commands lists the points that each passes; one that is not
in it fails the suite, and so does one that no command passes.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import apart
from lives import COMMANDS
from mlflow import MlflowClient
from small import record_evaluation, record_probe

from workbench import cli, durable
from workbench.launch.local import Launcher
from workbench.plan import Job
from workbench.records import Run
from workbench.schema import File, Tag
from workbench.tracking import experiments, forget_connections, store_uri

pytestmark = pytest.mark.faults

STUDY = '''
"""Is anything lost?"""
from analysis import Table
from workbench import Data, Evaluation, Probe, Recipe, Resources, Search, Study, Validation, upge

base = Recipe("arithmetic-1m", Data("arithmetic", train=16), steps=3,
              validation=Validation(1, samples=1, problems=1))
measured = {"evaluation": Evaluation(samples=2, suites=("chain",), problems=4),
            "resources": Resources(device="cpu")}
study = Study("commands", {"base": base, "SFT": base.using(upge.sft())}, **measured,
              probes=(Probe((upge.grpo(),), questions=3, rollouts=2),))
results = Table("results", study)  # the figures are those of the search: each takes a second


def propose(trial):
    return base.using(upge.hpt(gate=upge.Switch(trial.suggest_float("at_most", 0, 1, step=0.5))))


search = Search("found", propose, maximize="validation/pass_at_1", trials=2, seeds=(0,),
                confirm=(1,), **measured)
'''
# What writes into MLflow.
REQUESTS = ("create_experiment", "set_experiment_tag", "create_run", "log_batch", "log_artifacts",
            "set_terminated")  # fmt: skip

# Holds its run and clears up as the worker does, says that it trains, and leaves what was recorded;
# those of one arm die of themselves until somebody wrote down that one did.
STAND_IN = """
find . -regex '.*/\\..*\\.[0-9]+' -delete
if [ "$1" = dies ] && [ ! -e failure.json ] && [ ! -e result.json ]; then kill -9 $PPID; exit; fi
echo began >> attempts
cp -rp "$0"/[!r]* .
cp "$0"/result.json .result && mv .result result.json
rm -f failure.json
"""


def work(job: Job, aside: Path) -> list[str]:
    """A stand-in for the worker of a job, whose records lie aside."""
    run = Run(aside / job.run.path.name)
    for step in job.keep:
        run.checkpoint_path(step).mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": n, "timestamp": 1000 * n, "time/step": 0.5, "validation/pass_at_1": n / 10}
        for n in (1, 2, 3)
    ]
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / File.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for measurement in job.measurements:
        random = np.random.default_rng(job.seed)
        record_evaluation(job, run, measurement.suite, (measurement, 0.5, random))
    for probe in job.probes:
        record_probe(run, probe, variance=2.0)
    (run.path / File.PROVENANCE).write_text('{"attempts": [{"command": ["workbench"]}]}')
    (run.path / File.RESULT).write_text('{"steps": 3}')
    for path in run.path.rglob("*"):
        os.utime(path, (1, 1))  # when it was measured, to MLflow
    held = ["flock", "--nonblock", "--conflict-exit-code", "3", "lock", "sh", "-c", STAND_IN]
    dies = "dies" if (job.label, job.seed) == ("SFT", 0) else "lives"
    return ["env", "-C", str(job.run.path), *held, str(run.path), dies]


def give(folder: Path, words: list[str]) -> None:
    """Gives a command in a folder; says what points it passed once it came to its end."""
    os.chdir(folder)
    output = os.open("said.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    asked = Launcher._worker_command

    def command(launcher: Launcher, job: Job) -> list[str]:
        asked(launcher, job)  # which writes down its probes
        return work(job, folder / "aside" / job.run.path.parent.name)

    Launcher._worker_command = command
    for name in REQUESTS:
        setattr(MlflowClient, name, _with_a_point(name, getattr(MlflowClient, name)))
    code = cli.main(words)
    Path("passed.json").write_text(json.dumps(durable.passed))
    sys.exit(code)


def _with_a_point(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    def request(*given: Any, **named: Any) -> Any:
        answer = act(*given, **named)
        durable.fault(f"mlflow.{name}")
        return answer

    return request


# --- how they end ---------------------------------------------------------------------------------

# Who held it, what it said, and what is compared as MLflow gives it.
ASIDE = ("said.log", "passed.json", "aside", "mlflow.db", "mlruns/artifacts")


def end_of(folder: Path) -> dict[str, Any]:
    """What two commands that came to the same end have in common."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = str(path.relative_to(folder))
        if path.name.startswith(".") or path.name in (File.LOCK, File.LOG):
            found[name] = ""
        elif not name.startswith(ASIDE):
            text = path.read_bytes().replace(str(folder).encode(), b"<folder>")
            found[name] = re.sub(rb"[0-9a-f]{32}", b"<run>", text)
    leases = [name for name in found if Path(name).name.startswith(".runner-")]
    assert leases == []
    return found | shown_of(folder)


def shown_of(folder: Path) -> dict[str, Any]:
    """All that MLflow has: each run of each experiment, however often it is there."""
    uri = store_uri(folder / "mlruns")
    client, found = MlflowClient(uri), {}
    for name, identity in experiments(uri, ["commands", "found", "found-winner"]).items():
        runs = client.search_runs([identity])
        found[name] = sorted(json.dumps(_run_of(client, run, folder)) for run in runs)
    forget_connections(uri)
    return found


def _run_of(client: MlflowClient, run: Any, folder: Path) -> list[Any]:
    tags = {key: text for key, text in run.data.tags.items() if key.startswith("workbench.")}
    tags[Tag.DIRECTORY] = tags.get(Tag.DIRECTORY, "").replace(str(folder), "<folder>")
    points = [
        (point.key, point.step, point.value, point.timestamp)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    kept = sorted(each.path for each in client.list_artifacts(run.info.run_id))
    shown = [sorted(each.items()) for each in (tags, run.data.params)]
    return [run.info.status, *shown, sorted(points), kept]


# --- killed ---------------------------------------------------------------------------------------

Make = Callable[[str], Path]


def words(who: str, whole: Make) -> list[str]:
    """A command; some read what others have left elsewhere."""
    study, search = ["study.py", "--study", "commands"], ["study.py", "--study", "found"]
    match who:
        case "run":
            return ["run", *study]
        case "search":
            return ["search", *search]
        case "export":
            return ["export", *search, "--root", str(whole("search") / "mlruns"), "--to", "kept"]
    uri = store_uri(whole("run") / "mlruns")
    return ["report", *study, "--only", "results", "--from", uri]


def begin(who: str, folder: Path, whole: Make) -> None:
    """What is there before a command."""
    if who == "report again":  # of runs that have ended anew in MLflow
        shutil.copytree(whole("report"), folder, dirs_exist_ok=True)
        for path in folder.rglob("mlflow.json"):
            path.write_text("{}")
    (folder / "study.py").write_text(STUDY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder that a command leaves which nobody disturbs, with the points that it passed."""
    made: dict[str, Path] = {}

    def of(who: str) -> Path:
        if who not in made:
            folder = tmp_path_factory.mktemp("whole")
            begin(who, folder, of)
            assert apart(give, folder, words(who, of)) == 0, (folder / "said.log").read_text()
            made[who] = folder
        return made[who]

    return of


def assert_same(who: str, folder: Path, whole: Make) -> None:
    """Fails, naming what differs, unless the command left what it leaves undisturbed."""
    mine, other = end_of(folder), end_of(whole(who))
    assert mine.keys() == other.keys()
    assert [key for key in mine if mine[key] != other[key]] == []


@pytest.mark.parametrize(("who", "when"), [(w, when) for w in COMMANDS for when in COMMANDS[w]])
def test_killed_at_one_point_after_the_other_it_comes_to_the_same_end(
    who: str, when: str, tmp_path: Path, whole: Make
) -> None:
    begin(who, tmp_path, whole)
    for point in COMMANDS[who][when]:
        assert apart(give, tmp_path, words(who, whole), fault=point) == -signal.SIGKILL, point
    assert apart(give, tmp_path, words(who, whole)) == 0, (tmp_path / "said.log").read_text()
    assert_same(who, tmp_path, whole)


def test_every_point_that_a_command_passes_is_one_to_be_killed_at(whole: Make) -> None:
    passed = {p for who in COMMANDS for p in json.loads((whole(who) / "passed.json").read_text())}
    killed_at = {p for each in COMMANDS.values() for points in each.values() for p in points}
    assert passed == {point.partition(":")[0] for point in killed_at}


@pytest.mark.parametrize(
    ("who", "point"),
    [
        ("run", "asked.begun"),
        ("run", "spec.json.begun"),
        ("run", "tables.begun"),
        ("run", "drawn.begun"),
        ("export", "trials.jsonl.begun"),
        ("export", "provenance.json.begun"),
    ],
)
def test_a_full_disk_is_told_and_the_command_given_again_comes_to_the_same_end(
    who: str, point: str, tmp_path: Path, whole: Make
) -> None:
    begin(who, tmp_path, whole)
    assert apart(give, tmp_path, words(who, whole), full=point) == cli.FAILED
    assert re.search(r"no room for\s+\S+: 0 bytes", (tmp_path / "said.log").read_text())
    assert apart(give, tmp_path, words(who, whole)) == 0
    assert_same(who, tmp_path, whole)
