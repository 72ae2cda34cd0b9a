"""A whole study, with real workers and a real MLflow, interrupted and killed on its way."""

import json
import os
import signal
import subprocess
import sys
import time
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
NOWHERE = "http://127.0.0.1:9"  # no tracking server listens there


def run(folder: Path, tracking: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench", "run", "study.py"]
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
