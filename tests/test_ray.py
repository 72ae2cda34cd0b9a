"""The launcher of clusters, on a real Ray cluster of two nodes on this machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.launch.lease import NAME, Lease, refuse_if_held
from workbench.launch.local import Event, State
from workbench.plan import Job
from workbench.recipe import Data, Recipe
from workbench.records import Held, run_of, write_json
from workbench.resources import Resources

# --- the lease ------------------------------------------------------------------------------------


def test_a_store_has_one_driver(tmp_path: Path) -> None:
    with Lease(tmp_path, beat=0.05).hold():
        message = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(Held, match=message), Lease(tmp_path).hold():
            pass
        with pytest.raises(Held, match="give another folder with --root"):
            refuse_if_held(tmp_path)
    with Lease(tmp_path).hold():
        pass
    assert not (tmp_path / NAME).exists()


def holder(host: str, process: int, beats: int = 1) -> dict[str, object]:
    return {"host": host, "process": process, "token": "other", "beats": beats}


def test_a_driver_that_died_is_followed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for host in (socket.gethostname(), "elsewhere"):
        write_json(tmp_path / NAME, holder(host, gone.pid))
        with Lease(tmp_path, beat=0.05, patience=0.2).hold():
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_driver_on_another_host_is_known_by_its_beats(tmp_path: Path) -> None:
    import threading

    write_json(tmp_path / NAME, holder("elsewhere", 1))
    beat = threading.Timer(0.3, write_json, (tmp_path / NAME, holder("elsewhere", 1, 2)))
    beat.start()
    with pytest.raises(Held, match="process 1 on elsewhere"), Lease(tmp_path, patience=30).hold():
        pass
    beat.join()


def test_a_lease_that_was_taken_is_lost_and_left_alone(tmp_path: Path) -> None:
    lease = Lease(tmp_path, beat=0.02)
    with lease.hold():
        write_json(tmp_path / NAME, holder("elsewhere", 1))
        deadline = time.monotonic() + 60
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.lost
    assert json.loads((tmp_path / NAME).read_text())["host"] == "elsewhere"


# --- the cluster ----------------------------------------------------------------------------------

STEPS = 12
WORKER = """
import os, sys, time
from pathlib import Path
from workbench.records import Held, Run

run, steps = Run(Path(sys.argv[1])), int(sys.argv[2])

def work():
    with open(run.path / "attempts", "a") as handle:
        handle.write("began\\n")
    for step in range(len(run.rows()) + 1, steps + 1):
        if run.stop_asked:
            run.fail("interrupted", run.stop_asked)
            sys.exit(130)
        run.append("metrics.jsonl", {"step": step, "timestamp": step})
        time.sleep(0.25)
    run.finish({"steps": steps, "threads": os.environ["OMP_NUM_THREADS"]})

try:
    with run.claim():
        work()
except Held:  # the one on the lost node is not dead yet: the launcher waits for that
    sys.exit(3)
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Two nodes of one processor each, with little memory."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")  # on a busy machine
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    from ray._private import services
    from ray.cluster_utils import Cluster

    found = services.get_node

    def patient(*arguments: object) -> object:
        for _ in range(9):  # a busy machine takes longer than the 30 s that Ray gives a node
            with contextlib.suppress(RuntimeError):
                return found(*arguments)
        return found(*arguments)

    monkeypatch.setattr(services, "get_node", patient)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def jobs(root: Path, number: int) -> list[Job]:
    recipes = [Recipe(f"model-{n}", Data("arithmetic")) for n in range(number)]
    return [Job(f"job {n}", r, 0, run_of(root, r, 0)) for n, r in enumerate(recipes)]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_a_study_survives_the_loss_of_a_node(cluster: object, tmp_path: Path) -> None:
    from workbench.launch.ray import RayLauncher

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = tmp_path / "mlruns"
    root.mkdir()
    four = jobs(root, 4)

    def command(job: Job) -> list[str]:
        return [sys.executable, str(script), str(job.run.path), str(STEPS)]

    launcher = RayLauncher(four, Resources(device="cpu"), root, command)
    assert launcher.room + 4 == 2
    states: list[tuple[str, State]] = []
    killed = False
    for event in launcher.run():
        if isinstance(event, Event) and event.row is None:
            states.append((event.job.label, event.state))
        training = [job for job in four if 2 <= len(job.run.rows()) < STEPS]
        if not killed and len(training) == 2:
            with pytest.raises(Held), Lease(root).hold():
                pass
            node = next(iter(cluster.worker_nodes))  # type: ignore[attr-defined]
            cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
            killed = True
    assert killed
    assert launcher.failed == []
    for job in four:
        assert [row["step"] for row in job.run.rows()] == list(range(1, STEPS + 1))
        assert job.run.result == {"steps": STEPS, "threads": "1"}
        assert states.count((job.label, State.DONE)) == 1
    attempts = [len((job.run.path / "attempts").read_text().splitlines()) for job in four]
    assert sorted(attempts) == [1, 1, 1, 2]  # the one on the lost node was gone on with
