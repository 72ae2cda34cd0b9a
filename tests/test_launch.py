"""The scheduler with real processes: what starts, what ends how, and what must never run twice."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand import Stand

from workbench.launch import local, room
from workbench.launch.follow import Follow
from workbench.launch.lease import RUNNER, Lease
from workbench.launch.local import Event, Launcher, State, ready
from workbench.launch.room import Slot, slots
from workbench.plan import Job, status
from workbench.recipe import Data, Measurement, Recipe
from workbench.records import Held, run_of
from workbench.resources import Lacking, Resources
from workbench.schema import File


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(local, "slots", lambda _: [Slot("one"), Slot("two")])
    return Stand(tmp_path)


def run(launcher: Launcher) -> dict[str, list[Event]]:
    """The events of each job, by label."""
    found: dict[str, list[Event]] = {job.label: [] for job in launcher.jobs}
    for event in _within(600, launcher.run()):
        if event is not None:
            found[event.job.label].append(event)
    return found


def _within(seconds: float, events: Iterator[Event | None]) -> Iterator[Event | None]:
    deadline = time.monotonic() + seconds
    for event in events:
        assert time.monotonic() < deadline, "the launch does not end"
        yield event


def states(events: list[Event]) -> list[State]:
    return [event.state for event in events if event.row is None]


# --- what starts ---


def test_what_is_ready_follows_from_states_alone(stand: Stand) -> None:
    first, second = stand.job("first"), stand.job("second")
    third = stand.job("third", needs=first)
    paths = [job.run.path for job in (first, second, third)]
    table = {
        (State.WAITING, State.WAITING, State.WAITING): ([first, second], []),
        (State.RUNNING, State.WAITING, State.WAITING): ([second], []),
        (State.DONE, State.RUNNING, State.WAITING): ([third], []),
        (State.HELD, State.DONE, State.WAITING): ([], []),
        (State.FAILED, State.DONE, State.WAITING): ([], [third]),
        (State.STOPPED, State.DONE, State.WAITING): ([], [third]),
        (State.DONE, State.DONE, State.DONE): ([], []),
    }
    for given, expected in table.items():
        assert ready([first, second, third], dict(zip(paths, given, strict=True)), 2) == expected
    waiting = dict.fromkeys(paths, State.WAITING)
    assert ready([first, second, third], waiting, 1) == ([first], [])
    assert ready([first, second, third], waiting, 0) == ([], [])


def test_cells_train_at_once_and_each_once(stand: Stand) -> None:
    one, other, last = stand.job("one"), stand.job("other"), stand.job("last")
    stand.meet(one, other)
    launcher = stand.launcher(one, other, last)
    events = run(launcher)
    assert all(states(found) == [State.RUNNING, State.DONE] for found in events.values())
    assert [event.row for event in events["one"] if event.row] == one.run.rows()
    assert launcher.failed == []
    assert run(stand.launcher(one, other, last)) == {"one": [], "other": [], "last": []}


def test_a_run_starts_after_the_one_it_starts_from(stand: Stand) -> None:
    first = stand.job("first", "slow")
    then = stand.job("then", needs=first)
    order = [e.job.label for e in stand.launcher(first, then).run() if e and e.state is State.DONE]
    assert order == ["first", "then"]


def test_each_gpu_is_one_slot_named_by_its_uuid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "gpus", lambda: (("GPU-1", "H100"), ("GPU-2", "H100")))
    assert [slot.gpus for slot in slots(Resources())] == [("GPU-1",), ("GPU-2",)]
    assert all(slot.gpus == () for slot in slots(Resources(device="cpu")))
    stand = Stand(tmp_path)
    job = stand.job("job")
    run(Launcher([job], Resources(threads=3), tmp_path, stand.command, poll=0.02))
    assert job.run.result is not None
    expected = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert job.run.result["environment"] == expected


ENGINES = {
    "gpus=2": {"tensor_parallel": 2},
    "apart from the trainer needs 5; use gpus=5": {
        "gpus": 4,
        "tensor_parallel": 4,
        "engine_apart": True,
    },
    "gpus is 2, but as many processes need 4; use gpus=4": {"gpus": 2, "processes": 4},
    "processes is 2, each with a vLLM engine of its own": {
        "gpus": 4,
        "processes": 2,
        "tensor_parallel": 2,
    },
    "engine_cache must be above 0 or None, got 0.0; such as 1.0": {"engine_cache": 0},
    "tensor_parallel is 2, but on a processor .*; use tensor_parallel=1": {
        "device": "cpu",
        "tensor_parallel": 2,
    },
    "tensor_parallel must be at least 1, got 0; the nearest is 1": {"tensor_parallel": 0},
}


@pytest.mark.parametrize("message", ENGINES)
def test_resources_for_an_engine_are_checked(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(**ENGINES[message])
    assert Resources(device="cpu", processes=2).gpus == 1  # processes need no GPU there


def test_cores_are_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "cores", lambda: 8)
    monkeypatch.setattr(room, "gpus", lambda: ())
    rooms = {threads: len(slots(Resources(threads=threads))) for threads in (1, 3, 8, 16)}
    assert rooms == {1: 8, 3: 2, 8: 1, 16: 1}
    with pytest.raises(ValueError, match="choose auto or cpu"):
        slots(Resources(device="cuda"))
    with pytest.raises(Lacking, match=r"tensor_parallel is 2, .* there is no GPU; use"):
        slots(Resources(gpus=2, tensor_parallel=2))


def test_the_command_carries_what_the_worker_needs(tmp_path: Path) -> None:
    recipe = Recipe("model", Data("arithmetic"))
    measured = (Measurement("chain", 4, 0.6, 0.95, 32, 0),)
    job = Job("job", recipe, 0, run_of(tmp_path, recipe, 0), measured, keep=(20, 40))
    command = Launcher([job], Resources(tokens=99), tmp_path)._worker_command(job)
    assert command[1:5] == ["-m", "workbench", "worker", str(job.run.path)]
    assert command[command.index("--keep") + 1] == "20,40"
    assert '"tokens": 99' in command[command.index("--resources") + 1]
    assert '"suite": "chain"' in command[command.index("--measurements") + 1]


# --- how it ends ---

ENDS = {
    "fails": ("error", "out of luck"),
    "breaks": ("error", "RuntimeError: no record of this"),
    "dies": ("killed", "SIGKILL"),
    "forgets": ("error", "without a result"),
}


@pytest.mark.parametrize("behaviour", ENDS)
def test_a_failed_cell_says_why_and_stops_no_other(stand: Stand, behaviour: str) -> None:
    kind, reason = ENDS[behaviour]
    bad, good = stand.job("bad", behaviour), stand.job("good")
    then = stand.job("then", needs=bad)
    bad.run.fail("error", "of an earlier attempt")
    launcher = stand.launcher(bad, good, then)
    events = run(launcher)
    assert states(events["bad"]) == [State.RUNNING, State.FAILED]
    assert bad.run.failure is not None
    assert bad.run.failure["kind"] == kind
    assert reason in bad.run.failure["reason"]
    assert reason in events["bad"][-1].reason
    assert states(events["good"]) == [State.RUNNING, State.DONE]
    assert states(events["then"]) == [State.BLOCKED]
    assert "bad" in events["then"][0].reason
    assert launcher.failed == [bad, then]


def test_a_failed_cell_is_tried_again_by_the_next_launch(stand: Stand) -> None:
    job = stand.job("job", "dies")
    run(stand.launcher(job))
    stand.behaviours[job.run.path] = ("trains", stand.root)
    assert states(run(stand.launcher(job))["job"]) == [State.RUNNING, State.DONE]
    assert job.run.failure is None


def test_a_run_that_another_runner_holds_is_waited_for_and_not_run(stand: Stand) -> None:
    job = stand.job("job", "slow")
    job.run.create(job.recipe, job.seed)
    other = subprocess.Popen(stand.command(job))
    while job.run.holder is None:
        time.sleep(0.01)
    events = run(stand.launcher(job))
    assert other.wait() == 0
    assert states(events["job"]) == [State.HELD, State.DONE]
    assert events["job"][0].reason.startswith(f"process {other.pid} on ")
    assert not (job.run.path / File.LOG).exists()  # nothing was started


def test_a_run_that_another_runner_gives_up_is_gone_on_with(stand: Stand) -> None:
    job = stand.job("job", "slow")
    job.run.create(job.recipe, job.seed)
    other = subprocess.Popen(stand.command(job))
    while not job.run.held:
        time.sleep(0.01)
    other.kill()
    events = run(stand.launcher(job))
    other.wait()
    assert states(events["job"])[-2:] == [State.RUNNING, State.DONE]


def test_a_driver_of_a_cluster_and_runners_of_this_host_refuse_each_other(stand: Stand) -> None:
    job = stand.job("job", "slow")
    with Lease(stand.root, beat=0.05).hold(), pytest.raises(Held, match="driver of a cluster"):
        run(stand.launcher(job))
    tried = False
    for event in _within(600, stand.launcher(job).run()):
        if event is not None and event.row and not tried:
            tried = True
            with pytest.raises(Held, match="a runner"), Lease(stand.root).hold():
                pass
    assert tried and job.done


def test_a_runner_that_lost_the_store_ends_what_it_trains(stand: Stand) -> None:
    job = stand.job("job", "deaf")
    launcher = stand.launcher(job)
    for event in _within(600, launcher.run()):
        if event is not None and event.row:
            (mine,) = stand.root.glob(RUNNER.format(token="*"))
            mine.unlink()  # as whoever counts it as gone does
    assert launcher.stopping
    assert launcher.states[job.run.path] is State.STOPPED
    assert not job.run.held
    assert job.run.failure is None  # it wrote nothing any more


def test_an_interrupt_is_passed_on_once_and_nothing_more_starts(stand: Stand) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts jobs
    jobs = [stand.job(name, "sleeps") for name in ("one", "two", "three")]
    launcher = stand.launcher(*jobs)
    last: dict[str, Event] = {}
    for event in _within(600, launcher.run()):
        if event is None:
            continue
        last[event.job.label] = event
        if len([e for e in last.values() if e.row]) == 2 and not launcher.stopping:
            os.kill(os.getpid(), signal.SIGINT)
    assert launcher.stopping
    assert {label: event.state for label, event in last.items()} == dict.fromkeys(
        ("one", "two", "three"), State.STOPPED
    )
    assert [status(job).kind for job in jobs] == ["interrupted", "interrupted", "waiting"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_leaves_a_run_that_another_runner_holds_to_that_one(stand: Stand) -> None:
    job = stand.job("job", "sleeps")
    job.run.create(job.recipe, job.seed)
    other = subprocess.Popen(stand.command(job))
    while job.run.holder is None:
        time.sleep(0.01)
    events = []
    for event in _within(600, stand.launcher(job).run()):
        if event is not None:
            events.append(event)
        elif len(events) == 1:
            os.kill(os.getpid(), signal.SIGINT)
    assert states(events) == [State.HELD, State.STOPPED]
    assert events[-1].reason.startswith(f"process {other.pid} on ")
    assert "goes on with it" in events[-1].reason
    assert job.run.held
    other.send_signal(signal.SIGINT)  # as it says
    assert other.wait() == 130


def test_a_second_interrupt_kills(stand: Stand) -> None:
    job = stand.job("job", "deaf")
    launcher = stand.launcher(job)
    last = None
    for event in _within(600, launcher.run()):
        if event is not None:
            last = event
        elif last is not None and last.row:  # at every look once it trains
            os.kill(os.getpid(), signal.SIGINT)
    assert last is not None
    assert last.state is State.STOPPED
    assert "SIGKILL" in last.reason
    assert status(job).kind == "interrupted"


def test_an_abandoned_launch_leaves_no_worker_behind(stand: Stand) -> None:
    job = stand.job("job", "slow")
    events = stand.launcher(job).run()
    worker = None
    for event in events:
        if event is not None and event.row:
            worker = event
            break
    assert worker is not None
    events.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 120
    while job.run.held and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not job.run.held
    assert not job.run.finished


def test_new_rows_are_read_once_whole_and_again_after_a_rewind(tmp_path: Path) -> None:
    job = Stand(tmp_path).job("job")
    follow = Follow(job.run.path / File.METRICS)
    assert follow.rows() == []
    job.run.append(File.METRICS, {"step": 1})
    with open(follow.path, "a") as handle:
        handle.write('{"step": 2')
    assert follow.rows() == [{"step": 1}]
    with open(follow.path, "a") as handle:
        handle.write("}\n")
    assert follow.rows() == [{"step": 2}]
    assert follow.rows() == []
    job.run.rewind(1)
    assert follow.rows() == [{"step": 1}]
