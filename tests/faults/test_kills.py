"""Killed and interrupted at any moment: what was done stays done, and the end is the same."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RECIPE, RESOURCES, assert_same, attempt, begin, log_of, timeless

from workbench import Optimizer, Resources, Validation, replace, upge
from workbench.launch import Launcher
from workbench.plan import Job
from workbench.records import Run, dropped_path, read_lines, run_of
from workbench.schema import Failure, File
from workbench.training import checkpoint

pytestmark = pytest.mark.faults

LONG = replace(
    RECIPE,
    steps=12,
    updates_per_batch=2,
    validation=Validation(every=4, samples=1, problems=1),
    optimizer=Optimizer(nonfinite="rollback"),
)
SPARSE = {"recipe": LONG, "checkpoint_every": 3, "keep_last": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole") / "seed-0")
    assert attempt(run, **SPARSE) == 0
    return run


def lines(run: Run) -> int:
    """Whole lines of the record, without judging a last one that is being written."""
    path = run.path / File.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: Any, run: Run, more: int) -> None:
    wanted = lines(run) + more
    while process.is_alive() and lines(run) < wanted:
        time.sleep(0.005)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_again_and_again(seed: int, tmp_path: Path, whole: Run) -> None:
    chance, run, saved = random.Random(seed), Run(tmp_path / "seed-0"), []
    for _ in range(20):
        process = begin(run, **SPARSE)
        wait_for(process, run, chance.randint(4, 6))
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.join()
        saved.append(checkpoint.latest(run) or 0)
        if run.finished:
            break
    assert attempt(run, **SPARSE) == 0
    assert saved == sorted(saved)  # steps never go backward
    # "At most twice the undisturbed time" is asserted of the work: what a kill costs a run, however
    # long it is, are the steps that are taken again, and a count of them does not move with what
    # else the machine does, as a clock would.
    again = len(read_lines(dropped_path(run.path / File.METRICS)))
    assert again <= LONG.steps
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("number", "point"),
    [
        (signal.SIGINT, "metrics.jsonl.torn:5"),
        (signal.SIGTERM, "questions.jsonl.appended:7"),
        (signal.SIGTERM, "checkpoints.begun:2"),
    ],
    ids=["SIGINT in a record", "SIGTERM in a step", "SIGTERM in a checkpoint"],
)
def test_asked_to_stop_it_saves_and_goes_on_from_there(
    number: signal.Signals, point: str, tmp_path: Path, whole: Run
) -> None:
    run = Run(tmp_path / "seed-0")
    assert attempt(run, asked=(point, (number,)), **SPARSE) == 130
    assert run.failure is not None
    assert run.failure["kind"] == Failure.INTERRUPTED
    assert checkpoint.latest(run) == run.rows()[-1]["step"] < LONG.steps
    assert attempt(run, **SPARSE) == 0
    assert not dropped_path(run.path / File.METRICS).exists()  # no step was lost
    assert_same_end(run, whole)


def test_asked_twice_it_ends_at_once(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path / "seed-0")
    twice = (signal.SIGTERM, signal.SIGINT)
    assert attempt(run, asked=("metrics.jsonl.appended:6", twice), **SPARSE) == 130
    assert run.failure is None  # it took no time for that
    assert checkpoint.latest(run) == 4
    assert attempt(run, **SPARSE) == 0
    assert_same(run, whole)
    assert "Traceback" not in log_of(run)


class HangsOnce(upge.Advantage):
    """1 for every token; at the third update it hangs for ever, unless a file says that it did."""

    file: str

    def __call__(self, batch: upge.TokenBatch) -> torch.Tensor:
        if batch.step == 2 and not Path(self.file).exists():
            Path(self.file).touch()
            while True:
                signal.pause()
        return torch.ones_like(batch.logprobs)


# A worker whose engine hangs once in its third call, and says so by a file.
ENGINE = """
import signal, sys
from pathlib import Path
from workbench import worker
from workbench.rollout.transformers_engine import TransformersEngine

generate, calls, hung = TransformersEngine.generate, [], Path(sys.argv[1])

def hangs(*given):
    calls.append(given)
    if len(calls) == 3 and not hung.exists():
        hung.touch()
        while True:
            signal.pause()
    return generate(*given)

TransformersEngine.generate = hangs
sys.exit(worker.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("what", ["an update", "the engine"])
def test_one_that_makes_no_progress_is_ended_and_gone_on_with(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    hung, recipe = tmp_path / "hung", replace(RECIPE, method=upge.grpo())
    if what == "an update":
        hangs = upge.Estimator(advantage=HangsOnce(str(hung)))
        recipe = replace(LONG, method=upge.Method(demonstrations=hangs), updates_per_batch=1)
    job = Job("job", recipe, 0, run_of(tmp_path, recipe, 0))
    launcher, told = Launcher([job], Resources(**RESOURCES), tmp_path), []
    if what == "the engine":
        _, _, _, _, *given = launcher._worker_command(job)  # python -m workbench worker ...
        launcher.command = lambda _: [sys.executable, "-c", ENGINE, str(hung), *given]
    for event in launcher.run():
        if event is not None and event.reason:
            told.append(event.reason)
        if hung.exists() and not told:
            (first,) = launcher._attempts
            first.watchdog.patience = 1
    (reason,) = told
    assert "stalled: no progress" in reason
    whole = Run(tmp_path / "seed-0")
    assert attempt(whole, recipe=recipe) == 0
    assert job.done
    assert timeless(job.run.rows()) == timeless(whole.rows())


def assert_same_end(run: Run, whole: Run) -> None:
    """As `assert_same`, but for the checkpoint of the step at which it was asked to stop."""
    extra = set(checkpoint.steps(run)) - set(checkpoint.steps(whole))
    assert len(extra) <= 1
    checkpoint.prune(run, 1, checkpoint.steps(whole))
    assert_same(run, whole)
