"""A step is recorded while the next is drawn, and before the checkpoint that counts on it."""

import threading
import time

import pytest

from workbench.durable import DiskFull
from workbench.records import Interrupted, Run
from workbench.resources import Resources
from workbench.schema import File
from workbench.training import checkpoint, loop
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.record import append_lines, recording

SELDOM = Resources(checkpoint_every=100, keep_last=9)
# What is held up until the engine was called so often when so many steps were done. Validated are
# 0, 2 and 4; the lines of 2 decide on a checkpoint, and those of 4 are the last.
HELD_UP = {
    ("lines", 0): (0, 2),
    ("lines", 1): (1, 1),
    ("rollouts", 2): (1, 2),
    ("lines", 3): (3, 1),
    ("rollouts", 4): (3, 2),
}


def test_a_step_is_recorded_while_the_next_is_drawn(small, open_run, monkeypatch) -> None:
    run = open_run(small)
    trainer, called, changed = open_trainer(run, SELDOM), [], threading.Condition()
    generate, append, write_rollouts = trainer.engine.generate, Run.append, loop.write_rollouts

    def generating(*given):
        with changed:
            called.append(trainer.progress.step)
            changed.notify_all()
        return generate(*given)

    def hold_up(what, step) -> None:
        done, times = HELD_UP.get((what, step), (0, 0))
        with changed:
            begun = changed.wait_for(lambda: called.count(done) >= times, timeout=60)
        assert begun, f"nothing is drawn before the {what} of step {step} are written"

    def appending(run, file, row) -> None:
        hold_up("lines", row["step"])
        append(run, file, row)

    def writing(run, step, *more) -> None:
        hold_up("rollouts", step)
        write_rollouts(run, step, *more)

    trainer.engine.generate = generating
    monkeypatch.setattr(Run, "append", appending)
    monkeypatch.setattr(loop, "write_rollouts", writing)
    train(trainer, run)
    assert called == [0, 0, 1, 1, 2, 3, 3]
    assert [row["step"] for row in run.rows()] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in run.rows(File.QUESTIONS)] == [1, 2, 3, 4]
    assert len(list((run.path / File.ROLLOUTS).iterdir())) == 2


@pytest.mark.parametrize(
    ("every", "stopped_at", "saved"),
    [(1, 9, [1, 2, 3, 4]), (3, 9, [2, 3, 4]), (100, 3, [2, 3])],
    ids=["each step", "the best and some", "stopped as it draws"],
)
def test_a_checkpoint_waits_for_the_lines_that_it_counts_on(
    every, stopped_at, saved, small, open_run, monkeypatch
) -> None:
    run, found = open_run(small), []
    trainer, drawn = open_trainer(run, Resources(checkpoint_every=every, keep_last=9)), []
    append, save = Run.append, checkpoint.save

    def slowly(*given) -> None:
        time.sleep(0.1)
        append(*given)

    def saving(*given) -> None:
        found.append([run.rows(file)[-1]["step"] for file in (File.METRICS, File.QUESTIONS)])
        save(*given)

    def stopping() -> bool:
        drawn.append(trainer.progress.step)
        return drawn.count(stopped_at) > 2  # the first is after the step

    def validate(trainer, tally) -> None:  # which step is the best so far
        tally.put("validation/pass_at_1", trainer.progress.step)

    monkeypatch.setattr(Run, "append", slowly)
    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(loop, "validate", validate)
    try:
        train(trainer, run, stopping=stopping)
    except Interrupted:
        assert stopped_at == 3
    assert checkpoint.steps(run) == saved
    assert found == [[step, step] for step in saved]


def fail(run: Run, *_: object) -> None:
    raise DiskFull(run.path, 0)


def test_nothing_is_written_after_what_could_not_be(small, open_run) -> None:
    run = open_run(small)
    with pytest.raises(DiskFull), recording(run) as recorder:
        recorder.write(fail)
        for _ in range(2):
            with pytest.raises(DiskFull):
                recorder.write(append_lines, {File.METRICS: {"step": 1}})
    assert run.rows() == []


def test_what_is_left_to_write_is_written_whatever_ends_training(small, open_run) -> None:
    run, ended = open_run(small), threading.Event()

    def late(run: Run) -> None:
        assert ended.wait(60)
        run.append(File.METRICS, {"step": 1})

    with pytest.raises(KeyError), recording(run) as recorder:
        recorder.write(late)
        ended.set()
        raise KeyError
    assert [row["step"] for row in run.rows()] == [1]
    with pytest.raises(DiskFull) as found, recording(run) as recorder:
        recorder.write(fail)
        raise KeyError
    assert isinstance(found.value.__context__, KeyError)
