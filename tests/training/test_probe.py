"""The probe on the shipped model: its gradients are the policy's, and its table is whole."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from pyarrow.parquet import read_schema
from system import wait_for_end

from workbench import Probe, Validation, replace, upge, worker
from workbench.resources import Resources
from workbench.training import probe as probing
from workbench.training.loop import Interrupted, train
from workbench.training.opening import open_checkpoint, open_trainer
from workbench.training.probe import PolicyGradients, probe
from workbench.training.sampling import grade, sample

TINY = Probe(
    (upge.sft(), upge.rloo(), upge.grpo(), upge.luffy()),
    questions=4,
    replicates=2,
    rollouts=3,
    difficulty_samples=2,
    bands=(0.5,),
)


@pytest.mark.parametrize("size", [None, 16_384])
def test_gradients_of_sequences_are_the_policys(size, small, trainer_of):
    trainer = trainer_of(small)
    problems = list(trainer.data.train[:1])
    sequences = grade(trainer, problems, sample(trainer, problems, 1), demonstrations=True)
    gradients = PolicyGradients(trainer.policy, sequences, size, lambda done, of: None)
    row = max(range(len(sequences)), key=lambda r: sequences[r].demonstration)
    length = len(sequences[row].response)
    weights = torch.stack([torch.ones(length + 3), torch.linspace(0, 1, length + 3)])
    got = gradients(row, weights)
    layout = trainer.policy.lay_out([sequences[row]])
    for each, found in zip(weights, got, strict=True):
        trainer.optimizer.zero_grad(set_to_none=True)
        (trainer.policy.score(layout).logprobs[0] * each[:length]).sum().backward()
        square = sum(float(p.grad.square().sum()) for p in trainer.policy.model.parameters())
        tolerance = 1e-4 if size is None else 0.06
        assert float(found @ found) == pytest.approx(square, rel=tolerance)
    assert gradients.sketch_error < (1e-4 if size is None else 0.06)


@pytest.mark.parametrize("distance", [0, 2])
def test_a_probe_leaves_a_table_of_every_method(distance, small, open_run):
    run = open_run(small)
    plan = replace(TINY, distance=distance)
    probe(run, open_checkpoint(run, 0, Resources()), plan)
    table = pd.read_parquet(run.probe_path(plan))
    everyone = table[(table["band_low"] == -1) & (table["band_high"] == 1)]
    assert set(everyone["method"]) == {m.label for m in plan.methods}
    assert sorted(everyone["left_out"].unique()) == [-1, 0, 1, 2, 3]
    assert everyone["questions"].eq(4).all()
    whole = everyone[everyone["left_out"] == -1].set_index("method")
    assert (whole["variance"] > 0).all() and (whole["within"] >= 0).all()
    assert whole.loc["sft", "within"] == pytest.approx(0, abs=1e-9)  # of one demonstration
    if distance == 0:
        bias = whole["square"] - 2 * whole["inner"] + whole["truth_square"]
        assert bias["rloo"] == pytest.approx(0, abs=1e-9)


def test_a_seed_draws_the_questions_but_none_that_the_policy_is_moved_by(small, trainer_of):
    trainer = trainer_of(small)  # steps of 4 of its 20 questions
    drawn = [probing._drawn(trainer, replace(TINY, questions=8, seed=seed)) for seed in range(3)]
    assert all(len({p.id for p in each}) == 8 for each in drawn)
    assert not {p.id for each in drawn for p in each} & {p.id for p in trainer.data.train[-4:]}
    assert drawn[0] != drawn[1] != drawn[2]
    assert len(probing._drawn(trainer, replace(TINY, questions=20))) == 20


def test_off_policy_the_optimizer_has_its_past(small, open_run, monkeypatch):
    """The policy is moved as the run's next step would: moments warm, schedules where they were."""
    run = open_run(replace(small, steps=2, validation=Validation(every=2, samples=1, problems=5)))
    train(open_trainer(run, Resources()), run)
    taken = []
    monkeypatch.setattr(probing, "probe", lambda run, trainer, *_: taken.append(trainer))
    for step in (0, 2):
        worker._probe(run, Resources(), replace(TINY, step=step, distance=1), lambda: False)
    fresh, warm = taken
    assert not fresh.optimizer.state and fresh.progress.updates == 0
    assert len(warm.optimizer.state) == len(warm.policy.parameters()) and warm.progress.updates == 2


@pytest.mark.parametrize("distance", [0, 2])
def test_a_probe_says_how_good_its_sketches_are(distance, small, open_run, caplog):
    run = open_run(small)
    plan = replace(TINY, distance=distance, sketch=64)
    with caplog.at_level("INFO"):
        probe(run, open_checkpoint(run, 0, Resources()), plan)
    note = read_schema(run.probe_path(plan)).metadata
    here, there = (float(note[name]) for name in (b"sketch_error", b"reference_sketch_error"))
    assert 0 < here < 1 and 0 < there < 1
    assert (here == there) is (distance == 0)  # on policy the sample is its own reference
    assert f"sketch error {here:.4f}, of the reference {there:.4f}" in caplog.text


def test_solve_rates_are_of_rollouts_alone(small, trainer_of, monkeypatch):
    taken = []

    def watched(trainer, problems, rollouts, demonstrations=None):
        found = grade(trainer, problems, rollouts, demonstrations)
        taken.extend(found)
        return found

    monkeypatch.setattr(probing, "grade", watched)
    trainer = trainer_of(small)
    rates = probing._solve_rates(trainer, list(trainer.data.train[:4]), TINY)
    assert len(taken) == 4 * TINY.difficulty_samples
    assert rates.tolist() == [
        sum(s.correct for s in taken if s.question == question) / TINY.difficulty_samples
        for question in range(4)
    ]


def test_two_threads_take_two_probes_at_once_with_the_same_results(small, open_run):
    plans = [TINY, replace(TINY, seed=1)]
    tables = []
    for threads, seed in ((1, 0), (2, 1)):
        run = open_run(small, seed)
        names = ",".join(run.ask(plan) for plan in plans)
        run.finish({})
        resources = json.dumps({"threads": threads, "device": "cpu"})
        command = [sys.executable, "-m", "workbench", "worker", str(run.path)]
        command += ["--resources", resources, "--probes", names]
        subprocess.run(command, check=True, capture_output=True)
        tables.append([pd.read_parquet(run.probe_path(plan)) for plan in plans])
    for alone, beside in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(alone, beside, rtol=1e-4, atol=1e-12)


def slow_probes(run):
    """A worker that takes two slow probes at once, and has begun with them."""
    slow = replace(TINY, questions=16, replicates=12)
    names = ",".join(run.ask(plan) for plan in (slow, replace(slow, seed=1)))
    run.finish({})
    command = [sys.executable, "-m", "workbench", "worker", str(run.path), "--probes", names]
    command += ["--resources", json.dumps({"threads": 2, "device": "cpu"})]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "sequences" not in run.doing and process.poll() is None:
        time.sleep(0.05)
    return process


def test_probes_that_run_at_once_are_stopped_together(small, open_run):
    run = open_run(small)
    process = slow_probes(run)
    process.terminate()
    assert process.wait() == 130
    assert run.failure is not None and run.failure["kind"] == "interrupted"
    assert not list((run.path / "probes").glob("*.parquet"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_probes_that_run_at_once_end_with_a_worker_that_is_killed(small, open_run):
    run = open_run(small)
    process = slow_probes(run)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) > 1
    for child in children:
        wait_for_end(int(child))
    assert not list((run.path / "probes").glob("*.parquet"))


def test_a_probe_that_is_stopped_leaves_nothing(small, open_run):
    run = open_run(small)

    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        probe(run, open_checkpoint(run, 0, Resources()), TINY, stop)
    assert not run.probe_path(TINY).exists()


def test_a_probe_that_is_stopped_ends_in_the_middle_of_a_response(small, open_run):
    positions = []

    def stop() -> None:
        positions.append(len(positions))  # tokens drawn so far
        if len(positions) == 3:
            raise Interrupted

    run = open_run(small)
    with pytest.raises(Interrupted):
        probe(run, open_checkpoint(run, 0, Resources(), stop), TINY)
    assert positions == [0, 1, 2]


def test_a_probe_says_how_far_it_is(small, open_run):
    run = open_run(small)
    probe(run, open_checkpoint(run, 0, Resources()), TINY)
    assert run.doing == "probe of step 0, distance 0: 0 of 28 sequences"


def test_what_was_asked_is_read_back_by_the_worker(small, open_run):
    run = open_run(small)
    assert run.asked(run.ask(TINY)) == TINY


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"methods": ()}, "one method or more"),
        ({"methods": (upge.ppo(),)}, "needs a trained value head"),
        ({"methods": (upge.hpt_released(),)}, "auxiliary losses are not estimates"),
        ({"replicates": 1}, "at least 2, got 1"),
        ({"questions": 2}, "at least 3, got 2; the nearest is 3"),
        ({"rollouts": 1}, "at least 2, got 1; the nearest is 2"),
        ({"bands": (0.5, 0.25)}, "be rising, got"),
        ({"mu": (-1.0,)}, "mu must be at least 0, got -1.0 in"),
        ({"sketch": 2}, "at least 64 or None, got 2; the nearest is 64"),
    ],
)
def test_bad_probes_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, **fields)
