"""A whole study, with real workers and a real MLflow, interrupted and killed on its way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from workbench.plan import Job, jobs
from workbench.schema import File, Tag
from workbench.studyfile import load
from workbench.tracking import experiments, store_uri

pytestmark = pytest.mark.faults

STUDY = '''
"""Does a study survive what happens to it?"""
from workbench import Data, Evaluation, Recipe, Resources, Sampling, Study, Validation, upge

base = Recipe("arithmetic-1m", Data("arithmetic", train=8), steps=30, questions=2, rollouts=2,
              sampling=Sampling(max_tokens=6), validation=Validation(10, samples=1, problems=1))
study = Study("survivor", {"SFT": base.using(upge.sft()), "HPT": base.using(upge.hpt())},
              evaluation=Evaluation(samples=2, suites=("chain",), problems=2),
              resources=Resources(checkpoint_every=5))
'''


def run(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench", "run", "study.py"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
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


def wait_for_more(process: subprocess.Popen[str], cells: list[Job]) -> None:
    wanted = max(map(lines, cells)) + 2
    while process.poll() is None and max(map(lines, cells)) < wanted:
        time.sleep(0.05)
    assert process.poll() is None


def test_a_study_survives_an_interrupt_and_the_death_of_its_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "study.py").write_text(STUDY)
    root = tmp_path / "mlruns"
    cells = jobs(load(tmp_path / "study.py").studies["study"], root)

    first = run(tmp_path)
    wait_for_more(first, cells)
    first.send_signal(signal.SIGINT)
    told, _ = first.communicate(timeout=300)
    assert first.returncode == 130, told
    assert set(statuses(root).values()) == {"KILLED"}
    attempts = [len(provenance(job)) for job in cells]

    second = run(tmp_path)
    wait_for_more(second, cells)
    second.kill()
    second.communicate()

    third = run(tmp_path)
    told, _ = third.communicate(timeout=600)
    assert third.returncode == 0, told
    assert all(job.done for job in cells)
    assert statuses(root) == {"SFT": "FINISHED", "HPT": "FINISHED"}
    # What trained when its runner died went on: one attempt after the interrupt, not two.
    assert [len(provenance(job)) - n for job, n in zip(cells, attempts, strict=True)] == [1, 1]

    before = {path: path.stat().st_mtime_ns for job in cells for path in job.run.path.rglob("*")}
    fourth = run(tmp_path)
    told, _ = fourth.communicate(timeout=300)
    assert fourth.returncode == 0
    assert "0 to train or measure" in told
    assert before == {path: path.stat().st_mtime_ns for path in before}


def provenance(job: Job) -> list[dict[str, object]]:
    path = job.run.path / File.PROVENANCE
    return json.loads(path.read_text())["attempts"] if path.exists() else []


def statuses(root: Path) -> dict[str, str]:
    uri = store_uri(root)
    found = MlflowClient(uri).search_runs([experiments(uri, ["survivor"])["survivor"]])
    return {run.data.tags[Tag.LABEL]: run.info.status for run in found}


@pytest.fixture(autouse=True)
def _no_open_connections():
    yield
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()
