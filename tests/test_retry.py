"""What follows an attempt that ended badly: by class of failure, in the scheduler itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand import Stand

from workbench import provenance
from workbench.launch import attempt, local, room
from workbench.launch.local import Launcher, State
from workbench.launch.retry import again
from workbench.launch.room import Slot, give_back, slots
from workbench.resources import LEAST_TOKENS, Resources
from workbench.schema import Failure, File

FULL = Resources(retries=2)
HALF = Resources(retries=2, tokens=1024, sequences=256)


@pytest.mark.parametrize(
    ("kind", "attempts", "expected"),
    [
        (Failure.ERROR, 1, None),
        (Failure.DISK, 1, None),
        (Failure.KILLED, 2, FULL),
        (Failure.KILLED, 3, None),
        (Failure.STALLED, 2, FULL),
        (Failure.STALLED, 3, None),
        (Failure.MEMORY, 1, HALF),
        (Failure.MEMORY, 3, None),
        (Failure.PREEMPTED, 99, FULL),
    ],
)
def test_what_is_tried_again_follows_from_the_class_of_failure(
    kind: str, attempts: int, expected: Resources | None
) -> None:
    assert again(kind, attempts, FULL, on_gpu=False) == expected


def test_memory_is_halved_as_long_as_that_can_help() -> None:
    found: Resources | None = Resources()
    sizes = []
    while found is not None:
        sizes.append(found.micro_batch(on_gpu=False))
        found = found.halved(on_gpu=False)
    assert sizes == [2048, 1024, 512, LEAST_TOKENS]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(local, "slots", lambda _: [Slot("one"), Slot("two")])
    monkeypatch.setattr(attempt, "TRACEBACK_SECONDS", 0.2)
    return Stand(tmp_path)


def run(launcher: Launcher) -> list[tuple[State, str]]:
    """The states that the jobs entered, with the reasons."""
    return [(e.state, e.reason) for e in launcher.run() if e is not None and e.row is None]


TRIED = {  # behaviour of each attempt: how it ends, and how often it is tried
    "dies dies trains": (State.DONE, 3),
    "dies dies dies trains": (State.FAILED, 3),
    "preempted preempted preempted preempted trains": (State.DONE, 5),
    "fails trains": (State.FAILED, 1),
    "breaks trains": (State.FAILED, 1),
    "forgets trains": (State.FAILED, 1),
    "disk trains": (State.FAILED, 1),
    "memory trains": (State.DONE, 2),
}


@pytest.mark.parametrize("behaviour", TRIED)
def test_a_cell_is_tried_as_often_as_its_failures_allow(stand: Stand, behaviour: str) -> None:
    end, attempts = TRIED[behaviour]
    job = stand.job("job", behaviour)
    events = run(stand.launcher(job, retries=2))
    assert events[-1][0] is end
    assert stand.attempts(job) == behaviour.split()[:attempts]
    assert [state for state, _ in events].count(State.WAITING) == attempts - 1
    assert (job.run.failure is None) == (end is State.DONE)


def test_out_of_memory_is_tried_again_with_half_of_it(stand: Stand) -> None:
    job = stand.job("job", "memory trains")
    launcher = stand.launcher(job, retries=1)
    assert any("with half the memory" in reason for _, reason in run(launcher))
    command = launcher._worker_command(job)
    given = json.loads(command[command.index("--resources") + 1])
    assert (given["tokens"], given["sequences"]) == (1024, 256)


def test_a_kernel_that_ends_processes_for_memory_is_believed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "memory_kills", lambda: 10**9)
    job = stand.job("job", "dies")
    run(stand.launcher(job))
    assert job.run.failure is not None
    assert job.run.failure["kind"] == Failure.MEMORY


def test_one_that_hangs_is_ended_says_where_and_is_tried_again(stand: Stand) -> None:
    job = stand.job("job", "hangs trains")
    events = run(stand.launcher(job, retries=9, patience=8))  # a busy machine takes its time
    assert events[-1][0] is State.DONE
    assert any("stalled: no progress in 8 s" in reason for _, reason in events)
    assert "line" in (job.run.path / File.LOG).read_text()  # of the traceback


def test_a_disk_that_is_full_when_a_cell_starts_fails_that_cell_alone(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = stand.job("bad"), stand.job("good")
    bad.run.path.parent.mkdir(parents=True)
    bad.run.path.write_text("a file where a folder must be")
    launcher = stand.launcher(bad, good)
    run(launcher)
    assert launcher.failed == [bad]
    assert good.done


# --- room ---


def test_slots_of_several_gpus_are_told_by_uuid_and_held_by_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = tuple((f"GPU-{n}", "H100") for n in range(5))
    monkeypatch.setattr(room, "gpus", lambda: names)
    found = slots(Resources(gpus=2))
    assert [slot.gpus for slot in found] == [("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")]
    assert found[1].environment(3)["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    with pytest.raises(ValueError, match="use at most 5"):
        slots(Resources(gpus=6))
    taken = found[0].take()
    assert taken is not None
    assert found[0].take() is None  # by another runner
    assert slots(Resources(gpus=1))[1].take() is None  # one of the two
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=taken)
    give_back(taken)
    assert found[0].take() is None  # its process has it still, whatever became of the runner
    holder.communicate(b"\n")
    again = found[0].take()
    assert again is not None
    give_back(again)


def test_two_studies_share_the_cores_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "cores", lambda: 1)
    stand = Stand(tmp_path)
    job = stand.job("job")
    (slot,) = slots(Resources(device="cpu"))
    taken = slot.take()
    assert taken is not None
    waited = False
    for event in stand.launcher(job).run():
        if event is not None and event.state is State.WAITING:
            assert not job.done
            waited = True
            give_back(taken)
    assert waited
    assert job.done


def test_what_a_cell_may_use_is_recorded_and_never_hashed(tmp_path: Path) -> None:
    job = Stand(tmp_path).job("job")
    job.run.create(job.recipe, job.seed)
    provenance.record(job.run, resources={"gpus": 2})
    (recorded,) = json.loads((job.run.path / File.PROVENANCE).read_text())["attempts"]
    assert recorded["resources"] == {"gpus": 2}
    assert "gpus" in recorded
    assert "gpus" not in json.dumps(job.run.spec)


# --- the runner dies ---

RUNNER = """
import sys
from pathlib import Path
from stand import Stand
from workbench.launch import local
from workbench.launch.room import Slot
from workbench.launch.local import Launcher

local.slots = lambda _: [Slot("one"), Slot("two")]
stand = Stand(Path(sys.argv[1]))
jobs = [stand.job(f"job {n}", behaviour) for n, behaviour in enumerate(sys.argv[2:])]
for event in stand.launcher(*jobs).run():
    if event is not None:
        print(event.job.label, event.state.value, flush=True)
"""


def runner(root: Path, *behaviours: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-c", RUNNER, str(root), *behaviours]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_cells_of_a_runner_that_is_killed_go_on_and_are_run_once(tmp_path: Path) -> None:
    behaviours = ["meets", "meets", "trains", "trains"]
    stand = Stand(tmp_path)
    jobs = [stand.job(f"job {n}", each) for n, each in enumerate(behaviours)]
    first = runner(tmp_path, *behaviours)
    while not all((job.run.path / File.METRICS).exists() for job in jobs[:2]):
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert jobs[0].run.held  # it goes on without its runner
    second = runner(tmp_path, *behaviours)
    assert second.stdout is not None
    assert second.stdout.readline() == "job 0 held\n"
    (tmp_path / File.METRICS).touch()  # what those that go on wait for
    second.communicate(timeout=600)
    assert second.returncode == 0
    assert all(job.done for job in jobs)
    assert [stand.attempts(job) for job in jobs] == [[each] for each in behaviours]
    third = runner(tmp_path, *behaviours)
    assert third.communicate(timeout=600)[0] == ""


def test_a_held_cell_that_hangs_is_ended_though_its_runner_is_gone(stand: Stand) -> None:
    job = stand.job("job", "hangs trains")
    job.run.create(job.recipe, job.seed)
    orphan = subprocess.Popen(stand.command(job), start_new_session=True)
    while not job.run.held:
        time.sleep(0.01)
    launcher = stand.launcher(job, retries=9, patience=8)
    for event in launcher.run():
        orphan.poll()
        assert event is None or event.state is not State.FAILED
    assert orphan.wait() == -signal.SIGKILL
    assert stand.attempts(job) == ["hangs", "trains"]


def test_two_runners_finish_each_cell_exactly_once(tmp_path: Path) -> None:
    behaviours = ["trains", "slow"] * 4
    runners = [runner(tmp_path, *behaviours) for _ in range(2)]
    told = [each.communicate(timeout=600)[0] for each in runners]
    assert [each.returncode for each in runners] == [0, 0], told
    stand = Stand(tmp_path)
    jobs = [stand.job(f"job {n}", each) for n, each in enumerate(behaviours)]
    assert [stand.attempts(job) for job in jobs] == [[each] for each in behaviours]


@pytest.mark.parametrize("point", ["spec.json.begun", "spec.json.written", "spec.json.renamed"])
def test_a_runner_killed_at_what_it_writes_leaves_nothing_stuck(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_FAULT", f"{point}:2")
    first = runner(tmp_path, "trains", "trains", "trains")
    first.communicate(timeout=600)
    assert first.returncode == -signal.SIGKILL
    monkeypatch.delenv("WORKBENCH_FAULT")
    second = runner(tmp_path, "trains", "trains", "trains")
    second.communicate(timeout=600)
    assert second.returncode == 0
    stand = Stand(tmp_path)
    jobs = [stand.job(f"job {n}") for n in range(3)]
    assert [stand.attempts(job) for job in jobs] == [["trains"]] * 3
    assert not list(tmp_path.rglob(".spec*"))
