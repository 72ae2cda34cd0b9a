"""What ends one process of a team ends them all, and is told."""

import os
import signal
import sys
from pathlib import Path

import pytest
from runs import assert_same_end, wait_for_step, worker
from system import alive, wait_for_end
from teams import SPAWN, TWO, lead

from workbench.records import Run
from workbench.training.loop import train
from workbench.training.peer import serve
from workbench.training.team import PeerFailed, PeerKilled, assembled
from workbench.training.trainer import open_trainer


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
