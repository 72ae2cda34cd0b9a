"""Tracking that is locked, read-only, full or answers 500: training goes on, the mirror catches up.

After each outage MLflow equals the records: every point of every run once, and no other.
"""

import os
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import apart
from lives import STORE
from mlflow import MlflowClient
from mounts import mounted, remount

from workbench import plan, upge
from workbench.plan import Job
from workbench.recipe import Data, Evaluation, Recipe
from workbench.schema import File, Tag
from workbench.study import Study
from workbench.tracking import Mirror, ensure_store, experiments, sqlite_path, store_uri
from workbench.tracking.points import points

pytestmark = pytest.mark.faults

SFT = Recipe("arithmetic-1m", Data("arithmetic"), steps=4).using(upge.sft())
STUDY = Study("outages", {"SFT": SFT}, seeds=(0, 1), evaluation=Evaluation(suites=("chain",)))


@pytest.fixture(scope="module")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("store") / "mlruns"
    ensure_store(store_uri(root), root)
    return (root.parent / "mlflow.db").read_bytes()


@pytest.fixture
def root(tmp_path: Path, made_store: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(made_store)
    return tmp_path / "mlruns"


def train(job: Job, steps: range) -> None:
    job.run.create(job.recipe, job.seed)
    for step in steps:
        row = {"step": step, "timestamp": 1000 * step, "time/step": 2.0, "reward/mean": step / 10}
        job.run.append(File.METRICS, row)


def recorded(jobs: list[Job]) -> Counter[Any]:
    """Every point that the records have, by seed."""
    return Counter((str(j.seed), *p) for j in jobs for row in j.run.rows() for p in points(row))


def mirrored(uri: str) -> Counter[Any]:
    """Every point that MLflow has."""
    client, found = MlflowClient(uri), Counter()
    for run in client.search_runs([experiments(uri, ["outages"])["outages"]]):
        for key in run.data.metrics:
            for p in client.get_metric_history(run.info.run_id, key):
                found[(run.data.tags[Tag.SEED], p.key, p.value, p.timestamp, p.step)] += 1
    return found


@contextmanager
def locked(database: Path) -> Iterator[None]:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        yield
        connection.execute("rollback")


@contextmanager
def read_only(database: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        database.chmod(0o444)
        yield
        database.chmod(0o644)
        return
    with mounted(database, "--bind", str(database)):  # permissions do not hold for root
        remount(database, "ro,bind")
        yield


@contextmanager
def full(database: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file may grow, nor be written
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


OUTAGES: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "locked": (locked, False),
    "full": (full, False),
    "full at its start": (full, True),
    "read-only at its start": (read_only, True),  # what is open already can still be written
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_in_the_middle_of_training_loses_and_doubles_nothing(
    name: str, root: Path
) -> None:
    outage, at_start = OUTAGES[name]
    jobs = plan.jobs(STUDY, root)
    living = Mirror(STUDY, root, jobs, patience=0)
    for job in jobs:
        train(job, range(1, 3))
    living.sync()
    assert living.problems == {}
    if at_start:
        living.close()
        living = Mirror(STUDY, root, jobs, patience=0)
    for job in jobs:
        train(job, range(3, 5))
    database = sqlite_path(living.uri)
    assert database is not None
    with outage(database):
        living.sync()
    problems = living.problems
    assert living.close() == {}
    assert problems != {}
    assert mirrored(living.uri) == recorded(jobs)


def ask(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return [row[0] for row in connection.execute(query)]


def sync_in_vain(root: Path) -> None:
    living = Mirror(STUDY, root, plan.jobs(STUDY, root), uri=store_uri(root), patience=0)
    living.sync()
    assert "out-of-date database schema" in " ".join(living.problems.values())
    assert living.close() != {}


def test_a_store_of_another_mlflow_is_left_as_it_is(root: Path) -> None:
    jobs, database = plan.jobs(STUDY, root), root.parent / "mlflow.db"
    (mine,) = ask(database, "select version_num from alembic_version")
    ask(database, "update alembic_version set version_num = '0a8213491aaa'")
    for job in jobs:
        train(job, range(1, 5))
    assert apart(sync_in_vain, root) == 0
    assert ask(database, "select version_num from alembic_version") == ["0a8213491aaa"]
    ask(database, f"update alembic_version set version_num = '{mine}'")
    assert Mirror(STUDY, root, jobs).close() == {}
    assert mirrored(store_uri(root)) == recorded(jobs)


@contextmanager
def server(root: Path, outage: Path, share: float) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).parent / "flaky_server.py"), store_uri(root)]
    command += [str(root / "artifacts"), str(outage), str(share)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_answers_500_or_loses_its_answers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outage = tmp_path / "outage"
    outage.touch()
    jobs = plan.jobs(STUDY, root)
    with server(root, outage, share=0.1) as uri:
        living = Mirror(STUDY, root, jobs, uri=uri, patience=0)
        for job in jobs:
            train(job, range(1, 3))
        living.sync()
        assert "500" in next(iter(living.problems.values()))
        outage.unlink()
        for step in (3, 4):
            for job in jobs:
                train(job, range(step, step + 1))
            while not shown(living):  # some answers are lost: what they were to is done again
                pass
        living.close()
    assert mirrored(store_uri(root)) == recorded(jobs)


def shown(living: Mirror) -> bool:
    living.sync()
    return living.problems == {}


def test_one_whose_cell_left_the_study_is_not_running_for_ever(root: Path) -> None:
    jobs = plan.jobs(STUDY, root)
    train(jobs[1], range(1, 3))
    with jobs[1].run.claim():
        Mirror(STUDY, root, jobs).close()
        assert statuses(root) == {"1": "RUNNING"}
        Mirror(STUDY, root, jobs[:1]).close()
        assert statuses(root) == {"1": "RUNNING"}  # it is: somebody trains it
    train(jobs[0], range(1, 2))
    Mirror(STUDY, root, jobs[:1]).close()
    assert statuses(root) == {"0": "KILLED", "1": "KILLED"}


def test_one_that_died_before_its_first_step_is_killed_with_a_reason(root: Path) -> None:
    from workbench import provenance

    (job, _) = plan.jobs(STUDY, root)
    job.run.create(job.recipe, job.seed)
    with job.run.claim():
        provenance.record(job.run)
        Mirror(STUDY, root, [job]).close()
        assert statuses(root) == {"0": "RUNNING"}
    Mirror(STUDY, root, [job]).close()
    assert statuses(root) == {"0": "KILLED"}
    (run,) = shown_runs(root)
    assert run.data.tags[Tag.OUTCOME] == "interrupted: its process died"


def statuses(root: Path) -> dict[str, str]:
    return {run.data.tags[Tag.SEED]: run.info.status for run in shown_runs(root)}


def shown_runs(root: Path) -> list[Any]:
    uri = store_uri(root)
    return list(MlflowClient(uri).search_runs([experiments(uri, ["outages"])["outages"]]))


def make_again(uri: str, root: Path) -> None:
    """Makes a store where a process has died that was making one."""
    (root.parent / ".mlflow.db.1.new").write_text("half of it")
    ensure_store(uri, root)


@pytest.mark.parametrize("point", STORE)
def test_a_process_that_dies_as_it_makes_the_store_breaks_it_for_nobody(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "mlruns"
    make = make_again if point.endswith("removed") else ensure_store
    assert apart(make, store_uri(root), root, fault=point) == -9
    jobs = plan.jobs(STUDY, root)
    train(jobs[0], range(1, 5))
    assert Mirror(STUDY, root, jobs).close() == {}
    assert mirrored(store_uri(root)) == recorded(jobs)
    assert not list(tmp_path.glob(".mlflow.db.*.new*"))


def test_a_clock_that_jumps_back_changes_nothing(root: Path) -> None:
    (job, _) = jobs = plan.jobs(STUDY, root)
    train(job, range(1, 4))
    job.run.append(File.METRICS, {"step": 4, "timestamp": 500, "reward/mean": 0.7})
    assert Mirror(STUDY, root, jobs).close() == {}
    assert Mirror(STUDY, root, jobs).close() == {}
    assert mirrored(store_uri(root)) == recorded(jobs)
    (run,) = shown_runs(root)
    assert run.data.metrics["reward/mean"] == 0.7  # the last step's, whatever the clock said


@pytest.fixture(autouse=True)
def _no_open_connections() -> Iterator[None]:
    yield
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()
