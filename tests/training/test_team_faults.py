"""What ends one process of a team ends them all, and is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.resources import Resources
from workbench.training.loop import train
from workbench.training.peer import serve
from workbench.training.team import PeerFailed, PeerKilled, assembled
from workbench.training.trainer import open_trainer

TWO = Resources(device="cpu", processes=2)


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


def alive(pid: str) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_leaves_nobody_behind_and_goes_on(small, open_run):
    run = open_run(small)
    wanted = {"device": "cpu", "processes": 2, "checkpoint_every": 1}
    command = [sys.executable, "-m", "workbench", "worker", str(run.path)]
    command += ["--resources", json.dumps(wanted)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
        while len(run.rows()) < 2 and worker.poll() is None:
            time.sleep(0.05)
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        worker.kill()
    assert children
    deadline = time.monotonic() + 60
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert run.rows()[-1]["step"] == small.steps
