"""The training loop: sample, grade, gate, estimate, step, log."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from workbench.problems import Problem
from workbench.records import Interrupted, Run
from workbench.schema import File
from workbench.training import checkpoint, keeping
from workbench.training.keeping import kept_steps
from workbench.training.randomness import questions_of
from workbench.training.record import (
    Recorder,
    append_lines,
    metrics_row,
    question_row,
    recording,
    write_rollouts,
)
from workbench.training.sampling import grade, sample, validate
from workbench.training.scoring import collate
from workbench.training.statistics import batch_statistics, rollout_statistics
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer
from workbench.training.update import update


def train(
    trainer: Trainer, run: Run, keep: Collection[int] = (), stopping: Callable[[], bool] = bool
) -> None:
    """Trains from where the trainer is to the recipe's last step, recording every one.

    Raises:
        Interrupted: `stopping` became true, after a step or in the rollouts of one or their
            grading, which then never began; the checkpoint of the last step is saved.
    """
    recipe, progress, kept = trainer.recipe, trainer.progress, kept_steps(trainer, keep)
    stamps = run.rewind(progress.step)
    with recording(run) as recorder:
        if progress.step == 0 and not run.rows():
            tally = Tally()
            validate(trainer, tally)
            recorder.write(append_lines, {File.METRICS: metrics_row(0, tally, stamps)})
        while progress.step < recipe.steps:
            step, tally, before = progress.step + 1, Tally(), progress.tokens
            with tally.timed("time/step"):
                problems, epoch = _problems(trainer, step)
                with _stoppable(trainer, recorder, kept, stopping):
                    with tally.timed("time/rollout"):
                        rollouts = sample(trainer, problems, step)
                    with tally.timed("time/grade"):
                        sequences = grade(trainer, problems, rollouts)
                rollout_statistics(sequences, tally)
                progress.sampled_tokens += sum(
                    len(answer.response.tokens) for answers in rollouts for answer in answers
                )
                trainer.team.order("update", sequences)
                with tally.timed("time/estimate"):
                    batch = collate(trainer, sequences)
                with tally.timed("time/update"):
                    update(trainer, sequences, batch, tally)
                    keeping.recover(trainer, run, tally)
                gate = batch_statistics(trainer.method, sequences, batch, tally)
            tally.rate("time/tokens_per_second", progress.tokens - before, "time/step")
            if step % recipe.validation.every == 0 or step == recipe.steps:
                recorder.write(write_rollouts, step, sequences, gate)
                with tally.timed("time/validation"):
                    validate(trainer, tally)
            progress.step = step
            questions = question_row(step, epoch, problems, sequences, gate)
            metrics = metrics_row(step, tally, stamps, trainer)
            recorder.write(append_lines, {File.QUESTIONS: questions, File.METRICS: metrics})
            stop = stopping()
            if stop or keeping.is_due(trainer, recorder, kept):
                keeping.save(trainer, recorder, kept)
            if stop and step < recipe.steps:
                raise Interrupted(f"stopped after step {step} of {recipe.steps}")


@contextmanager
def _stoppable(
    trainer: Trainer, recorder: Recorder, kept: Collection[int], stopping: Callable[[], bool]
) -> Iterator[None]:
    """Lets a stop end what is drawn and graded: it takes longest, and nothing has changed yet."""
    engine, done = trainer.engine, trainer.progress.step
    get_on = engine.get_on

    def attend() -> None:
        get_on()
        if stopping():
            raise Interrupted(f"stopped after step {done} of {trainer.recipe.steps}")

    engine.get_on = attend
    try:
        yield
    except Interrupted:
        if done not in {0, checkpoint.latest(recorder.settled())}:
            keeping.save(trainer, recorder, kept)
        raise
    finally:
        engine.get_on = get_on


def _problems(trainer: Trainer, step: int) -> tuple[list[Problem], int]:
    train, recipe = trainer.questions, trainer.recipe
    seed = recipe.data.seed * 1_000_003 + trainer.seed
    indices, epoch = questions_of(step, recipe.questions, len(train), seed)
    return [train[index] for index in indices], epoch
