"""One run's records as frames, from its JSON lines or from the Parquet files of a compact copy."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.records import Row, Run, read_json
from workbench.schema import File

THROUGHPUT = "time/tokens_per_second"
_TOKENS, _SECONDS = ["budget/sampled_tokens", "budget/trained_tokens"], "time/step"

QUESTION_FIELDS = ("questions", "correct", "alpha", "beta")  # one entry a question in each row


def history(run: Run) -> pd.DataFrame:
    """One row a step: `step`, `timestamp` and each metric as float64, NaN where it is absent."""
    frame = with_throughput(_frame(run, File.METRICS, File.HISTORY_TABLE))
    known = frame.dropna(axis=1, how="all")  # a metric that was never measured is no metric
    metrics = sorted(name for name in known.columns if "/" in name)
    ordered = frame.reindex(columns=["step", "timestamp", *metrics])
    return ordered.astype(dict.fromkeys(metrics, "float64"))


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
    frame = _frame(run, File.QUESTIONS, File.QUESTIONS_TABLE).reindex(columns=columns)
    long = frame.explode(list(QUESTION_FIELDS), ignore_index=True)
    numbers = dict.fromkeys(["correct", "alpha", "beta"], "float64")  # None becomes NaN
    return long.rename(columns={"questions": "question"}).astype(numbers)


def evaluation(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """One row a problem: what became of its samples."""
    return pd.read_parquet(path, columns=list(columns))


def _frame(run: Run, lines: str, table: str) -> pd.DataFrame:
    """A record's rows, wherever they are; no rows for a record that is not there."""
    path = run.path / table
    if (run.path / lines).exists() or not path.exists():
        return _of_rows(run.rows(lines))
    return pd.read_parquet(path)


def _of_rows(rows: list[Row]) -> pd.DataFrame:
    """By columns, several times as fast as pandas goes through rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    frame = {name: [row.get(name) for row in rows] for name in names}
    metrics = {n: np.array(v, "float64") for n, v in frame.items() if "/" in n}
    return pd.DataFrame({**frame, **metrics}, columns=None if rows else ["step", "timestamp"])


def attempts(run: Run) -> list[Row]:
    """What each attempt at the run was recorded with: code, packages, devices."""
    path = run.path / File.PROVENANCE
    return read_json(path)["attempts"] if path.exists() else []
