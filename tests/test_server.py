"""The mirror on a real MLflow server over a real PostgreSQL database."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from system import apt_install

from workbench import plan, provenance, upge
from workbench.plan import Job
from workbench.recipe import Data, Evaluation, Recipe
from workbench.records import new_file
from workbench.schema import File
from workbench.study import Study
from workbench.tracking import Mirror
from workbench.tracking.store import DEFAULTS

pytestmark = pytest.mark.integration

RECIPE = Recipe("arithmetic-1m", Data("arithmetic"), steps=3).using(upge.sft())
EVALUATION = Evaluation(samples=4, suites=("chain",))
STUDY = Study("served", {"SFT": RECIPE}, (0, 1), evaluation=EVALUATION)
START = 600  # seconds that a server may take to answer on a busy machine


def programs() -> Path:
    """The folder of PostgreSQL's programs, installed by apt where that works."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        apt_install("postgresql")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL: /usr/lib/postgresql is not there, and apt could not install it")
    return found[-1].parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own, in a folder of its own, as its own user where we are root."""
    binaries, port = programs(), free_port()
    # The server's user must reach the folder, and pytest's are closed to others.
    folder = Path(f"/tmp/workbench-postgres-{os.getpid()}")
    folder.mkdir(mode=0o755)
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        prefix = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [*prefix, str(binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=START, cwd=folder)

    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        call("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
        log = str(folder / "log")
        call("pg_ctl", "-D", str(data), "-w", "-t", str(START), "-l", log, "-o", options, "start")
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        if data.exists():
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


class Server:
    """An `mlflow server` that can be killed and started again at the same address."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = open(folder / "server.log", "ab")  # noqa: SIM115 closed in stop
        self.command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]
        # SQLAlchemy would take psycopg for a plain address.
        self.command += ["--backend-store-uri", database.replace("://", "+psycopg2://")]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env={**os.environ, **DEFAULTS},
        )
        deadline = time.monotonic() + START
        while not self.answers():
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, Path(self.log.name).read_text()[-2000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@pytest.fixture
def server(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("psycopg2", reason="MLflow needs psycopg2 to talk to PostgreSQL")
    made = Server(database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.kill()
        made.log.close()


def finish(job: Job) -> None:
    job.run.create(job.recipe, job.seed)
    provenance.record(job.run)
    for step in (1, 2, 3):
        row = {"step": step, "timestamp": 1000 * step, "time/step": 2.0, "reward/mean": step / 10}
        job.run.append(File.METRICS, row)
    for measurement in job.measurements:
        count = {"problem": "p", "level": 1, "samples": measurement.samples, "correct": 1,
                 "tokens": 40, "truncated": 0, "ungradable": 0}  # fmt: skip
        with new_file(job.run.evaluation_path(measurement)) as handle:
            pd.DataFrame([count]).to_parquet(handle)
    job.run.finish({"steps": 3})


def stored(database: str) -> list[tuple[str, int, int, float]]:
    """Every metric point in the database, straight from its table."""
    import psycopg2

    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select key, step, timestamp, value from metrics order by 1, 2, 3, 4")
            return cursor.fetchall()
    finally:
        connection.close()


def test_the_mirror_is_exact_on_a_server_and_outlives_its_death(
    server: Server, database: str, tmp_path: Path
) -> None:
    root = tmp_path / "mlruns"
    first, second = plan.jobs(STUDY, root)
    mirror = Mirror(STUDY, root, [first, second], patience=0)
    assert mirror.uri == server.uri
    finish(first)
    mirror.sync()
    assert mirror.problems == {}
    server.kill()
    finish(second)
    mirror.sync()
    assert "SFT · seed 1" in mirror.problems  # told, and nothing was stopped by it
    server.start()
    assert mirror.close() == {}
    assert Mirror(STUDY, root, [first, second]).close() == {}
    points = stored(database)
    rewards = [(step, stamp, value) for key, step, stamp, value in points if key == "reward/mean"]
    assert sorted(rewards) == sorted(2 * [(n, 1000 * n, n / 10) for n in (1, 2, 3)])
    assert sum(key == "passk/chain" for key, *_ in points) == 2 * 3
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    kept = Path(client.download_artifacts(runs[0].info.run_id, "", str(tmp_path)))
    assert pd.read_parquet(kept / "history.parquet")["reward/mean"].tolist() == [0.1, 0.2, 0.3]
