"""A whole study, with real workers and a real MLflow, interrupted and killed on its way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from workbench.plan import Job, jobs
from workbench.schema import File, Tag
from workbench.studyfile import load
from workbench.tracking import experiments, store_uri
from workbench.training import checkpoint

pytestmark = pytest.mark.faults

STUDY = '''
"""Does a study survive what happens to it?"""
from pathlib import Path
from time import sleep

import torch
from workbench import Data, Evaluation, Recipe, Resources, Sampling, Study, Validation, upge


class Waits(upge.Advantage):
    "1 for every token, once nothing stands in the way of that update."

    def __call__(self, batch):
        while Path(__file__).with_name(f"{batch.step}.closed").exists():
            sleep(0.02)
        return torch.ones_like(batch.logprobs)


base = Recipe("arithmetic-1m", Data("arithmetic", train=8), steps=20, questions=2, rollouts=2,
              sampling=Sampling(max_tokens=6), validation=Validation(10, samples=1, problems=1))
waits = upge.Estimator(advantage=Waits())
study = Study("survivor", {"SFT": base.using(upge.Method(demonstrations=waits)),
                           "RL": base.using(waits)},
              evaluation=Evaluation(samples=2, suites=("chain",), problems=2),
              resources=Resources(checkpoint_every=5))
'''
INTERRUPTED = (
    STUDY.replace("Study, Va", "Search, Study, Va")
    + """
half = Study("half", {"base": base, "SFT": base.using(upge.Method(demonstrations=waits))},
             evaluation=Evaluation(samples=1, suites=("chain",), problems=1))


def propose(trial):
    aggregation = [upge.TokenMean(), upge.SequenceMean()][trial.suggest_int("which", 0, 1)]
    sft = upge.Estimator(advantage=Waits(), aggregation=aggregation)
    return base.using(upge.Method(demonstrations=sft), steps=1)


found = {"maximize": "validation/pass_at_1", "trials": 1, "seeds": [0], "confirm": [1],
         "evaluation": Evaluation(samples=1, suites=("chain",), problems=1)}
first = Search("first", propose, **found)
second = Search("second", propose, **found)
"""
)
NOWHERE = "http://127.0.0.1:9"  # no tracking server listens there


def run(folder: Path, tracking: str = "", *asked: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench", *(asked or ("run",)), "study.py"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def lines(job: Job) -> int:
    path = job.run.path / File.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_update(number: int, process: subprocess.Popen[str], cells: list[Job]) -> None:
    """Until a cell waits to make that update, counted from 0; it has one line for the beginning."""
    while max(map(lines, cells)) <= number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.timeout(3600)
def test_a_study_survives_interrupts_kills_rivals_and_a_tracking_server_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "study.py").write_text(STUDY)
    closed = {number: tmp_path / f"{number}.closed" for number in (8, 14)}
    for path in closed.values():
        path.touch()
    root = tmp_path / "mlruns"
    cells = jobs(load(tmp_path / "study.py").studies["study"], root)

    first = run(tmp_path)
    wait_for_update(8, first, cells)
    first.send_signal(signal.SIGINT)
    closed[8].unlink()
    told, _ = first.communicate()
    assert first.returncode == 130, told
    assert set(statuses(root).values()) == {"KILLED"}
    begun = [job for job in cells if lines(job)]
    assert all(checkpoint.latest(job.run) == lines(job) - 1 for job in begun)
    attempts = [len(provenance(job)) for job in cells]

    second = run(tmp_path)
    wait_for_update(14, second, cells)
    second.kill()
    second.communicate()
    assert any(job.run.held for job in cells)  # they go on without their runner

    both = [run(tmp_path, NOWHERE), run(tmp_path, NOWHERE)]
    closed[14].unlink()
    for each in both:
        told, _ = each.communicate()
        assert each.returncode == 0, told
    assert all(job.done for job in cells)
    # What trained when its runner died went on: one attempt after the interrupt, not two.
    assert [len(provenance(job)) - n for job, n in zip(cells, attempts, strict=True)] == [1, 1]
    assert set(statuses(root).values()) <= {"KILLED", "RUNNING"}  # nobody could say more

    before = {path: path.stat().st_mtime_ns for job in cells for path in job.run.path.rglob("*")}
    last = run(tmp_path)
    told, _ = last.communicate()
    assert last.returncode == 0, told
    assert "0 to train or measure" in told
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert statuses(root) == {"SFT": "FINISHED", "RL": "FINISHED"}
    for each in shown(root):
        points = client(root).get_metric_history(each.info.run_id, "optim/gradient_norm")
        assert sorted(point.step for point in points) == list(range(1, 21))


def interrupt(process: subprocess.Popen[str], closed: Path) -> str:
    """What a command says that is interrupted while its cell waits for an update."""
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # for it to pass that on
    closed.unlink()
    told, _ = process.communicate()
    assert process.returncode == 130, told
    return told


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_an_interrupt_draws_no_report(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(INTERRUPTED)
    closed = tmp_path / "0.closed"
    closed.touch()
    measured, waiting = jobs(load(tmp_path / "study.py").studies["half"], tmp_path / "mlruns")
    process = run(tmp_path, "", "run", "--study", "half")
    wait_until(lambda: measured.done and lines(waiting) == 1, process)
    interrupt(process, closed)
    assert not waiting.done
    assert not (tmp_path / "mlruns" / "reports").exists()


def test_an_interrupt_of_what_a_search_found_starts_no_other_search(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(INTERRUPTED)
    closed, root = tmp_path / "0.closed", tmp_path / "mlruns"
    process = run(tmp_path, "", "search")
    wait_until(lambda: [*root.glob("cells/*/seed-0/result.json")] != [], process)
    closed.touch()
    wait_until(lambda: [*root.glob("cells/*/seed-1/metrics.jsonl")] != [], process)
    told = interrupt(process, closed)
    assert "first-winner: 1 runs, 1 to train or measure" in told
    assert "second" not in told
    assert not (root / "reports").exists()
    assert [path.name for path in (root / "searches").iterdir()] == ["first"]


def provenance(job: Job) -> list[dict[str, object]]:
    path = job.run.path / File.PROVENANCE
    return json.loads(path.read_text())["attempts"] if path.exists() else []


def client(root: Path) -> MlflowClient:
    return MlflowClient(store_uri(root))


def shown(root: Path) -> list[Any]:
    identity = experiments(store_uri(root), ["survivor"])["survivor"]
    return [run for run in client(root).search_runs([identity]) if Tag.LABEL in run.data.tags]


def statuses(root: Path) -> dict[str, str]:
    return {run.data.tags[Tag.LABEL]: run.info.status for run in shown(root)}


@pytest.fixture(autouse=True)
def _no_open_connections():
    yield
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()
