"""Run directories: what training writes and everything else reads. The truth of a run.

    mlruns/cells/<slug>-<hash8>/seed-<n>/
        spec.json         the recipe (canonical form, printed form, flat parameters), seed, classes
        provenance.json   commit, packages, device of each attempt; recorded, never hashed
        data.json         problems and digests by part, their sources, overlap of tests and training
        lock              held by the process that trains; the kernel frees it when that one dies
        metrics.jsonl     one line a step, synced
        questions.jsonl   one line a step: level, rollout accuracy and gate weights of each question
        checkpoints/      step-<n>/ with safetensors and a manifest of checksums
        evaluations/      <suite>-<hash8>.parquet, correct counts by problem; before, a .jsonl
        probes/           <what>-<hash8>.parquet, moments of the gradient, beside what was asked
        rollouts/         step-<n>.parquet, a sample of what the policy wrote
        result.json       renamed in last: training is finished
        failure.json      why the last attempt ended without a result
        stop.json         a request to stop at the next step, and why

Every write is durable when the call returns (see `durable`). A torn last line is dropped with a
notice; a broken line before the last is refused.
"""

import fcntl
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from workbench.durable import append, fenced, make_folder, new_file, remove, sweep
from workbench.identity import canonical, fingerprint, imports, restore
from workbench.recipe import Measurement, Probe, Recipe
from workbench.schema import File
from workbench.study import describe, flatten

log = logging.getLogger(__name__)

NOBODY = ("?", "?", "")  # process, host and token where a lock does not say

Row = dict[str, Any]


class Held(RuntimeError):
    """Another process holds the run's lock."""


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is saved."""


class Corrupt(Exception):
    """A checkpoint that is not what its manifest says.

    Attributes:
        run, step: which one.
        what: what is wrong with it.
    """

    def __init__(self, run: "Run", step: int, what: str) -> None:
        super().__init__(run, step, what)
        self.run, self.step, self.what = run, step, what

    def __str__(self) -> str:
        return f"checkpoint {self.run.checkpoint_path(self.step)} {self.what}"


@dataclass(frozen=True)
class Run:
    """One run directory, finished or not, there or not yet."""

    path: Path

    # --- what it is ---

    def create(self, recipe: Recipe, seed: int) -> None:
        """Writes the spec, unless it is there."""
        if not (self.path / File.SPEC).exists():
            write_json(self.path / File.SPEC, spec(recipe, seed))

    @property
    def spec(self) -> Row:
        """The spec as plain values; needs no class of the recipe."""
        return read_json(self.path / File.SPEC)

    def recipe(self) -> Recipe:
        """The recipe as a value; imports the modules that define its components."""
        found = self.spec
        return restore(found["recipe"], found["classes"])

    @property
    def seed(self) -> int:
        """The cell's, which the order of questions and the sampling follow from."""
        return self.spec["seed"]

    # --- whether it is done ---

    @property
    def finished(self) -> bool:
        """Whether training ended with a result; never so because of anything MLflow says."""
        return (self.path / File.RESULT).exists()

    def finish(self, result: Row) -> None:
        """Records the result, which makes the run finished, and forgets earlier failures."""
        write_json(self.path / File.RESULT, result)
        self.forget_failure()

    def forget_failure(self) -> None:
        """Drops the reason of an earlier attempt that this one has made good."""
        remove(self.path / File.FAILURE)

    def fail(self, kind: str, reason: str) -> None:
        """Records why the attempt ended: a `Failure`, and the reason in words."""
        write_json(self.path / File.FAILURE, {"kind": kind, "reason": reason})

    def ask_to_stop(self, reason: str) -> None:
        """Asks the process that trains it to save a checkpoint and end at its next step."""
        write_json(self.path / File.STOP, {"reason": reason})

    def withdraw_stop(self) -> None:
        """Forgets an earlier request to stop, before the run is gone on with."""
        remove(self.path / File.STOP)

    @property
    def stop_asked(self) -> str | None:
        """Why it was asked to stop, if it was."""
        path = self.path / File.STOP
        return read_json(path)["reason"] if path.exists() else None

    @property
    def result(self) -> Row | None:
        """What training ended with; None until it is finished."""
        return read_json(self.path / File.RESULT) if self.finished else None

    @property
    def failure(self) -> Row | None:
        """The kind of the last failure and its reason in words; None where none is recorded."""
        path = self.path / File.FAILURE
        return read_json(path) if path.exists() else None

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the run for this process; the kernel gives it back the moment the process dies.

        Not every file system shares locks between hosts: see `fenced` for those.

        Raises:
            Held: another process has it.
        """
        make_folder(self.path)
        with open(self.path / File.LOCK, "ab+", buffering=0) as handle:
            while not _locked(handle):
                if self.held:
                    raise Held(f"{self.path} is held by {self.held_by}")
                # Somebody asked whether it is held, and had the lock for that moment.
            with suppress(OSError):  # a full disk
                handle.truncate(0)
                handle.write(f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}".encode())
            with self.fenced():
                sweep(self.path)
                yield

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Lets this process write durably only until somebody else claims the run, wherever."""
        mine = self._holder
        with fenced(lambda: self._holder in (mine, NOBODY)):
            yield

    @property
    def _holder(self) -> tuple[str, ...]:
        """Process, host and token of the last claim, as its process wrote them down."""
        try:
            written = tuple((self.path / File.LOCK).read_text().split())
        except FileNotFoundError:  # it was removed, which alone takes nothing from anyone
            return NOBODY
        return written if len(written) == len(NOBODY) else NOBODY

    @property
    def held(self) -> bool:
        """Whether a process trains it now."""
        if not (self.path / File.LOCK).exists():
            return False
        try:
            with open(self.path / File.LOCK) as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    @property
    def held_by(self) -> str:
        """Who trains it, or did so last, in words."""
        process, host, _ = self._holder
        return f"process {process} on {host}"

    @property
    def holder(self) -> int | None:
        """The process of this host that trains it now."""
        process, host, _ = self._holder if self.held else NOBODY
        return int(process) if host == socket.gethostname() else None

    def beat(self) -> None:
        """Shows that the process that holds the run gets on."""
        with suppress(OSError):  # no sign of progress is no reason to make less of it
            os.utime(self.path / File.LOCK)

    def tell(self, doing: str) -> None:
        """Says what the process that holds the run is at: for people, and no record."""
        self.beat()
        with suppress(OSError):
            (self.path / File.DOING).write_text(doing)

    @property
    def doing(self) -> str:
        """What it was last said to be at; empty if nothing was."""
        try:
            return (self.path / File.DOING).read_text()
        except OSError:
            return ""

    @property
    def pulse(self) -> tuple[int, ...]:
        """Something that changes as long as the run gets on."""
        paths = (self.path / File.LOCK, self.path / File.METRICS)
        return tuple(path.stat().st_mtime_ns for path in paths if path.exists())

    # --- what it measured ---

    def append(self, file: str, row: Row) -> None:
        """Appends one line to `metrics.jsonl` or `questions.jsonl`, durably."""
        append_line(self.path / file, row)

    def rows(self, file: str = File.METRICS) -> list[Row]:
        """Every whole line of a record."""
        return read_lines(self.path / file)

    def rewind(self, step: int) -> dict[int, int]:
        """Drops rows after `step`, where a resumed run goes on, keeping them beside the record.

        Returns:
            The timestamps of the dropped steps: a step that is run again takes its first one, so
            that a mirror that has it already gains nothing.
        """
        for file in (File.METRICS, File.QUESTIONS):
            rows = self.rows(file)
            dropped = [row for row in rows if row["step"] > step]
            if dropped:
                aside = dropped_path(self.path / file)
                write_lines(aside, [*read_lines(aside), *dropped])
                write_lines(self.path / file, [row for row in rows if row["step"] <= step])
        for path in self.path.glob(f"{File.ROLLOUTS}/step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                remove(path, File.ROLLOUTS)
        # All that was ever dropped, for an attempt that died may have dropped them before this one.
        dropped = reversed(read_lines(dropped_path(self.path / File.METRICS)))
        return {row["step"]: row["timestamp"] for row in dropped if "timestamp" in row}

    def evaluation_path(self, measurement: Measurement) -> Path:
        """Where that measurement of the final checkpoint is, or will be."""
        return self.path / File.EVALUATIONS / _evaluation_name(measurement)

    def counted_path(self, measurement: Measurement) -> Path:
        """Where the counts of the first problems are while that measurement is being made."""
        return self.evaluation_path(measurement).with_suffix(".jsonl")

    def probe_path(self, probe: Probe) -> Path:
        """Where the moments of that probe are, or will be."""
        digest = fingerprint(probe)[:8]
        name = f"step-{probe.step:06d}-distance-{probe.distance}-{digest}.parquet"
        return self.path / File.PROBES / name

    def ask(self, probe: Probe) -> str:
        """Writes down what a probe is, for the worker; returns the name that it finds it by."""
        path = self.probe_path(probe).with_suffix(".json")
        if not path.exists():
            write_json(path, {"probe": canonical(probe), "classes": imports(probe)}, "asked")
        return path.name

    def asked(self, name: str) -> Probe:
        """The probe that was written down under a name; imports the modules of its components."""
        found = read_json(self.path / File.PROBES / name)
        return restore(found["probe"], found["classes"])

    def checkpoint_path(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether or not it is there."""
        return self.path / File.CHECKPOINTS / f"step-{step:06d}"


def _locked(handle: IO[bytes]) -> bool:
    """Whether this process could lock a file for itself alone."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@lru_cache(maxsize=1024)  # asked for by every look at whether a run is done
def _evaluation_name(measurement: Measurement) -> str:
    return f"{measurement.suite}-{fingerprint(measurement)[:8]}.parquet"


def dropped_path(path: Path) -> Path:
    """Where the rows that a resumed run took back are kept, beside their record."""
    return path.with_suffix(".dropped.jsonl")


def cells_root(root: Path) -> Path:
    """The folder of run directories under the tracking folder (`mlruns`)."""
    return root / "cells"


def run_of(root: Path, recipe: Recipe, seed: int) -> Run:
    """The run of a recipe and a seed: the same directory for every study that has the cell."""
    return run_in(folder_of(root, recipe), seed)


def run_in(folder: Path, seed: int) -> Run:
    """The run of a seed among those of a recipe."""
    return Run(folder / f"seed-{seed}")


def folder_of(root: Path, recipe: Recipe) -> Path:
    """Where the runs of a recipe are, or will be.

    The hash decides: a directory whose readable part is out of date is found all the same.
    """
    digest = fingerprint(recipe)[:8]
    cells = cells_root(root)
    stamp = cells.stat().st_mtime_ns if cells.is_dir() else 0
    name = _directories(cells, stamp).get(digest) or f"{slug(recipe)}-{digest}"
    return cells / name


@lru_cache(maxsize=8)
def _directories(cells: Path, stamp: int) -> dict[str, str]:
    """Names of the folder's directories by their hash, read again when the folder has changed."""
    return {name[-8:]: name for name in os.listdir(cells)} if stamp else {}


def slug(recipe: Recipe) -> str:
    """A readable start of a directory's name; the hash after it does the telling apart."""
    return re.sub(r"[^a-z0-9]+", "-", describe(recipe).lower()).strip("-")[:40].strip("-")


def spec(recipe: Recipe, seed: int) -> Row:
    """What a run is, as plain values."""
    return {
        "recipe": canonical(recipe),
        "classes": imports(recipe),
        "seed": seed,
        "fingerprint": fingerprint(recipe),
        "python": str(recipe),
        "parameters": flatten(recipe),
    }


# --- JSON files and lines -------------------------------------------------------------------------


def write_json(path: Path, value: Any, point: str = "") -> None:
    """Writes a JSON file whole or not at all; `point` as in `durable.new_file`."""
    with new_file(path, "w", point) as handle:
        json.dump(value, handle, indent=1, sort_keys=True)


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text())


def write_lines(path: Path, rows: list[Row], point: str = "") -> None:
    """Writes a record of JSON lines whole or not at all; `point` as in `new_file`."""
    with new_file(path, "w", point) as handle:
        handle.writelines(_line(row) for row in rows)


def append_line(path: Path, row: Row) -> None:
    """Appends one JSON line, durably; a torn line left by a crash is cut off first."""
    append(path, _line(row).encode())


def read_lines(path: Path) -> list[Row]:
    """Every line of a record; a torn last one (a crash while writing) is left out, with a notice.

    Raises:
        ValueError: a broken line that is not the last, with its number.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        log.warning("%s: the last line is torn and left out (%d bytes)", path, len(lines[-1]))
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:80]!r}") from error
    return rows


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
