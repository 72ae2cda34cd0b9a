"""Cells an hour with one worker and with two, and what the start of a cell takes.

    python benchmarks/study.py                 # four cells of 12 steps each way; --steps, --cells

The cells are HPT on the embedded model. Runnable threads are counted at every look at the
processes: more of them than cores would mean that cells get in each other's way. The start of a
cell is taken apart in a process of its own, as a worker goes through it; MLflow is no part of it,
for the runner alone talks to that: while cells train, as in any study.

What tracking takes of a step are seconds by the clock to append a step's lines to its records, and
processor seconds of the runner's thread to show it in MLflow; what a run takes once (parameters,
tables, its end) is printed beside them. The lines are appended by a thread while the next step is
drawn; what the thread that trains waits all the same is measured with a sleep for the drawing.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean

from workbench import Data, Recipe, Resources, Study, Validation, upge
from workbench.launch import Launcher
from workbench.plan import Job, Status, jobs
from workbench.provenance import cores
from workbench.records import Row, Run
from workbench.schema import File
from workbench.tracking import Mirror, ensure_store, experiments, store_uri
from workbench.tracking.mirror import Shown


def main() -> None:
    """Trains the cells anew each way, and prints cells an hour, runnable threads and a start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    study = study_of(options.cells, options.steps)
    print(f"load before: {os.getloadavg()[0]:.1f}; {cores()} cores")
    print(f"the start of a cell: {start_of_a_cell()}", flush=True)
    everything, first = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:  # imports mlflow, before any clock
        experiments(made_store(Path(folder)), [])
    alone = _measured("1 worker on one core", study, first, threads=1)
    several = _measured("a worker a core", study, everything, threads=1, tracking=True)
    _measured("1 worker on all cores", study, everything, threads=len(everything))
    print(f"speed-up of a worker a core on {len(everything)} cores: {alone / several:.2f}")


def study_of(cells: int, steps: int) -> Study:
    """HPT with that many seeds."""
    validation = Validation(every=steps, samples=1, problems=20)
    recipe = Recipe(
        "arithmetic-1m", Data("arithmetic"), upge.hpt(), steps=steps, validation=validation
    )
    return Study("parallel", [recipe], seeds=range(cells))


def start_of_a_cell() -> str:
    """Seconds of each part of a worker's start, as text."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.time()
    process = context.Process(target=_start, args=(theirs, began))
    process.start()
    theirs.close()  # so that what ends without a word is heard of
    parts, processor = ours.recv()
    process.join()
    listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    return f"{sum(parts.values()):.1f} s ({listed}), {processor:.1f} s of processor time"


def _start(told: Connection, began: float) -> None:
    """Goes through what a worker does before its first step, in its order."""
    parts, last = {"interpreter and declarations": time.time() - began}, time.time()

    def passed(name: str) -> None:
        nonlocal last
        parts[name], last = time.time() - last, time.time()

    from workbench.worker import load_torch

    load_torch(1)
    passed("torch, transformers and the trainer")
    from workbench.training import opening

    with tempfile.TemporaryDirectory() as folder:
        (job,) = jobs(study_of(1, 1), Path(folder))
        job.run.create(job.recipe, job.seed)
        opening.open_checkpoint(job.run, 0, Resources(device="cpu"))
    passed("model, data and optimizer")
    told.send((parts, time.process_time()))


def _measured(
    name: str, study: Study, allowed: set[int], threads: int, tracking: bool = False
) -> float:
    """Wall seconds of the study on those cores."""
    os.sched_setaffinity(0, allowed)
    resources = Resources(device="cpu", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mlruns"
        made_store(root)
        cells = jobs(study, root)
        launcher, mirror = Launcher(cells, resources, root, poll=0.1), Watched(study, root, cells)
        mirror.start()
        began, before, runnable = time.perf_counter(), _processor(), []
        for event in launcher.run():
            if event is None:
                with suppress(OSError):  # a process that ended meanwhile
                    runnable.append(sum(_runnable(os.getpid())))
        seconds = time.perf_counter() - began
        behind = mirror.close()
        assert not launcher.failed, [job.run.failure for job in launcher.failed]
        assert not behind, behind
        print(f"{name}: {3600 * len(cells) / seconds:.0f} cells an hour, {seconds:.1f} s, ", end="")
        print(f"{_processor() - before:.1f} s of processor time, ", end="")
        print(f"runnable threads {mean(runnable):.1f} on average", flush=True)
        if tracking:
            print(_tracking(cells, mirror), flush=True)
    return seconds


def made_store(root: Path) -> str:
    """The address of a new store for MLflow beside a tracking folder."""
    ensure_store(uri := store_uri(root), root)
    return uri


class Watched(Mirror):
    """A mirror that adds up processor seconds of what it shows: of steps, and of a run once."""

    of_steps = of_runs = 0.0

    def _push(self, job: Job) -> None:
        began, before = time.thread_time(), self.of_runs
        super()._push(job)
        self.of_steps += time.thread_time() - began - (self.of_runs - before)

    def _show(self, job: Job) -> Shown:
        began, known = time.thread_time(), len(self._shown)
        shown = super()._show(job)
        if len(self._shown) > known:
            self.of_runs += time.thread_time() - began
        return shown

    def _settle(self, job: Job, shown: Shown, now: Status, *, changed: bool) -> None:
        began = time.thread_time()
        super()._settle(job, shown, now, changed=changed)
        self.of_runs += time.thread_time() - began


def _tracking(cells: list[Job], mirror: Watched) -> str:
    """What the records of some cells took of their steps, and MLflow, as text."""
    steps = [row["time/step"] for job in cells for row in job.run.rows() if "time/step" in row]
    with tempfile.TemporaryDirectory() as folder:
        appended, waited = _recorded(cells, Path(folder))
    shown = mirror.of_steps / len(steps)
    return (
        f"tracking: {1000 * appended:.2f} ms for its lines, of which training waits "
        f"{1000 * waited:.2f} ms, and {1000 * shown:.1f} ms for MLflow a step of "
        f"{mean(steps):.2f} s, {(appended + shown) / mean(steps):.1%}; "
        f"{1000 * mirror.of_runs / len(cells):.0f} ms for MLflow once a run"
    )


def _recorded(cells: list[Job], folder: Path) -> tuple[float, float]:
    """Seconds by the clock for a step's lines, written once more, and those that training waits."""
    # It brings torch, which no process that was timed so far had in the launcher.
    from workbench.training.record import append_lines, recording

    appended, waited = [], []

    def append(run: Run, lines: dict[str, Row]) -> None:
        began = time.perf_counter()
        append_lines(run, lines)
        appended.append(time.perf_counter() - began)

    for number, job in enumerate(cells):
        questions = {row["step"]: row for row in job.run.rows(File.QUESTIONS)}
        with recording(Run(folder / str(number))) as recorder:
            for row in job.run.rows()[1:]:  # the first is of no step
                lines = {File.QUESTIONS: questions[row["step"]], File.METRICS: row}
                began = time.perf_counter()
                recorder.write(append, lines)
                waited.append(time.perf_counter() - began)
                time.sleep(0.1)
    return mean(appended), mean(waited)


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
