"""Runs out of MLflow, from any tracking URI: the one file of analysis that imports mlflow.

A run that the workbench mirrored carries its records as Parquet artifacts; they are copied into run
directories, which are read like any others. Of a run that something else logged there is the
history of its metrics.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.page import Links
from analysis.records import with_throughput
from workbench import plan
from workbench.durable import new_folder, sweep
from workbench.identity import fingerprint, nearest
from workbench.records import read_json
from workbench.schema import EVAL_PASS_AT_1, PASS_AT_K, PROBE, File, Tag
from workbench.study import Study
from workbench.tracking.store import (
    TRAINING_VIEW,
    is_there,
    prepare_mlflow,
    set_defaults,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Tracked

COPIED = (
    File.SPEC,
    File.PROVENANCE,
    File.DATA,
    File.RESULT,
    File.HISTORY_TABLE,
    File.QUESTIONS_TABLE,
    File.EVALUATIONS,
    File.PROBES,
)
_STAMP = "mlflow.json"  # which MLflow run a directory is a copy of, and when it ended

_WITH_RESULT = ("finished", "trained")  # the latter lacks an evaluation, or a checkpoint to keep

# Of the workbench's own metrics these are not of training steps: final evaluations, Pass@k with
# step = k, probes of checkpoints.
_OF_NO_STEP = tuple(
    name.partition("{")[0] for name in (EVAL_PASS_AT_1, PASS_AT_K, PROBE, "nonfinite/")
)


def fetch(study: Study, uri: str, folder: Path) -> Path:
    """Copies a study's finished runs from MLflow into run directories under the folder.

    A run that is there already, and has not changed since, is not copied again. Where a server no
    longer has a run's artifacts, its history is put together from its metrics.

    Returns:
        The folder, for `analysis.runs(study, folder)`.

    Raises:
        ValueError: the store has no experiment of the study's name, with the nearest that it has.
    """
    client = _client(uri)
    experiment = _experiment(client, study.name, uri)
    found = {
        (run.data.tags.get(Tag.CELL), run.data.tags.get(Tag.SEED)): run
        for run in _runs(client, experiment)
        if run.data.tags.get(Tag.OUTCOME, "").partition(":")[0] in _WITH_RESULT
    }
    for job in plan.jobs(study, folder):
        run = found.get((fingerprint(job.recipe), str(job.seed)))
        if run is not None:
            _copy(client, run, job.run.path)
    return folder


def histories(uri: str, experiment: str) -> pd.DataFrame:
    """The metric histories of every run of an experiment, whoever logged them.

    Returns:
        One row for each label, seed and step, one float64 column for each metric: the frame that
        `Runs.history` is. The label is the run's `label` parameter or its name, the seed its
        `seed` parameter or its place among the runs of that label, oldest first.

    Raises:
        ValueError: the store has no such experiment, with the nearest that it has.
    """
    client = _client(uri)
    found = list(_runs(client, _experiment(client, experiment, uri)))
    frames, seen = [], dict[str, int]()
    for run in sorted(found, key=lambda each: (each.info.start_time, each.info.run_id)):
        label = run.data.params.get("label") or str(run.info.run_name)
        seed = run.data.params.get("seed", "")
        place = seen[label] = seen.get(label, -1) + 1
        frame = _history(client, run)
        frame.insert(0, "seed", int(seed) if seed.isdecimal() else place)
        frame.insert(0, "label", label)
        if len(frame):
            frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["label", "seed", "step", "timestamp"])
    return pd.concat(frames, ignore_index=True)


def links(study: Study, uri: str, page: str) -> Links:
    """Addresses of the study's experiment and runs in the MLflow pages that `page` begins.

    No links at all where there is no store, or no experiment of the study's name in it.
    """
    path = sqlite_path(uri)
    if path is not None and not is_there(path):
        return Links()
    client = _client(uri)
    experiment = client.get_experiment_by_name(study.name)
    if experiment is None:
        return Links()
    address = f"{page.rstrip('/')}/#/experiments/{experiment.experiment_id}"
    found = {
        (
            run.data.tags[Tag.LABEL],
            int(run.data.tags[Tag.SEED]),
        ): f"{address}/runs/{run.info.run_id}{TRAINING_VIEW}"
        for run in _runs(client, experiment.experiment_id)
        if Tag.LABEL in run.data.tags and Tag.SEED in run.data.tags
    }
    return Links(f"{address}/runs{TRAINING_VIEW}", found)


def _client(uri: str) -> "MlflowClient":
    set_defaults()
    prepare_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        names = [each.name for each in client.search_experiments()]
        raise ValueError(f"{uri} has no experiment {name!r}; {nearest(name, names)}")
    return found.experiment_id


def _runs(client: "MlflowClient", experiment: str) -> Iterator["Tracked"]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _copy(client: "MlflowClient", run: "Tracked", path: Path) -> None:
    """A run's directory made anew, whole or not at all, unless it is a copy of this very run."""
    stamp = {"run": run.info.run_id, "ended": run.info.end_time}
    if (path / _STAMP).exists() and read_json(path / _STAMP) == stamp:
        return
    sweep(path.parent, f".{path.name}.*")
    there = {each.path for each in client.list_artifacts(run.info.run_id)}
    with new_folder(path, "tracked") as folder:
        for name in COPIED:
            if name in there:
                client.download_artifacts(run.info.run_id, name, str(folder))
        if File.HISTORY_TABLE not in there:
            _history(client, run).to_parquet(folder / File.HISTORY_TABLE)
        if File.RESULT not in there:
            (folder / File.RESULT).write_text("{}")
        (folder / _STAMP).write_text(json.dumps(stamp))


def _history(client: "MlflowClient", run: "Tracked") -> pd.DataFrame:
    """One row a step: `step`, `timestamp` (the latest of the step's) and a column a metric."""
    ours = Tag.CELL in run.data.tags
    metrics: dict[str, dict[int, float]] = {}
    stamps: dict[int, int] = {}
    for key in sorted(run.data.metrics):
        if key.startswith("system/") or (ours and key.startswith(_OF_NO_STEP)):
            continue
        points = client.get_metric_history(run.info.run_id, key)
        # Of several points of a step the last that was logged counts.
        points = sorted(points, key=lambda point: point.timestamp)
        metrics[key] = {point.step: point.value for point in points}
        for point in points:
            stamps[point.step] = max(point.timestamp, stamps.get(point.step, 0))
    steps = sorted(stamps)
    columns = {
        key: np.array([values.get(step, np.nan) for step in steps], "float64")
        for key, values in metrics.items()
    }
    times = [stamps[step] for step in steps]
    return with_throughput(pd.DataFrame({"step": steps, "timestamp": times, **columns}))
