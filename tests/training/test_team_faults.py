"""What ends one process of a team ends them all, and is told."""

import os
import signal

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
