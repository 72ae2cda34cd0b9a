"""The process that trains one run directory: the same under every launcher.

Exit status: 0 the run has its result and its measurements, 1 an error (in `failure.json`), 3 held
or taken over by another process, 130 interrupted with its checkpoint saved.
"""

import argparse
import contextlib
import faulthandler
import functools
import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing.synchronize import Event as EventOfProcesses
from pathlib import Path
from typing import Any

from workbench import models, provenance
from workbench.durable import DiskFull, Fenced, move, remove, remove_tree, sweep
from workbench.problems import isolation
from workbench.processes import Killed, end_with_parent, importing
from workbench.recipe import Measurement, Probe
from workbench.records import Corrupt, Held, Interrupted, Run
from workbench.resources import Resources
from workbench.schema import Failure, File

log = logging.getLogger(__name__)

DONE, FAILED, HELD, INTERRUPTED = 0, 1, 3, 130
LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"


def main(arguments: list[str]) -> int:
    """Trains what is missing of a run and measures what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="workbench worker", description=__doc__)
    parser.add_argument("run", type=Path, help="the run directory, with its spec")
    parser.add_argument("--root", type=Path, help="the tracking folder; of the run unless given")
    parser.add_argument("--resources", default="{}", help="fields of Resources, as JSON")
    parser.add_argument("--measurements", default="[]", help="fields of Measurements, as JSON")
    parser.add_argument("--probes", default="", help="names of probes that are written down")
    parser.add_argument("--keep", default="", help="steps whose checkpoints others start from")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the launcher asks where a process hangs
    run = Run(options.run.resolve())
    try:
        with run.claim():
            return _work(run, options)
    except Held as error:
        log.warning("%s", error)
        return HELD


def _work(run: Run, options: argparse.Namespace) -> int:
    stopping = _Stopping(run)
    try:
        resources = Resources(**json.loads(options.resources))
        measurements = [Measurement(**each) for each in json.loads(options.measurements)]
        keep = [int(step) for step in options.keep.split(",") if step]
        probes = [run.asked(name) for name in options.probes.split(",") if name]
        revision = models.revision(run.recipe().base.name)
        provenance.record(run, resources=asdict(resources), model_revision=revision)
        _complete(run, resources, measurements, probes, keep, stopping)
    except Interrupted as error:
        asked = run.stop_asked
        reason = f"{error}: {asked}" if asked else str(error)
        log.info("%s", reason)
        _tell(run, Failure.INTERRUPTED, reason)
        return INTERRUPTED
    except Fenced as error:
        log.error("%s", error)
        return HELD
    except Exception as error:  # the rim of the process: recorded, and told by the exit status
        with contextlib.suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        if isinstance(error, Corrupt):
            _discard(error, run)
        _tell(run, failure_of(error), f"{type(error).__name__}: {error}")
        return FAILED
    return DONE


def failure_of(error: Exception) -> str:
    """What kind of failure an error is: whether it is tried again, and how, follows from it."""
    if isinstance(error, DiskFull):
        return Failure.DISK
    if isinstance(error, Corrupt):
        return Failure.CORRUPT
    # The engine's, one of a team, or one that takes a probe beside others.
    if isinstance(error, Killed | BrokenProcessPool):
        return Failure.KILLED
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return Failure.MEMORY if out_of_memory else Failure.ERROR


def _discard(found: Corrupt, run: Run) -> None:
    """Removes a checkpoint that stood in the run's way, if it is its own or nobody trains its run.

    So it counts as missing from now on: whoever needs it makes it again.
    """
    from workbench.training.checkpoint import discard_corrupt

    claimed = contextlib.nullcontext() if found.run == run else found.run.claim()
    with contextlib.suppress(Held, OSError), claimed:
        discard_corrupt(found.run, found.step)


def _tell(run: Run, kind: str, reason: str) -> None:
    """Records why the attempt ended; on a full disk the exit status alone says that it failed."""
    try:
        run.fail(kind, reason)
    except OSError as error:
        log.error("%s (%s); it cannot be recorded: %s", reason, kind, error)


class _Stopping:
    """True once a SIGINT, a SIGTERM or a request to stop came; a second signal ends at once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, *_: Any) -> None:
        if self.asked:
            os._exit(INTERRUPTED)
        self.asked = True

    def __call__(self) -> bool:
        return self.asked or self.run.stop_asked is not None


def _complete(
    run: Run,
    resources: Resources,
    measurements: list[Measurement],
    probes: list[Probe],
    keep: list[int],
    stopping: _Stopping,
) -> None:
    load_torch(resources.threads)
    isolation.allow(resources.threads * resources.processes)
    if not run.finished:
        _train(run, resources, keep, stopping)
        gc.collect()  # a model and what parts its gradient know each other: memory is wanted now
    missing = [m for m in measurements if not run.evaluation_path(m).exists()]
    lost = _lost(run, {*keep, *([run.recipe().steps] if missing else [])})
    aside = Run(run.path.with_name(f".again-{run.path.name}"))
    if lost:
        _make_again(run, aside, resources, lost, stopping)
        for each in missing:  # what was counted so far is of the weights that were lost
            remove(run.counted_path(each), "counted")
    if aside.path.exists():
        remove_tree(aside.path, "again")
    sweep(aside.path.parent, f".{aside.path.name}.*")
    if missing:
        _measure(run, resources, missing, stopping)
    for each in measurements:
        remove(run.counted_path(each), "counted")
    _probe_all(run, resources, probes, stopping)
    run.forget_failure()


@functools.cache
def load_torch(threads: int) -> None:
    """Brings torch, with so many threads, and what trains by it, without scikit-learn.

    Where that is installed, as it is with MLflow, transformers imports it, for speculative decoding
    alone: a quarter of what a cell takes to start.
    """
    with importing():
        import torch
        import transformers.utils

        transformers.utils.is_sklearn_available = lambda: False
        from workbench.training import loop, opening  # noqa: F401  transformers brings much more
    torch.set_num_threads(threads)


def _train(run: Run, resources: Resources, keep: list[int], stopping: _Stopping) -> None:
    from workbench.compact import write_tables
    from workbench.training.loop import train
    from workbench.training.opening import open_trainer
    from workbench.training.peer import serve
    from workbench.training.team import assembled

    recipe = run.recipe()
    if recipe.method is None:  # the model as it is: nothing to train, only to measure
        run.finish({"steps": 0, "sampled_tokens": 0, "trained_tokens": 0, "seconds": 0.0})
        return
    with assembled(resources, serve) as team:
        trainer = open_trainer(run, resources, team)
        with contextlib.closing(trainer.engine):
            train(trainer, run, keep, stopping)
    rows = run.rows()
    write_tables(run, run.path)
    progress = trainer.progress
    run.finish(
        {
            "steps": progress.step,
            "updates": progress.updates,
            "sampled_tokens": progress.sampled_tokens,
            "trained_tokens": progress.trained_tokens,
            "seconds": sum(r.get("time/step", 0) + r.get("time/validation", 0) for r in rows),
            "skipped": sum(r.get("optim/skipped", 0) for r in rows),
            "ended": int(time.time() * 1000),
        }
    )


def _lost(run: Run, steps: Collection[int]) -> list[int]:
    """Those of some steps of a finished run whose checkpoint is not there, or not as it was."""
    from workbench.training.checkpoint import discard_corrupt

    if run.recipe().method is None:  # the model as it is: nothing is saved
        return []
    for step in steps:
        discard_corrupt(run, step)
    return sorted(step for step in steps if not run.checkpoint_path(step).exists())


def _make_again(
    run: Run, aside: Run, resources: Resources, steps: list[int], stopping: _Stopping
) -> None:
    """Makes checkpoints that a finished run does not have, by training it again, aside."""
    from workbench.training.loop import train
    from workbench.training.opening import open_trainer
    from workbench.training.peer import serve
    from workbench.training.team import assembled

    aside.create(run.recipe(), run.seed)
    log.info("training %s again for the checkpoints of steps %s", run.path, steps)
    with assembled(resources, serve) as team:
        trainer = open_trainer(aside, resources, team)
        with contextlib.closing(trainer.engine), contextlib.suppress(Interrupted):
            train(trainer, aside, steps, lambda: stopping() or trainer.progress.step >= max(steps))
    if trainer.progress.step < max(steps):
        raise Interrupted(f"stopped at step {trainer.progress.step} of {max(steps)}")
    for step in steps:
        move(aside.checkpoint_path(step), run.checkpoint_path(step), File.CHECKPOINTS)


def _measure(
    run: Run, resources: Resources, measurements: list[Measurement], stopping: _Stopping
) -> None:
    from workbench.training.data import open_data
    from workbench.training.evaluation import measure
    from workbench.training.opening import initial_weights, open_answering
    from workbench.training.peer import serve
    from workbench.training.team import assembled

    recipe = run.recipe()
    weights = str(run.checkpoint_path(recipe.steps))
    if recipe.method is None:
        weights = initial_weights(run, recipe, run.seed)
    get_on = _attending(run, stopping, "stopped while measuring")
    with assembled(resources, serve) as team:
        policy, engine = open_answering(run, weights, resources, get_on, team)
        data = open_data(run, policy.tokenizer)
        with contextlib.closing(engine):
            for number, measurement in enumerate(measurements):
                run.tell(f"measuring {measurement.suite} ({number + 1} of {len(measurements)})")
                measure(run, policy, engine, data, measurement)


def _probe_all(run: Run, resources: Resources, probes: list[Probe], stopping: _Stopping) -> None:
    """Takes the probes that are missing, on a processor as many at once as there are threads.

    A step of a small model has too little in it for two threads; two probes keep two cores busy.
    """
    from workbench.training.policy import pick_device

    missing = [plan for plan in probes if not run.probe_path(plan).exists()]
    together = resources.threads if pick_device(resources.device).type == "cpu" else 1
    if min(together, len(missing)) < 2:
        for plan in missing:
            _probe(run, resources, plan, stopping)
        return
    spawning = multiprocessing.get_context("spawn")
    stop = spawning.Event()
    pool = ProcessPoolExecutor(together, spawning, _begin_apart, (stop,))
    try:
        waiting = {pool.submit(_probe_apart, run, resources, run.ask(plan)) for plan in missing}
        while waiting:
            ended, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
            if stopping():
                raise Interrupted("stopped in a probe, which begins again")
            for each in ended:
                each.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_stop_apart: list[EventOfProcesses] = []  # of a process that takes probes beside others: its only


def _begin_apart(stop: EventOfProcesses) -> None:
    """Leaves signals to the process that asked for the probes, and ends when that one does."""
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _stop_apart.append(stop)


def _probe_apart(run: Run, resources: Resources, asked: str) -> None:
    load_torch(1)
    isolation.allow(1)
    (stop,) = _stop_apart
    with run.fenced():  # which its process has claimed
        _probe(run, resources, run.asked(asked), stop.is_set)


def _probe(run: Run, resources: Resources, plan: Probe, stopping: Callable[[], bool]) -> None:
    from workbench.training.opening import open_at
    from workbench.training.probe import probe
    from workbench.training.team import ALONE

    run.tell(f"probe of step {plan.step}, distance {plan.distance}")
    get_on = _attending(run, stopping, "stopped in a probe, which begins again")
    trainer = open_at(run, plan.step or None, resources, ALONE, get_on)
    with contextlib.closing(trainer.engine):
        probe(run, trainer, plan, get_on)


def _attending(run: Run, stopping: Callable[[], bool], stopped: str) -> Callable[[], None]:
    """What is called whenever the work got further: shows that, and ends it where that is asked."""

    def get_on() -> None:
        run.beat()
        if stopping():
            raise Interrupted(stopped)

    return get_on


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
