"""One run's records as frames, from its JSON lines or from the Parquet files of a compact copy."""

from collections.abc import Iterable
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.compact import read
from workbench.records import Row, Run, read_json
from workbench.schema import File

THROUGHPUT = "time/tokens_per_second"
_TOKENS, _SECONDS = ["budget/sampled_tokens", "budget/trained_tokens"], "time/step"

# One entry a question in each row.
QUESTION_FIELDS = ("questions", "levels", "correct", "alpha", "beta")


def history(run: Run) -> pd.DataFrame:
    """One row a step: `step`, `timestamp` and each metric as float64, NaN where it is absent."""
    frame = with_throughput(read(run, File.METRICS).to_pandas())
    known = frame.dropna(axis=1, how="all")  # a metric that was never measured is no metric
    metrics = sorted(name for name in known.columns if "/" in name)
    times = frame.reindex(columns=["step", "timestamp"])
    return pd.concat([times, frame[metrics].astype("float64")], axis=1)


def with_throughput(history: pd.DataFrame) -> pd.DataFrame:
    """One run's history with tokens a second: those sampled and trained on in a step, by its time.

    Unless it was recorded, or what it is computed from was not.
    """
    if THROUGHPUT in history or not {*_TOKENS, _SECONDS} <= set(history.columns):
        return history
    totals = history[_TOKENS].sum(axis=1, skipna=False)
    tokens = totals - totals.shift(1).fillna(0.0)
    return history.assign(**{THROUGHPUT: tokens / history[_SECONDS]})


def questions(run: Run) -> pd.DataFrame:
    """One row for each question of each step: level, rollouts, correct ones, gate weights.

    No rollouts have NaN correct ones, and a record from before levels were kept has NaN levels.
    """
    columns = ["step", "epoch", "rollouts", *QUESTION_FIELDS]
    frame = read(run, File.QUESTIONS).to_pandas().reindex(columns=columns)
    each = zip(frame["questions"], frame["levels"], strict=True)
    frame["levels"] = [levels if np.ndim(levels) else [nan] * len(asked) for asked, levels in each]
    long = frame.explode(list(QUESTION_FIELDS), ignore_index=True)
    numbers = dict.fromkeys(["level", "correct", "alpha", "beta"], "float64")  # None becomes NaN
    return long.rename(columns={"questions": "question", "levels": "level"}).astype(numbers)


def evaluation(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """One row a problem: what became of its samples."""
    return pd.read_parquet(path, columns=list(columns))


def attempts(run: Run) -> list[Row]:
    """What each attempt at the run was recorded with: code, packages, devices."""
    path = run.path / File.PROVENANCE
    return read_json(path)["attempts"] if path.exists() else []


def data(run: Run) -> Row | None:
    """What the data of a run was when it was begun; None where it was not recorded."""
    path = run.path / File.DATA
    return read_json(path) if path.exists() else None
