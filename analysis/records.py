"""One run's records as frames, from its JSON lines or from the Parquet files of a compact copy."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from workbench.compact import read
from workbench.records import Row, Run, read_json
from workbench.schema import File

THROUGHPUT = "time/tokens_per_second"
_TOKENS, _SECONDS = ["budget/sampled_tokens", "budget/trained_tokens"], "time/step"

QUESTION_FIELDS = ("questions", "correct", "alpha", "beta")  # one entry a question in each row


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
    """One row for each question of each step: rollouts, correct ones (NaN: none), gate weights."""
    columns = ["step", "epoch", "rollouts", *QUESTION_FIELDS]
    frame = read(run, File.QUESTIONS).to_pandas().reindex(columns=columns)
    long = frame.explode(list(QUESTION_FIELDS), ignore_index=True)
    numbers = dict.fromkeys(["correct", "alpha", "beta"], "float64")  # None becomes NaN
    return long.rename(columns={"questions": "question"}).astype(numbers)


def evaluation(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """One row a problem: what became of its samples."""
    return pd.read_parquet(path, columns=list(columns))


def attempts(run: Run) -> list[Row]:
    """What each attempt at the run was recorded with: code, packages, devices."""
    path = run.path / File.PROVENANCE
    return read_json(path)["attempts"] if path.exists() else []
