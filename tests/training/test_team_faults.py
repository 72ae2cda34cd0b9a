"""What ends one process of a team ends them all, and is told."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import assert_same_end, wait_for_step, worker
from system import alive, wait_for_end
from teams import SPAWN, TWO, lead, serve_until_an_error

from workbench.processes import Failed, Killed
from workbench.records import Run
from workbench.rollout import Request, Response
from workbench.rollout.engine import Decoding, EngineKilled
from workbench.schema import Failure
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.peer import serve
from workbench.training.team import PeerFailed, PeerKilled, Team, assembled
from workbench.training.team_engine import TeamEngine
from workbench.worker import failure_of


def test_a_process_that_is_killed_ends_the_others_and_says_so(small, open_run):
    run, seen = open_run(small), []
    said = "was ended by SIGKILL"
    with pytest.raises(PeerKilled, match=said), assembled(TWO, serve) as t:
        trainer = open_trainer(run, TWO, t)
        seen += t.peers.values()
        os.kill(seen[0].pid, signal.SIGKILL)
        train(trainer, run)
    assert not seen[0].is_alive()


def test_an_error_in_another_process_is_told_with_its_words(small, open_run):
    run = open_run(small)
    said = r"Corrupt: checkpoint .*step-000003"
    with pytest.raises(PeerFailed, match=said), assembled(TWO, serve) as t:
        trainer = open_trainer(run, TWO, t)
        t.order("go_back", 3)
        train(trainer, run)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_leaves_nobody_behind_and_goes_on_as_if_nothing_had_been(
    small, tmp_path
):
    whole, killed = Run(tmp_path / "a/cells/x/seed-0"), Run(tmp_path / "b/cells/x/seed-0")
    for run in (whole, killed):
        run.create(small, 0)
    assert worker(whole, device="cpu", processes=2).wait() == 0
    process = worker(killed, device="cpu", processes=2)
    wait_for_step(killed, 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert children
    for child in children:
        wait_for_end(int(child))
    assert worker(killed, device="cpu", processes=2).wait() == 0
    assert_same_end(whole, killed, small.steps)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_a_process_of_a_team_may_start_one_and_neither_outlives_the_leader(end):
    ours, theirs = SPAWN.Pipe()
    leader = SPAWN.Process(target=lead, args=(theirs,))
    leader.start()
    peer, helper = ours.recv()
    assert alive(peer) and alive(helper)
    if end == "leaves":
        ours.send(end)
    else:
        leader.kill()
    leader.join()
    wait_for_end(peer)
    wait_for_end(helper)


@pytest.mark.parametrize(("error", "kind", "failure"), [
    (EngineKilled("its process 7 was ended by SIGKILL"), Killed, Failure.KILLED),
    (MemoryError("4 GiB"), MemoryError, Failure.MEMORY),
    (ValueError("a temperature"), PeerFailed, Failure.ERROR),
], ids=["killed", "memory", "error"])  # fmt: skip
def test_what_ends_an_engine_is_the_failure_that_it_is_under_the_leader(error, kind, failure):
    own = SimpleNamespace(generate=lambda asked, decoding, hear: [[Response((1,), (0.0,), True)]])
    serve_it, asked = partial(serve_until_an_error, error), [Request((1,), 1, seed=0)] * 2
    said = f"of the team: {type(error).__name__}: {error}"
    with pytest.raises(kind, match=said) as found, assembled(TWO, serve_it) as team:
        TeamEngine(own, team).generate(asked, Decoding(1.0, 1.0, 4))
    assert failure_of(found.value) == failure


GLOO = Failed("RuntimeError", "connection closed by peer", killed=False)


@pytest.mark.parametrize(("second", "code", "kind", "said"), [
    (None, -9, PeerKilled, "process 2 .*ended by SIGKILL"),
    (Failed("EngineKilled", "its process 7", killed=True), 1, Killed, "process 2 .*its process 7"),
    (Failed("OutOfMemoryError", "4 GiB", killed=False), 1, MemoryError, "process 2 .*4 GiB"),
    (GLOO, 1, PeerFailed, "process 1 .*connection closed"),
], ids=["killed", "engine killed", "memory", "error"])  # fmt: skip
@pytest.mark.parametrize("heard", [False, True])
def test_what_is_told_is_what_ended_the_first_and_not_what_the_others_met(
    second, code, kind, said, heard
):
    peers = {}
    for pid, last, status in ((1, GLOO, 1), (2, second, code)):
        ours, theirs = SPAWN.Pipe()
        if last is not None:
            theirs.send(last)
        theirs.close()
        ended = {"join": lambda timeout=None: None, "is_alive": lambda: False}
        peers[ours] = SimpleNamespace(pid=pid, exitcode=status, **ended)
    team, error = Team(0, 3, peers=peers), RuntimeError("connection closed by peer")
    if heard:
        with pytest.raises(PeerFailed) as found:
            team.hear(next(iter(peers)))
        error = found.value
    with pytest.raises(kind, match=said):
        team.why(error)
