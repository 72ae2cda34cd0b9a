"""Workers of runs, and what two runs of one recipe and seed must have in common."""

import json
import subprocess
import sys
import time

from workbench.records import Run
from workbench.schema import WALL_CLOCK, File
from workbench.training import checkpoint


def worker(run: Run, *options: str, **resources: object) -> subprocess.Popen:
    """A worker that saves every step."""
    command = [sys.executable, "-m", "workbench", "worker", str(run.path)]
    command += ["--resources", json.dumps({"checkpoint_every": 1, **resources}), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_step(run: Run, step: int, process: subprocess.Popen) -> None:
    """Until the step is recorded, or the process has ended."""
    while process.poll() is None:
        path = run.path / File.METRICS
        if path.exists() and len(path.read_bytes().splitlines()) > step:
            return
        time.sleep(0.02)


def timeless(run: Run) -> list[dict]:
    """The rows of a run without their timings."""
    return [
        {k: v for k, v in row.items() if k != "timestamp" and not k.startswith(WALL_CLOCK)}
        for row in run.rows()
    ]


def assert_same_end(run: Run, other: Run, steps: int) -> None:
    """Fails unless both have the same metrics, order of data, weights and optimizer state."""
    assert timeless(run) == timeless(other)
    assert run.rows(File.QUESTIONS) == other.rows(File.QUESTIONS)
    for file in ("model.safetensors", checkpoint.OPTIMIZER):
        mine = (run.checkpoint_path(steps) / file).read_bytes()
        assert mine == (other.checkpoint_path(steps) / file).read_bytes(), file
