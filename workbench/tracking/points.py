"""What MLflow is shown of a run, as plain values and files: parameters, metric points, artifacts.

Everything here is computed from the run directory alone, timestamps included, so that computing
it again gives the same points and a replay adds nothing.
"""

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.compact import write_tables
from workbench.estimates import EVERYONE, estimates, probed
from workbench.identity import fingerprint
from workbench.passk import pass_at_k
from workbench.plan import Job
from workbench.recipe import Measurement, Probe
from workbench.records import Row, dropped_path
from workbench.schema import PASS_AT_K, PROBE, WALL_CLOCK, File
from workbench.scores import evaluated
from workbench.study import flatten

PARAM_LIMIT = 6000  # characters; MLflow cuts longer values without a word
NONFINITE = "nonfinite/{key}"
ROLLOUT_FILES, ROLLOUT_ROWS = 8, 16  # how much of the sampled rollouts the table shows


# What MLflow is shown of a probe as metrics, and which of `workbench.moments.STATISTICS` it is.
PROBED = {
    "bias2": "bias_squared",
    "variance": "variance",
    "mse": "mse",
    "cosine": "cosine",
    "noise_scale": "noise_scale",
    "error": "scale_free_error",
}


class Point(NamedTuple):
    """One point of a metric; the same point twice is one point."""

    key: str
    value: float
    timestamp: int
    step: int


def parameters(job: Job) -> dict[str, str]:
    """The flattened recipe with label, seed and what a search drew; a value that is cut says so."""
    found = {"label": job.label, "seed": str(job.seed), **job.drawn, **flatten(job.recipe)}
    return {key: _cut(value) for key, value in found.items()}


def _cut(value: str) -> str:
    notice = " ... (cut; recipe.txt has all of it)"
    return value if len(value) <= PARAM_LIMIT else value[: PARAM_LIMIT - len(notice)] + notice


def points(row: Row, timed_until: int = -1) -> list[Point]:
    """The points of one step.

    Wall-clock metrics differ when a step is run again, so those of steps up to `timed_until`, which
    were shown before, are left out. MLflow stores an infinity as the largest number: what is not
    finite becomes NaN and is counted under `nonfinite/`.
    """
    found = []
    for key, value in row.items():
        if "/" not in key or not isinstance(value, bool | int | float):
            continue
        if key.startswith(WALL_CLOCK) and row["step"] <= timed_until:
            continue
        finite = math.isfinite(value)
        shown = float(value) if finite else math.nan
        found.append(Point(key, shown, row["timestamp"], row["step"]))
        if not finite:
            found.append(Point(NONFINITE.format(key=key), 1.0, row["timestamp"], row["step"]))
    return found


def batches(rows: Iterable[list[Point]], most: int) -> Iterator[list[Point]]:
    """The points of rows in groups of at most so many, and those of a row in one group.

    A store takes a group whole or not at all. Of a step it then has all points or none, so that one
    of them says whether the step was shown; a row of more than `most` is more than one group.
    """
    batch: list[Point] = []
    for row in rows:
        for start in range(0, len(row), most):
            part = row[start : start + most]
            if len(batch) + len(part) > most:
                yield batch
                batch = []
            batch = batch + part
    if batch:
        yield batch


def replay_difference(job: Job) -> int | None:
    """The first step that a resumed run computed differently the second time, timings aside."""
    dropped = dropped_path(job.run.path / File.METRICS)
    if not dropped.exists():
        return None
    kept = {row["step"]: _timeless(row) for row in job.run.rows()}
    before = job.run.rows(dropped.name)
    return next(
        (r["step"] for r in before if kept.get(r["step"], _timeless(r)) != _timeless(r)), None
    )


def _timeless(row: Row) -> str:
    """A row without its timings, as text: a NaN equals itself there."""
    left = {k: v for k, v in row.items() if k != "timestamp" and not k.startswith(WALL_CLOCK)}
    return json.dumps(left, sort_keys=True)


# --- evaluations ----------------------------------------------------------------------------------


def evaluation_identity(job: Job) -> str:
    """Which measurements and probes a mirrored run shows."""
    return fingerprint((*job.measurements, *job.probes))[:16]


def evaluation_points(job: Job) -> list[Point]:
    """Pass@1 and length of each suite, their averages, and the Pass@k curves with `step = k`."""
    found: list[Point] = []
    stamps: dict[str, int] = {}
    for measurement in job.measurements:
        path = job.run.evaluation_path(measurement)
        stamps[measurement.suite] = int(path.stat().st_mtime * 1000)
        counts = pd.read_parquet(path)
        found += _curve(measurement, counts, stamps[measurement.suite])
    for key, (suite, value) in evaluated(job).items():  # at step 0: drawn as one bar a run
        found.append(Point(key, value, stamps.get(suite, max(stamps.values())), 0))
    return found


def _curve(measurement: Measurement, counts: pd.DataFrame, stamp: int) -> Iterator[Point]:
    n = measurement.samples
    ks = sorted({*(2**power for power in range(n.bit_length()) if 2**power <= n), n})
    samples, correct = counts["samples"].to_numpy(), counts["correct"].to_numpy()
    means = pass_at_k(samples, correct, np.array(ks)).mean(axis=0)
    key = PASS_AT_K.format(suite=measurement.suite)
    for k, value in zip(ks, means, strict=True):
        yield Point(key, float(value), stamp, k)


# --- probes ---------------------------------------------------------------------------------------


def probe_points(job: Job) -> list[Point]:
    """What the probes say of each method on all questions, at the step of the checkpoint.

    Of the probes of one step and distance the first, and its first truth: `probes.json` has all.
    """
    found: list[Point] = []
    seen: set[tuple[int, int]] = set()
    for probe in job.probes:
        place = (probe.step, probe.distance)
        if place in seen:
            continue
        seen.add(place)
        stamp = int(job.run.probe_path(probe).stat().st_mtime * 1000)
        rows = _estimates(job, [probe])
        for row in rows.loc[rows["mu"] == probe.mu[0]].to_dict("records"):
            for name, statistic in PROBED.items():
                key = _probe_key(str(row["method"]), probe.distance, name)
                if math.isfinite(row[statistic]):
                    found.append(Point(key, float(row[statistic]), stamp, probe.step))
    return found


def _probe_key(method: str, distance: int, name: str) -> str:
    """A metric's name; MLflow allows few signs beside letters and digits in it."""
    where = f"/off_policy_{distance}" if distance else ""
    plain = re.sub(r"[^\w .\-]+", " ", method, flags=re.ASCII)
    return PROBE.format(method=" ".join(plain.split()) + where, name=name)


def probes_table(job: Job) -> str | None:
    """Every estimate of the probes on all questions with its interval, as MLflow shows a table."""
    rows = _estimates(job, job.probes)
    return str(rows.to_json(orient="split", index=False)) if len(rows) else None


def _estimates(job: Job, probes: Iterable[Probe]) -> pd.DataFrame:
    moments = probed(job.run, probes)
    everyone = (moments[list(EVERYONE)] == pd.Series(EVERYONE)).all(axis=1)
    return estimates(moments.loc[everyone])


# --- artifacts ------------------------------------------------------------------------------------

ROLLOUTS_TABLE, PROBES_TABLE = TABLES = ("rollouts.json", "probes.json")


def write_artifacts(job: Job, folder: Path) -> None:
    """Writes what MLflow keeps of a run besides numbers: recipe, records as Parquet, rollouts."""
    (folder / "recipe.txt").write_text(recipe_text(job))
    write_compact(job, folder)
    tables = {
        ROLLOUTS_TABLE: rollouts_table(job.run.path / File.ROLLOUTS),
        PROBES_TABLE: probes_table(job),
    }
    for name, table in tables.items():
        if table is not None:
            (folder / name).write_text(table)


def write_compact(job: Job, folder: Path) -> None:
    """Writes a copy of a run directory that tables and figures need, its records as Parquet."""
    path = job.run.path
    for name in (File.SPEC, File.PROVENANCE, File.DATA, File.RESULT, File.FAILURE):
        if (path / name).exists():
            shutil.copy(path / name, folder / name)
    write_tables(job.run, folder)
    measured = [p for m in job.measurements if (p := job.run.evaluation_path(m)).exists()]
    for source in measured:
        (folder / File.EVALUATIONS).mkdir(exist_ok=True)
        shutil.copy(source, folder / File.EVALUATIONS / source.name)
    for source in [p for each in job.probes if (p := job.run.probe_path(each)).exists()]:
        (folder / File.PROBES).mkdir(exist_ok=True)
        shutil.copy(source, folder / File.PROBES / source.name)


def recipe_text(job: Job) -> str:
    """The recipe as the Python that makes it, then every field on a line of its own."""
    fields = "\n".join(f"{key} = {value}" for key, value in flatten(job.recipe).items())
    return f"{job.name}\n\n{job.recipe}\n\n{fields}\n"


def rollouts_table(folder: Path) -> str | None:
    """Sampled rollouts, from early steps to late, in the form that MLflow shows as a table."""
    files = sorted(folder.glob("step-*.parquet"))
    if not files:
        return None
    every = max(1, math.ceil(len(files) / ROLLOUT_FILES))
    chosen = [pd.read_parquet(path).head(ROLLOUT_ROWS) for path in files[::-every][::-1]]
    frame = pd.concat(chosen, ignore_index=True)
    return str(frame.to_json(orient="split", index=False))
