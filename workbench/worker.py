"""The process that trains one run directory: the same under every launcher.

Exit status: 0 the run has its result and its measurements, 1 an error (in `failure.json`), 3 held
by another process, 130 interrupted with its checkpoint saved.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from workbench import provenance
from workbench.recipe import Measurement, Probe
from workbench.records import Held, Run, read_lines, remove_tree
from workbench.resources import Resources
from workbench.schema import File

log = logging.getLogger(__name__)

DONE, FAILED, HELD, INTERRUPTED = 0, 1, 3, 130


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = Run(options.run.resolve())
    try:
        with run.claim():
            provenance.record(run)
            return _work(run, options)
    except Held as error:
        log.warning("%s", error)
        return HELD


def _work(run: Run, options: argparse.Namespace) -> int:
    from workbench.training.loop import Interrupted

    stopping = _Stopping()
    try:
        resources = Resources(**json.loads(options.resources))
        measurements = [Measurement(**each) for each in json.loads(options.measurements)]
        keep = [int(step) for step in options.keep.split(",") if step]
        probes = [run.asked(name) for name in options.probes.split(",") if name]
        _complete(run, resources, measurements, probes, keep, stopping)
    except Interrupted as error:
        log.info("%s", error)
        run.fail("interrupted", str(error))
        return INTERRUPTED
    except Exception as error:  # the rim of the process: recorded, and told by the exit status
        traceback.print_exc()
        run.fail("error", f"{type(error).__name__}: {error}")
        return FAILED
    return DONE


class _Stopping:
    """True once a SIGINT or SIGTERM came; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, *_: Any) -> None:
        if self.asked:
            os._exit(INTERRUPTED)
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def _complete(
    run: Run,
    resources: Resources,
    measurements: list[Measurement],
    probes: list[Probe],
    keep: list[int],
    stopping: _Stopping,
) -> None:
    import torch

    torch.set_num_threads(resources.threads)
    if not run.finished:
        _train(run, resources, keep, stopping)
    lost = [step for step in keep if not run.checkpoint_path(step).exists()]
    if lost:
        _make_again(run, resources, lost, stopping)
    missing = [m for m in measurements if not run.evaluation_path(m).exists()]
    if missing:
        _measure(run, resources, missing, stopping)
    for plan in probes:
        _probe(run, resources, plan, stopping)
    (run.path / File.FAILURE).unlink(missing_ok=True)


def _train(run: Run, resources: Resources, keep: list[int], stopping: _Stopping) -> None:
    from workbench.training.loop import train
    from workbench.training.trainer import open_trainer

    recipe = run.recipe()
    if recipe.method is None:  # the model as it is: nothing to train, only to measure
        run.finish({"steps": 0, "sampled_tokens": 0, "trained_tokens": 0, "seconds": 0.0})
        return
    trainer = open_trainer(run, resources)
    train(trainer, run, keep, stopping)
    rows = read_lines(run.path / File.METRICS)
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


def _make_again(run: Run, resources: Resources, steps: list[int], stopping: _Stopping) -> None:
    """Makes checkpoints that a finished run did not keep, by training it again, aside."""
    from workbench.training.loop import Interrupted, train
    from workbench.training.trainer import open_trainer

    aside = Run(run.path.with_name(f".again-{run.path.name}"))
    aside.create(run.recipe(), run.seed)
    trainer = open_trainer(aside, resources)
    log.info("training %s again for the checkpoints of steps %s", run.path, steps)
    with contextlib.suppress(Interrupted):
        train(trainer, aside, steps, lambda: stopping() or trainer.progress.step >= max(steps))
    if trainer.progress.step < max(steps):
        raise Interrupted(f"stopped at step {trainer.progress.step} of {max(steps)}")
    for step in steps:
        os.replace(aside.checkpoint_path(step), run.checkpoint_path(step))
    remove_tree(aside.path)


def _measure(
    run: Run, resources: Resources, measurements: list[Measurement], stopping: _Stopping
) -> None:
    from workbench.training.data import open_data
    from workbench.training.evaluation import measure
    from workbench.training.loop import Interrupted
    from workbench.training.trainer import initial_weights, open_engine, open_policy

    recipe = run.recipe()
    path = str(run.checkpoint_path(recipe.steps))
    if recipe.method is None:
        path = initial_weights(run, recipe, run.seed)
    policy = open_policy(recipe, path, resources)
    engine = open_engine(policy, resources)
    data = open_data(run, policy.tokenizer)
    for measurement in measurements:
        if stopping():
            raise Interrupted(f"stopped before measuring {measurement.suite}")
        measure(run, policy, engine, data, measurement)


def _probe(run: Run, resources: Resources, plan: Probe, stopping: _Stopping) -> None:
    from workbench.training.probe import probe
    from workbench.training.trainer import open_checkpoint

    if not run.probe_path(plan).exists():
        probe(run, open_checkpoint(run, plan.step, resources), plan, stopping)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
