"""One update, by several processes or threads and by one alone, and what must be the same."""

import dataclasses

import pytest
import torch
from steps import by_turns

from workbench.resources import Resources
from workbench.training import checkpoint
from workbench.training.opening import open_trainer
from workbench.training.sampling import grade, sample
from workbench.training.scoring import collate
from workbench.training.tally import Tally
from workbench.training.update import update

# Small micro-batches: every process has some of a step, and some have none while others do.
ALONE = Resources(device="cpu", tokens=256, checkpoint_every=1)

# Of nearly equal numbers, so that rounding is not small beside them.
DIFFERENCES = {
    "grad/cosine_sft_rl", "grad/inner_sft_rl", "grad/noise_scale", "grad/share_sft",
    "grad/square", "grad/square_rl", "grad/square_sft", "policy/kl_old", "loss/total",
    "loss/rollouts",
}  # fmt: skip


def together(processes: int) -> Resources:
    return dataclasses.replace(ALONE, processes=processes)


def one_update(run, team=None, resources=None):
    """One batch's optimizer steps; the metrics of it, and what a checkpoint would hold."""
    resources = resources or (ALONE if team is None else together(team.size))
    trainer = open_trainer(run, resources, *([] if team is None else [team]))
    problems, tally = list(trainer.data.train[: trainer.recipe.questions]), Tally()
    graded = grade(trainer, problems, sample(trainer, problems, 1))
    sequences = [by_turns(s, row) for row, s in enumerate(graded)]
    trainer.team.order("update", sequences)
    update(trainer, sequences, collate(trainer, sequences), tally)
    trainer.team.order("save")
    state = checkpoint.gather(trainer.policy, trainer.optimizer)
    # Of AdamW's first step only its signs are seen in the weights: its moments are the gradient.
    tensors = {**state.optimizer, **state.model, **state.head}
    return sequences, tally.metrics(), {k: t.clone() for k, t in tensors.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), 1e-6)
        assert float((found[name] - tensor).abs().max()) <= tolerance * scale, name


def assert_as_alone(run, team):
    """Fails unless one update of the team is that of one process; returns its sequences."""
    found = one_update(run, team)
    assert_alike(found, one_update(run))
    return found[0]


def assert_alike(found, wanted, tolerance=1e-4):
    """Fails unless two updates are the same but for rounding, of each tensor's largest number."""
    (sequences, metrics, tensors), (alone, expected, whole) = found, wanted
    assert [s.response for s in sequences] == [s.response for s in alone]
    assert metrics.keys() == expected.keys()
    settled = [key for key in metrics if key not in DIFFERENCES]
    assert [metrics[k] for k in settled] == pytest.approx([expected[k] for k in settled], rel=1e-4)
    assert_same(tensors, whole, tolerance)
    assert metrics["optim/gradient_norm"] > 0
