"""A process that works for another one ends with it."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
from system import wait_for_end

from workbench.processes import serving

SPAWN = multiprocessing.get_context("spawn")


def serve_late(orders, served):
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    with serving(orders):
        served.touch()


def start_and_die(said, served):
    _, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=serve_late, args=(theirs, served))
    process.start()
    said.send(process.pid)
    os._exit(0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_whose_parent_died_before_it_began_does_nothing(tmp_path: Path):
    ours, theirs = SPAWN.Pipe()
    parent = SPAWN.Process(target=start_and_die, args=(theirs, tmp_path / "served"))
    parent.start()
    child = ours.recv()
    parent.join()
    wait_for_end(child)
    assert not (tmp_path / "served").exists()
