"""What the scheduler costs a cell, and whether that or its memory grows over 1,000 of them.

python benchmarks/scheduling.py
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from workbench import Data, Recipe, Resources
from workbench.launch import Launcher
from workbench.launch.local import State
from workbench.launch.room import FOLDER
from workbench.plan import Job
from workbench.records import run_of

CELLS, EVERY = 1000, 100


def command(job: Job) -> list[str]:
    """A cell that does nothing but have a result."""
    return ["/bin/sh", "-c", 'echo "{}" > "$0"', str(job.run.path / "result.json")]


def main() -> None:
    """Runs them, and prints milliseconds a cell and megabytes for each hundred."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ[FOLDER] = str(root / "slots")  # so that no study that trains here has the cores
        recipes = [Recipe("no-op", Data("arithmetic", train=16 + n)) for n in range(CELLS)]
        jobs = [Job(f"cell {n}", r, 0, run_of(root, r, 0)) for n, r in enumerate(recipes)]
        print(f"starting such a process alone: {_alone(jobs[0]):.1f} ms")
        done, began = 0, time.perf_counter()
        for event in Launcher(jobs, Resources(device="cpu"), root, command).run():
            if event is None or event.state is not State.DONE:
                continue
            done += 1
            if done % EVERY == 0:
                now = time.perf_counter()
                print(f"{done} cells: {_milliseconds(now - began):.1f} ms a cell, ", end="")
                print(f"{_megabytes():.1f} MB", flush=True)
                began = now


def _milliseconds(seconds: float) -> float:
    return 1000 * seconds / EVERY


def _alone(job: Job) -> float:
    job.run.path.mkdir(parents=True)
    began = time.perf_counter()
    for _ in range(EVERY):
        subprocess.run(command(job), check=True)
    (job.run.path / "result.json").unlink()
    return _milliseconds(time.perf_counter() - began)


def _megabytes() -> float:
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
