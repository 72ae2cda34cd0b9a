"""A run that dies and goes on is the run that was never disturbed."""

import os
import signal
from itertools import count

import pytest
from runs import assert_same_end, wait_for_step, worker
from safetensors.torch import load_file

from workbench import Evaluation, replace, upge
from workbench.identity import field_names
from workbench.records import Interrupted, Run
from workbench.resources import Resources
from workbench.training import checkpoint
from workbench.training.loop import train
from workbench.training.opening import open_trainer

EVERY_STEP = Resources(checkpoint_every=1)


@pytest.mark.parametrize(
    ("method", "updates", "threads"), [("hpt", 1, 1), ("hpt", 2, 2), ("ppo", 2, 1), ("grpo", 1, 2)]
)
def test_kill_and_resume_is_bit_identical(method, updates, threads, small, tmp_path):
    recipe = replace(small, method=upge.NAMED[method](), updates_per_batch=updates)
    whole, killed = Run(tmp_path / "a/cells/x/seed-0"), Run(tmp_path / "b/cells/x/seed-0")
    for run in (whole, killed):
        run.create(recipe, 0)
    assert worker(whole, threads=threads).wait() == 0
    for step in (1, 3):
        process = worker(killed, threads=threads)
        wait_for_step(killed, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert worker(killed, threads=threads).wait() == 0
    assert_same_end(whole, killed, recipe.steps)


def test_a_stop_ends_the_rollouts_of_a_step_that_then_never_began(small, open_run, tmp_path):
    whole, stopped = open_run(small), Run(tmp_path / "b/cells/x/seed-0")
    stopped.create(small, 0)
    train(open_trainer(whole, EVERY_STEP), whole)
    trainer = open_trainer(stopped, Resources(checkpoint_every=100))
    asked = count(1)

    def stopping() -> bool:
        return trainer.progress.step == 2 and next(asked) > 5

    with pytest.raises(Interrupted, match="after step 2 of 4"):
        train(trainer, stopped, stopping=stopping)
    assert stopped.rows()[-1]["step"] == checkpoint.latest(stopped) == 2
    train(open_trainer(stopped, EVERY_STEP), stopped)
    assert_same_end(whole, stopped, small.steps)


def test_sigterm_saves_and_the_next_worker_goes_on(small, open_run):
    run = open_run(replace(small, steps=40))
    process = worker(run)
    wait_for_step(run, 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert run.failure is not None and run.failure["kind"] == "interrupted"
    assert not run.finished
    assert checkpoint.latest(run) == run.rows()[-1]["step"]


def test_a_request_to_stop_is_honoured_at_the_next_step_and_withdrawn(small, open_run):
    run = open_run(replace(small, steps=40))
    process = worker(run)
    wait_for_step(run, 1, process)
    run.ask_to_stop("worse than others")
    assert process.wait() == 130
    step = run.rows()[-1]["step"]
    assert checkpoint.latest(run) == step < 40
    assert run.failure == {
        "kind": "interrupted",
        "reason": f"stopped after step {step} of 40: worse than others",
    }
    run.withdraw_stop()
    process = worker(run)
    wait_for_step(run, step + 1, process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert run.rows()[-1]["step"] > step


def test_a_held_run_is_not_trained_twice(small, open_run):
    run = open_run(small)
    with run.claim():
        assert run.held
        assert worker(run).wait() == 3
    assert not run.held


def test_a_failed_run_says_why(small, open_run):
    run = open_run(replace(small, model="no-such-model"))
    assert worker(run).wait() == 1
    assert run.failure is not None and "no-such-model" in run.failure["reason"]


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(small, open_run, caplog):
    run = open_run(small)
    train(open_trainer(run, EVERY_STEP), run)
    path = run.checkpoint_path(4) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert checkpoint.latest(run) == 3
    assert "step-000004" in caplog.text and "model.safetensors" in caplog.text
    trainer = open_trainer(run, EVERY_STEP)
    assert trainer.progress.step == 3
    train(trainer, run)
    assert checkpoint.latest(run) == 4


def test_a_recipe_starts_from_anothers_checkpoint(small, open_run):
    source = replace(small, method=upge.sft())
    follower = replace(small, method=upge.grpo(), steps=1).start_from(source, step=2)
    first = open_run(source)
    train(open_trainer(first, EVERY_STEP), first, keep=[2])
    weights = load_file(first.checkpoint_path(2) / "model.safetensors")
    trainer = open_trainer(open_run(follower), EVERY_STEP)
    state = trainer.policy.model.state_dict()
    assert all((state[name] == value).all() for name, value in weights.items())


def test_a_checkpoint_that_was_not_kept_is_made_again(small, open_run):
    run = open_run(replace(small, method=upge.sft(), steps=6))
    assert worker(run).wait() == 0
    assert 3 not in checkpoint.steps(run)  # not validated, so never the best
    before = run.rows()
    assert worker(run, "--keep", "3").wait() == 0
    assert 3 in checkpoint.steps(run) and run.rows() == before
    whole = open_run(replace(small, method=upge.sft(), steps=6), seed=1)
    assert worker(whole, "--keep", "3").wait() == 0
    assert 3 in checkpoint.steps(whole)


def test_a_missing_start_names_what_is_kept(small, open_run):
    source = replace(small, method=upge.sft())
    with pytest.raises(FileNotFoundError, match="checkpoints kept: none"):
        open_trainer(open_run(small.start_from(source, step=2)), EVERY_STEP)


def test_sft_lowers_the_log_loss_of_demonstrations(small, open_run):
    run = open_run(replace(small, method=upge.sft(), steps=12))
    train(open_trainer(run, Resources()), run)
    losses = [row["policy/nll_demonstrations"] for row in run.rows()[1:]]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_measurements_are_made_once_and_reused(small, open_run):
    run = open_run(replace(small, method=None))
    measurements = Evaluation(samples=2).measurements(("chain", "words"), small)
    fields = [{n: getattr(m, n) for n in field_names(m)} for m in measurements]
    import json

    options = ("--measurements", json.dumps(fields))
    assert worker(run, *options).wait() == 0
    paths = [run.evaluation_path(m) for m in measurements]
    stamps = [os.stat(path).st_mtime_ns for path in paths]
    assert worker(run, *options).wait() == 0
    assert stamps == [os.stat(path).st_mtime_ns for path in paths]
    import pyarrow.parquet as parquet

    table = parquet.read_table(paths[0]).to_pydict()
    assert set(table["samples"]) == {2}
    assert all(0 <= c <= 2 for c in table["correct"])
