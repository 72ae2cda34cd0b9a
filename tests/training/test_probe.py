"""The probe on the shipped model: its gradients are the policy's, and its table is whole."""

import pandas as pd
import pytest
import torch

from workbench import Probe, replace, upge
from workbench.training.loop import Interrupted
from workbench.training.probe import PolicyGradients, probe
from workbench.training.sequences import pad
from workbench.training.trainer import grade, open_checkpoint, sample

TINY = Probe(
    (upge.sft(), upge.rloo(), upge.grpo(), upge.luffy()),
    questions=4,
    replicates=3,
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
    padded = pad([sequences[row]], trainer.policy.pad, trainer.policy.device)
    for each, found in zip(weights, got, strict=True):
        trainer.optimizer.zero_grad(set_to_none=True)
        (trainer.policy.score(padded).logprobs[0] * each[:length]).sum().backward()
        square = sum(float(p.grad.square().sum()) for p in trainer.policy.model.parameters())
        tolerance = 1e-4 if size is None else 0.06
        assert float(found @ found) == pytest.approx(square, rel=tolerance)
    assert gradients.sketch_error < (1e-4 if size is None else 0.06)


@pytest.mark.parametrize("distance", [0, 2])
def test_a_probe_leaves_a_table_of_every_method(distance, small, open_run):
    run = open_run(small)
    from workbench.resources import Resources

    plan = replace(TINY, distance=distance)
    probe(run, open_checkpoint(run, 0, Resources()), plan)
    table = pd.read_parquet(run.probe_path(plan))
    everyone = table[(table["band_low"] == -1) & (table["band_high"] == 1)]
    assert set(everyone["method"]) == {m.label for m in plan.methods}
    assert sorted(everyone["left_out"].unique()) == [-1, 0, 1, 2]
    assert everyone["questions"].eq(4).all()
    whole = everyone[everyone["left_out"] == -1].set_index("method")
    assert (whole["variance"] > 0).all() and (whole["within"] >= 0).all()
    assert whole.loc["sft", "within"] == pytest.approx(0, abs=1e-9)  # of one demonstration
    if distance == 0:
        bias = whole["square"] - 2 * whole["inner"] + whole["truth_square"]
        assert bias["rloo"] == pytest.approx(0, abs=1e-9)


def test_a_probe_that_is_stopped_leaves_nothing(small, open_run):
    from workbench.resources import Resources

    run = open_run(small)
    with pytest.raises(Interrupted):
        probe(run, open_checkpoint(run, 0, Resources()), TINY, lambda: True)
    assert not run.probe_path(TINY).exists()


def test_a_probe_says_how_far_it_is(small, open_run):
    from workbench.resources import Resources

    run = open_run(small)
    probe(run, open_checkpoint(run, 0, Resources()), TINY)
    assert run.doing == "probe of step 0, distance 0: 0 of 40 sequences"


def test_what_was_asked_is_read_back_by_the_worker(small, open_run):
    run = open_run(small)
    assert run.asked(run.ask(TINY)) == TINY


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"methods": ()}, "one method or more"),
        ({"methods": (upge.ppo(),)}, "needs a trained value head"),
        ({"methods": (upge.hpt_released(),)}, "auxiliary losses are not estimates"),
        ({"replicates": 2}, "at least 3, got 2"),
        ({"rollouts": 1}, "leave-one-out, got 1"),
        ({"bands": (0.5, 0.25)}, "rising solve rates"),
        ({"mu": (-1.0,)}, "weights of 0 or more"),
        ({"sketch": 2}, "at least 64, or None, got 2"),
    ],
)
def test_bad_probes_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, **fields)
