"""A process that works for another one ends with it; one that computes keeps its memory."""

import gc
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from system import wait_for_end

from workbench.processes import importing, serving

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


def crash(orders):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with serving(orders):
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_process_that_crashes_says_where(capfd):
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=crash, args=(theirs,))
    process.start()
    process.join()
    ours.close()
    assert process.exitcode == -signal.SIGSEGV
    assert re.search("Segmentation fault.* in crash", capfd.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("enabled", [True, False], ids=["as ever", "nothing is collected"])
@pytest.mark.parametrize("end", ["", "raise LookupError"], ids=["whole", "broken"])
def test_what_is_imported_is_in_no_look_for_garbage(
    enabled: bool, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "imported.py").write_text(f"many = [[] for _ in range(5_000)]\n{end}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported", raising=False)
    looks, before = [], gc.isenabled()
    gc.callbacks.append(lambda *look: looks.append(look))
    try:
        (gc.enable if enabled else gc.disable)()
        with suppress(LookupError), importing():
            import imported  # pyright: ignore[reportMissingImports]

            assert imported.many
        assert gc.isenabled() == enabled
        assert looks == []
        assert gc.get_freeze_count() >= 5_000
    finally:
        gc.callbacks.pop()
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


FAULTS = """
import resource, sys, torch
from workbench.processes import settle_memory
if sys.argv[1] == "kept":
    settle_memory()
def faults():
    for size in (3, 11, 40):
        torch.ones(size, 2**18)  # megabytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_used_again_and_not_asked_for_anew():
    """A page that is asked for anew is a fault; there are 13,824 in 54 megabytes.

    A tensor may find that something small lies where it was, and then it is put elsewhere.
    """

    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert faults("kept") < 4_000 < 10_000 < faults("returned")
