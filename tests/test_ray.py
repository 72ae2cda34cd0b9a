"""The launcher of clusters, on a real Ray cluster of two nodes on this machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from workbench import plan
from workbench.durable import Fenced
from workbench.launch import lease
from workbench.launch.lease import NAME, RUNNER, Lease, refuse_if_held
from workbench.launch.local import Event, Launcher, State
from workbench.plan import Job
from workbench.recipe import Data, Recipe
from workbench.records import Held, dropped_path, read_json, read_lines, run_of, write_json
from workbench.resources import Resources
from workbench.schema import WALL_CLOCK, File
from workbench.studyfile import load

# --- the lease ------------------------------------------------------------------------------------


def test_a_store_has_one_driver(tmp_path: Path) -> None:
    with Lease(tmp_path, beat=0.05).hold():
        message = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(Held, match=message), Lease(tmp_path).hold():
            pass
        with pytest.raises(Held, match="give another folder with --root"):
            refuse_if_held(tmp_path, alone=True)
    with Lease(tmp_path).hold():
        pass
    assert not (tmp_path / NAME).exists()


def test_runners_of_one_host_share_a_store_that_no_driver_then_gets(tmp_path: Path) -> None:
    def runner() -> Lease:
        return Lease(tmp_path, alone=False, beat=0.05)

    with runner().hold(), runner().hold():
        with pytest.raises(Held, match=rf"a runner \(process {os.getpid()} on "):
            refuse_if_held(tmp_path, alone=True)
        with pytest.raises(Held, match="a runner"), Lease(tmp_path).hold():
            pass
    with Lease(tmp_path, beat=0.05).hold():
        with pytest.raises(Held, match="the driver of a cluster"):
            refuse_if_held(tmp_path, alone=False)
        with pytest.raises(Held, match="the driver of a cluster"), runner().hold():
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_driver_and_a_runner_that_begin_at_the_same_moment_are_not_both_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "refuse_if_held", lambda *_: None)  # each saw nobody
    for first, second in ((True, False), (False, True)):
        one, other = (Lease(tmp_path, alone=alone, beat=0.05) for alone in (first, second))
        with one.hold(), pytest.raises(Held), other.hold():
            pass


def holder(host: str, process: int, beats: int = 1, alone: bool = True) -> dict[str, object]:
    return {"host": host, "process": process, "token": "other", "beats": beats, "alone": alone}


@pytest.mark.parametrize("alone", [True, False])
def test_a_runner_elsewhere_keeps_others_out_as_long_as_it_gives_signs(
    alone: bool, tmp_path: Path
) -> None:
    path = tmp_path / RUNNER.format(token="other")
    write_json(path, holder("elsewhere", 1, alone=False))
    beat = threading.Timer(0.3, write_json, (path, holder("elsewhere", 1, 2, alone=False)))
    beat.start()
    with pytest.raises(Held, match=r"a runner \(process 1 on elsewhere"):
        refuse_if_held(tmp_path, alone, patience=30)
    beat.join()
    refuse_if_held(tmp_path, alone, patience=0.2)
    assert not path.exists()  # it was silent: should it wake up, it has lost the store


def test_a_store_that_cannot_be_read_for_a_while_is_kept(tmp_path: Path) -> None:
    found = Lease(tmp_path, beat=0.02)
    with found.hold():
        path, aside = tmp_path / NAME, tmp_path / "aside"
        path.rename(aside)
        path.mkdir()  # whoever opens it meets an OSError
        time.sleep(0.3)
        path.rmdir()
        aside.rename(path)
        before = path.read_text()
        deadline = time.monotonic() + 60
        while path.read_text() == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.read_text() != before
        assert not found.lost


def take(root: Path) -> None:
    """What a driver elsewhere does that takes the store from one that it counts as gone."""
    written = root / "theirs.json"
    written.write_text(json.dumps(holder("elsewhere", 1)))
    written.replace(root / NAME)


def test_a_driver_that_died_is_followed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for host in (socket.gethostname(), "elsewhere"):
        write_json(tmp_path / NAME, holder(host, gone.pid))
        with Lease(tmp_path, beat=0.05, patience=0.2).hold():
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_number_that_was_given_to_another_process_is_no_driver(tmp_path: Path) -> None:
    write_json(tmp_path / NAME, holder(socket.gethostname(), os.getpid()))
    with Lease(tmp_path, beat=0.05, patience=0.2).hold():
        pass


def test_a_driver_on_another_host_is_known_by_its_beats(tmp_path: Path) -> None:
    write_json(tmp_path / NAME, holder("elsewhere", 1))
    beat = threading.Timer(0.3, write_json, (tmp_path / NAME, holder("elsewhere", 1, 2)))
    beat.start()
    with pytest.raises(Held, match="process 1 on elsewhere"), Lease(tmp_path, patience=30).hold():
        pass
    beat.join()


def test_a_lease_that_was_taken_is_lost_and_left_alone(tmp_path: Path) -> None:
    held = Lease(tmp_path, beat=0.02)
    with held.hold():
        take(tmp_path)
        deadline = time.monotonic() + 60
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held.lost
        with pytest.raises(Fenced, match="another process has taken over"):
            write_json(tmp_path / "new.json", {})
    assert not (tmp_path / "new.json").exists()
    assert json.loads((tmp_path / NAME).read_text())["host"] == "elsewhere"


# --- the cluster ----------------------------------------------------------------------------------

STEPS = 6
WORKER = """
import os, sys, time
from pathlib import Path
from workbench.records import Held, Run

run, steps, closed = Run(Path(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])

def work():
    with open(run.path / "attempts", "a") as handle:
        handle.write("began\\n")
    for step in range(len(run.rows()) + 1, steps + 1):
        if run.stop_asked:
            run.fail("interrupted", run.stop_asked)
            sys.exit(130)
        run.append("metrics.jsonl", {"step": step, "timestamp": step})
        time.sleep(0.05)
        while step == 2 and closed.exists():
            time.sleep(0.05)
    environment = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    run.finish({"steps": steps, **environment})

try:
    with run.claim():
        work()
except Held:  # the one on the lost node is not dead yet: the launcher waits for that
    sys.exit(3)
"""


NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 2**27}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, with little memory, a processor and what Ray takes for a GPU each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    from ray._private import services

    def patient(*arguments: object) -> object:
        for _ in range(19):  # a busy machine takes longer than the 30 s that Ray gives a node
            with contextlib.suppress(RuntimeError):
                return find(*arguments)
        return find(*arguments)

    find = services.get_node
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", patient)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_agent_register_timeout_ms", "600000")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # 15 would starve them beside other tests
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster()
        try:
            made.add_node(wait=False, include_dashboard=False, **NODE)
            made.add_node(wait=False, **NODE)
            made.wait_for_nodes(timeout=600)
            patch.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def jobs(root: Path, number: int) -> list[Job]:
    root.mkdir()
    recipes = [Recipe(f"model-{n}", Data("arithmetic")) for n in range(number)]
    return [Job(f"job {n}", r, 0, run_of(root, r, 0)) for n, r in enumerate(recipes)]


def launcher_of(found: list[Job], root: Path, steps: int, closed: Path) -> Any:
    """A launcher whose workers take so many steps, two of them while something is closed."""
    from workbench.launch.ray import RayLauncher

    script = root.parent / "worker.py"
    script.write_text(WORKER)

    def command(job: Job) -> list[str]:
        return [sys.executable, str(script), str(job.run.path), str(steps), str(closed)]

    return RayLauncher(found, Resources(), root, command)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_a_study_survives_the_loss_of_a_node(cluster: Any, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    four, closed = jobs(root, 4), tmp_path / "closed"
    closed.touch()
    launcher = launcher_of(four, root, STEPS, closed)
    assert launcher.room + 4 == 2
    states: list[tuple[str, State]] = []
    for event in launcher.run():
        if isinstance(event, Event) and event.row is None:
            states.append((event.job.label, event.state))
        if closed.exists() and sum(len(job.run.rows()) == 2 for job in four) == 2:
            with pytest.raises(Held), Lease(root).hold():
                pass
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            while sum(job.run.held for job in four) == 2:  # its worker dies with it, a little later
                time.sleep(0.05)
            closed.unlink()
    assert not closed.exists()
    assert launcher.failed == []
    for job in four:
        assert [row["step"] for row in job.run.rows()] == list(range(1, STEPS + 1))
        assert job.run.result == {
            "steps": STEPS, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}  # fmt: skip
        assert states.count((job.label, State.DONE)) == 1
    attempts = [len((job.run.path / "attempts").read_text().splitlines()) for job in four]
    assert sorted(attempts) == [1, 1, 1, 2]  # the one on the lost node was gone on with


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_a_driver_that_lost_the_store_stops_what_it_trains(cluster: Any, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    (job,) = jobs(root, 1)
    launcher = launcher_of([job], root, 100_000, tmp_path / "open")
    taken = False
    for _ in launcher.run():
        if not taken and len(job.run.rows()) >= 2:
            take(root)
            taken = True
    assert launcher.stopping
    assert launcher.states[job.run.path] is State.STOPPED
    # Its worker is ended, and nothing is left in a run that the other one may train by now.
    while job.run.held:
        time.sleep(0.05)
    assert (job.run.failure, job.run.stop_asked) == (None, None)
    assert json.loads((root / NAME).read_text())["host"] == "elsewhere"


STUDY = """
from workbench import Data, Evaluation, Recipe, Sampling, Study, Validation, upge

recipe = Recipe("arithmetic-1m", Data("arithmetic", train=8), steps=2, questions=2, rollouts=2,
                sampling=Sampling(max_tokens=6), validation=Validation(2, samples=1, problems=1))
study = Study("far", [recipe.using(upge.hpt())],
              evaluation=Evaluation(samples=2, suites=("chain",), problems=2))
"""


@pytest.mark.integration
def test_the_worker_is_the_same_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "far.py").write_text(STUDY)
    command = [sys.executable, "-m", "workbench", "run", "far.py", "--launcher", "ray"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = plan.jobs(load(tmp_path / "far.py").studies["study"], tmp_path / "mlruns")
    assert job.done
    assert job.run.rows()[-1]["step"] == 2


WAITING = '''
"""Does training survive its node?"""
from pathlib import Path
from time import sleep

import torch
from workbench import Data, Recipe, Resources, Sampling, Study, Validation, upge


class Waits(upge.Advantage):
    "1 for every token, and none beyond the third update while that is closed."

    def __call__(self, batch):
        while batch.step == 3 and Path(__file__).with_name("closed").exists():
            sleep(0.02)
        return torch.ones_like(batch.logprobs)


recipe = Recipe("{model}", Data("arithmetic", train=8), steps=6, questions=2, rollouts=2,
                sampling=Sampling(max_tokens=6), validation=Validation(6, samples=1, problems=1))
study = Study("lost", [recipe.using(upge.Estimator(advantage=Waits()))], seeds=(0, 1),
              resources=Resources(device="cpu", checkpoint_every=2))
'''
AT = 3  # steps that are recorded while that is closed, the last of them not yet saved


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_from_its_checkpoint_on_another_node(cluster: Any, tmp_path: Path) -> None:
    from workbench.launch.ray import RayLauncher

    two_nodes(cluster)
    file, closed = tmp_path / "lost.py", tmp_path / "closed"
    file.write_text(WAITING.format(model=tiny_models.qwen(tmp_path / "model")))
    study = load(file).studies["study"]
    whole, lost = (plan.jobs(study, tmp_path / name / "mlruns") for name in ("whole", "lost"))
    for _ in Launcher(whole, study.resources, tmp_path / "whole" / "mlruns").run():
        pass
    closed.touch()
    launcher = RayLauncher(lost, study.resources, tmp_path / "lost" / "mlruns")
    for _ in launcher.run():
        if closed.exists() and all(last_step(job) == AT for job in lost):
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            while all(job.run.held for job in lost):  # its worker dies with it, a little later
                time.sleep(0.05)
            closed.unlink()
    assert not closed.exists()
    assert launcher.failed == []
    for job, other in zip(lost, whole, strict=True):
        assert trained(job) == trained(other)
    dropped = [read_lines(dropped_path(job.run.path / File.METRICS)) for job in lost]
    # The one on the lost node went back to what was saved, and no further.
    assert sorted([row["step"] for row in rows] for rows in dropped) == [[], [AT]]
    attempts = [len(read_json(job.run.path / File.PROVENANCE)["attempts"]) for job in lost]
    assert sorted(attempts) == [1, 2]


def two_nodes(cluster: Any) -> None:
    """Adds a node in place of one that was killed."""
    if not cluster.worker_nodes:
        cluster.add_node(wait=False, **NODE)
        cluster.wait_for_nodes(timeout=600)


def last_step(job: Job) -> int:
    rows = job.run.rows()
    return rows[-1]["step"] if rows else 0


def trained(job: Job) -> dict[str, Any]:
    """What training leaves, but for how long it took."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith((*WALL_CLOCK, "timestamp"))}
        for row in job.run.rows()
    ]
    checkpoint = job.run.checkpoint_path(job.recipe.steps)
    weights = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    assert len(weights) == 2  # the model's and the optimizer's
    return {"rows": json.dumps(rows), "questions": job.run.rows(File.QUESTIONS), **weights}
