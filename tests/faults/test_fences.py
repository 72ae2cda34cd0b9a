"""A worker that sleeps while another takes its run over wakes up in what is not its own.

So it may be where hosts share run directories and not their locks. One kernel knows all locks: the
file of the lock is removed here, so that the second worker meets none.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import assert_same, attempt, begin, log_of

from workbench import worker
from workbench.records import Run
from workbench.schema import File

pytestmark = pytest.mark.faults


def wait_until_asleep(process: int) -> None:
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def contents(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("[!.]*") if path.is_file()}


@pytest.mark.parametrize(
    "point",
    [
        "rollouts.written",
        "questions.jsonl.appended:2",
        "metrics.jsonl.torn:2",
        "checkpoints.begun:2",
        "checkpoints.renamed:2",  # before the one that it is instead of is removed
        "result.json.begun",
    ],
)
def test_what_it_was_about_to_write_is_not_written(
    point: str, tmp_path: Path, undisturbed: Callable[[str], Run]
) -> None:
    run = Run(tmp_path / "seed-0")
    sleeper = begin(run, asked=(point, (signal.SIGSTOP,)))
    wait_until_asleep(sleeper.pid)
    (run.path / File.LOCK).unlink()
    assert attempt(run) == worker.DONE
    before = contents(run)
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join()
    assert sleeper.exitcode == worker.HELD
    assert "another process has taken over" in log_of(run)
    assert contents(run) == before
    assert_same(run, undisturbed("from its beginning"))
