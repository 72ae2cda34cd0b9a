"""What the cores give a study: four cells on one core, on all with a thread each, and in turn.

python benchmarks/parallel.py

Runnable threads are counted at every look at the processes: more of them than cores would mean
that cells get in each other's way.
"""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean

from workbench import Data, Recipe, Resources, Study, Validation, upge
from workbench.launch import Launcher
from workbench.plan import jobs
from workbench.provenance import cores

STEPS = 12
RECIPE = Recipe(
    "arithmetic-1m",
    Data("arithmetic"),
    upge.hpt(),
    steps=STEPS,
    validation=Validation(every=STEPS, samples=1, problems=20),
)


def main() -> None:
    """Trains the cells anew each way, and prints seconds and runnable threads."""
    everything, first = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    print(f"load before: {os.getloadavg()[0]:.1f}; {cores()} cores")
    alone = _measured("one core, a cell at a time", first, threads=1)
    several = _measured("all cores, a thread a cell", everything, threads=1)
    _measured("all cores, a cell at a time", everything, threads=len(everything))
    print(f"speed-up of a thread a cell on {len(everything)} cores: {alone / several:.2f}")


def _measured(name: str, allowed: set[int], threads: int) -> float:
    """Wall seconds of the study on those cores."""
    os.sched_setaffinity(0, allowed)
    resources = Resources(device="cpu", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study = Study("parallel", [RECIPE], seeds=range(4), resources=resources)
        launcher = Launcher(jobs(study, root), resources, root, poll=0.1)
        began, before, runnable = time.perf_counter(), _processor(), []
        for event in launcher.run():
            if event is None:
                with suppress(OSError):  # a process that ended meanwhile
                    runnable.append(sum(_runnable(os.getpid())))
        seconds = time.perf_counter() - began
        assert not launcher.failed, [job.run.failure for job in launcher.failed]
    print(f"{name}: {seconds:.1f} s, {_processor() - before:.1f} s of processor time, ", end="")
    print(f"runnable threads {mean(runnable):.1f} on average", flush=True)
    return seconds


def _processor() -> float:
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _runnable(parent: int) -> Iterator[int]:
    """Threads that compute or wait for a core to, of each process under this one."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            threads = Path(f"/proc/{child}/task").glob("*/stat")
            yield sum(" R " in each.read_text() for each in threads)
            yield from _runnable(int(child))


if __name__ == "__main__":
    main()
