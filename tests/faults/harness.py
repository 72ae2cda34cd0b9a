"""Attempts at a small run, each a process of its own that dies where it is told to.

They are forked from one process that has imported torch, so that an attempt costs what it trains.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from mounts import private_mounts

from workbench import Data, Evaluation, Recipe, Sampling, Validation, durable, upge, worker
from workbench.recipe import Probe
from workbench.records import Run
from workbench.schema import WALL_CLOCK, File
from workbench.training import checkpoint, evaluation

RECIPE = Recipe(
    "arithmetic-1m",
    Data("arithmetic", train=8),
    steps=3,
    questions=2,
    rollouts=2,
    sampling=Sampling(max_tokens=6),
    validation=Validation(every=1, samples=1, problems=1),
    method=upge.hpt(),
)
EVALUATION = Evaluation(samples=2, suites=("chain",), problems=2)
MEASURED = json.dumps([dataclasses.asdict(m) for m in EVALUATION.measurements(("chain",), RECIPE)])
PROBE = Probe((upge.grpo(),), step=3, questions=3, replicates=2, rollouts=2, difficulty_samples=1)
RESOURCES = {"device": "cpu", "checkpoint_every": 1, "keep_last": 1}

_processes = multiprocessing.get_context("forkserver")


@lru_cache(maxsize=1)
def _warm() -> None:
    """Starts the process that attempts are forked from; it finds `warm` beside this file."""
    private_mounts()  # which attempts share: a disk that a test mounts is theirs too
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before])
    _processes.set_forkserver_preload(["warm"])
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = before


def begin(
    run: Run,
    fault: str = "",
    keep: Sequence[int] = (),
    full: str = "",
    probed: bool = False,
    recipe: Recipe = RECIPE,
    asked: tuple[str, tuple[int, ...]] = ("", ()),
    at_once: int = evaluation.AT_ONCE,
    **resources: Any,
) -> Any:
    """Starts an attempt: what the launcher and its worker do.

    Args:
        run: what is trained.
        fault: the point where the process dies.
        keep: steps whose checkpoints are kept.
        full: the point from which nothing more can be written, until that was told; with a `!`
            before it, for ever.
        probed: whether `PROBE` is asked for.
        recipe: what the run is of.
        asked: a point at which signals arrive, and these.
        at_once: responses of an evaluation before what was counted is written.
        resources: fields of `Resources` beside those of all attempts.
    """
    options = ["--resources", json.dumps({**RESOURCES, **resources}), "--measurements", MEASURED]
    options += ["--keep", ",".join(map(str, keep))]
    _warm()
    process = _processes.Process(
        target=_attempt, args=(run.path, recipe, options, fault, full, probed, asked, at_once)
    )
    process.start()
    return process


def attempt(run: Run, fault: str = "", **more: Any) -> int:
    """The exit status of an attempt; -9 where it died of its fault."""
    process = begin(run, fault, **more)
    process.join()
    return process.exitcode


def _attempt(
    path: Path,
    recipe: Recipe,
    options: list[str],
    fault: str,
    full: str,
    probed: bool,
    asked: tuple[str, tuple[int, ...]],
    at_once: int,
) -> None:
    os.setsid()
    os.environ[durable.FAULT] = fault
    output = os.open(path.parent / f"{path.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    durable.passed.clear()
    evaluation.AT_ONCE = at_once
    if full:
        _fill_the_disk_at(full.removeprefix("!"), for_ever=full.startswith("!"))
    point, signals = asked
    _at(point, lambda: [os.kill(os.getpid(), number) for number in signals])
    run = Run(path)
    run.create(recipe, 0)
    if probed:
        options += ["--probes", run.ask(PROBE)]
    status = worker.main([str(path), *options])
    passed_path(run).write_text(json.dumps(durable.passed))
    sys.exit(status)


def _at(point: str, act: Callable[[], object]) -> None:
    """Has something happen when this process passes a fault point, the n-th time as in a fault."""
    pass_by = durable.fault
    name, _, nth = point.partition(":")

    def fault(passing: str) -> None:
        pass_by(passing)
        if passing == name and durable.passed[name] == int(nth or 1):
            act()

    durable.fault = fault


def _fill_the_disk_at(point: str, for_ever: bool = False) -> None:
    """From that point on no file can grow: what a full disk is to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    _at(point, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1])))

    class DiskFull(durable.DiskFull):
        def __init__(self, path: Path, written: int) -> None:
            super().__init__(path, written)
            if not for_ever:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    durable.DiskFull = DiskFull


# Weights, optimizer state, texts, counts.
CONTENTS = (File.CHECKPOINTS, File.ROLLOUTS, File.EVALUATIONS, File.DATA)


def passed_path(run: Run) -> Path:
    """Where an attempt that came to its end says which fault points it passed."""
    return run.path.with_name(f"{run.path.name}.passed")


def apart(act: Callable[..., None], *given: Any, fault: str = "", full: str = "") -> int:
    """Does something in a process of its own; its exit status, -9 where it died of its fault.

    `fault` and `full` as in `begin`.
    """
    _warm()
    process = _processes.Process(target=_apart, args=(act, given, fault, full))
    process.start()
    process.join()
    return process.exitcode


def _apart(act: Callable[..., None], given: tuple[Any, ...], fault: str, full: str) -> None:
    os.environ[durable.FAULT] = fault
    durable.passed.clear()
    if full:
        _fill_the_disk_at(full)
    act(*given)


def log_of(run: Run) -> str:
    """What the attempts at a run wrote to their log."""
    return run.path.with_name(f"{run.path.name}.log").read_text()


def timeless(rows: list[dict[str, Any]]) -> list[str]:
    """Rows without their timings, as text: a NaN equals itself there."""
    return [
        json.dumps({k: v for k, v in row.items() if not k.startswith((*WALL_CLOCK, "timestamp"))})
        for row in rows
    ]


def end_of(run: Run) -> dict[str, Any]:
    """All that two runs of one recipe and seed must have in common, bit for bit."""
    found: dict[str, Any] = {
        File.METRICS: timeless(run.rows()),
        File.QUESTIONS: run.rows(File.QUESTIONS),  # the order of the data
        "checkpoints": checkpoint.steps(run),
        "result": {k: v for k, v in (run.result or {}).items() if k not in ("seconds", "ended")},
    }
    for file in sorted(path for path in run.path.rglob("*") if path.is_file()):
        name = str(file.relative_to(run.path))
        if name.startswith(CONTENTS):
            found[name] = file.read_bytes()
        elif name.startswith(File.PROBES):
            found[name] = parquet.read_table(file).to_pylist() if file.suffix != ".json" else []
    return found


def assert_same(run: Run, whole: Run) -> None:
    """Fails, naming what differs, unless both runs ended the same and nothing is left over."""
    mine, other = end_of(run), end_of(whole)
    assert mine.keys() == other.keys()
    assert [key for key in mine if mine[key] != other[key]] == []
    assert run.failure is None
    assert [p.name for p in run.path.parent.rglob(".*")] == []
