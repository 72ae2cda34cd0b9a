"""What a training step leaves behind: its metrics, its questions, a sample of its rollouts."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from workbench.durable import new_file
from workbench.problems import Problem
from workbench.records import Row, Run
from workbench.schema import File
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer

SHOWN_QUESTIONS = 6  # whose sequences are kept as text, at every validation


class Recorder:
    """Writes what a step leaves behind while the next step's rollouts are drawn.

    It need be on disk no sooner than the checkpoint that counts on it, for a run that goes on takes
    back what is beyond its checkpoint. One thing is written after the other, and none after one
    that could not be; that is told when the next is to be written or waited for.
    """

    def __init__(self, run: Run, thread: ThreadPoolExecutor) -> None:
        self._run, self._thread = run, thread
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    def write(self, write: Callable[..., None], *given: Any) -> None:
        """Has a function of the run, and of what is given, write something; raises as `settled`."""
        run = self.settled()
        self._writing = self._thread.submit(write, run, *given)

    def settled(self) -> Run:
        """The run, once all is on disk that was to be written.

        Raises:
            DiskFull: there was no room for it.
            Fenced: another process has taken the run over since.
            Exception: whatever else a function raised that was to write.
        """
        self._writing.result()
        return self._run


@contextmanager
def recording(run: Run) -> Iterator[Recorder]:
    """A recorder of the run; nothing is left to be written when the block ends, however it does.

    What could not be written is raised also where something else ended the block: it is why the
    run's directory is not what that made it.
    """
    with ThreadPoolExecutor(1, "recorder") as thread:
        recorder = Recorder(run, thread)
        try:
            yield recorder
        finally:
            recorder.settled()


def append_lines(run: Run, lines: dict[str, Row]) -> None:
    """Appends a line to each of some records, in their order."""
    for file, row in lines.items():
        run.append(file, row)


def metrics_row(
    step: int, tally: Tally, stamps: dict[int, int], trainer: Trainer | None = None
) -> Row:
    """One line of the record: a step that is run again keeps its first timestamp."""
    metrics = tally.metrics()
    if (square := metrics.pop("ratio/effective_sample_size", None)) is not None:
        # (sum w)^2 / (n sum w^2), from the means of w and of w^2.
        metrics["ratio/effective_sample_size"] = metrics["ratio/raw_mean"] ** 2 / square
    if trainer is not None:
        progress = trainer.progress
        metrics["budget/sampled_tokens"] = progress.sampled_tokens
        metrics["budget/trained_tokens"] = progress.trained_tokens
    return {"step": step, "timestamp": stamps.get(step, int(time.time() * 1000)), **metrics}


def question_row(
    step: int,
    epoch: int,
    problems: list[Problem],
    sequences: list[Sequence],
    gate: tuple[list[float], list[float]],
) -> Row:
    """Each question's level, how many of its rollouts were correct, what the gate made of it."""
    rollouts = [s for s in sequences if not s.demonstration]
    correct = [0] * len(problems)
    for s in rollouts:
        correct[s.question] += s.correct
    return {
        "step": step,
        "epoch": epoch,
        "questions": [p.id for p in problems],
        "levels": [p.level for p in problems],
        "correct": correct if rollouts else [None] * len(problems),
        "rollouts": len(rollouts) // len(problems),
        "alpha": gate[0],
        "beta": gate[1],
    }


def write_rollouts(
    run: Run, step: int, sequences: list[Sequence], gate: tuple[list[float], list[float]]
) -> None:
    """Keeps the sequences of the step's first questions, readable as a table."""
    shown = [s for s in sequences if s.question < SHOWN_QUESTIONS]
    table = pa.table(
        {
            "step": [step] * len(shown),
            "problem": [s.problem.id for s in shown],
            "level": [s.problem.level for s in shown],
            "question": [s.problem.question for s in shown],
            "source": ["demonstration" if s.demonstration else "rollout" for s in shown],
            "response": [s.text for s in shown],
            "gold": [s.problem.answer for s in shown],
            "verdict": [s.verdict.value for s in shown],
            "tokens": [len(s.response) for s in shown],
            "finished": [s.finished for s in shown],
            "alpha": [gate[0][s.question] for s in shown],
            "beta": [gate[1][s.question] for s in shown],
        }
    )
    path = run.path / File.ROLLOUTS / f"step-{step:06d}.parquet"
    with new_file(path, point=File.ROLLOUTS) as handle:
        parquet.write_table(table, handle)
