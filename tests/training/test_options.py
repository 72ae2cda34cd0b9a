"""What a recipe can choose besides its method changes training the way it says."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import Constant, Optimizer, Recipe, WarmupCosine, replace, upge
from workbench.resources import Resources
from workbench.training.loop import train
from workbench.training.opening import open_trainer


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Constant(), {0: 1.0, 50: 1.0, 99: 1.0}),
        (WarmupCosine(10), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        (WarmupCosine(0, floor=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
    ],
    ids=str,
)
def test_schedules(schedule, wanted):
    for step, factor in wanted.items():
        assert schedule(step, 100) == pytest.approx(factor)


def test_the_learning_rate_follows_its_schedule(small, open_run):
    recipe = replace(
        small, method=upge.sft(), optimizer=Optimizer(1e-3, schedule=WarmupCosine(2)), steps=4
    )
    run = open_run(recipe)
    train(open_trainer(run, Resources()), run)
    rates = [row["optim/learning_rate"] for row in run.rows()[1:]]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


def test_bfloat16_trains_close_to_float32(small, open_run):
    losses = []
    for dtype in ("float32", "bfloat16"):
        run = open_run(replace(small, method=upge.sft(), dtype=dtype))
        train(open_trainer(run, Resources()), run)
        losses.append([row["loss/total"] for row in run.rows()[1:]])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_kl_penalty_holds_the_policy_near_the_base(small, open_run):
    """Beside SFT, whose pull is steady: the heavier the penalty, the nearer the rollouts stay."""
    distances = []
    for coefficient in (0.0, 20.0):
        penalty = (upge.KLPenalty(coefficient, upge.K3(), to_base=True),)
        method = upge.Method(
            rollouts=upge.grpo().rollouts,
            demonstrations=upge.sft().demonstrations,
            auxiliary=penalty if coefficient else (),
        )
        run = open_run(replace(small, method=method, steps=6))
        trainer = open_trainer(run, Resources())
        base = trainer.policy.frozen()
        assert (trainer.base is not None) == bool(coefficient)
        train(trainer, run)
        moved = zip(trainer.policy.parameters(), base.parameters(), strict=True)
        distances.append(sum(float((a - b).detach().square().sum()) for (_, a), (_, b) in moved))
    assert distances[1] < distances[0]


def test_an_entropy_bonus_raises_entropy(small, open_run):
    found = []
    for coefficient in (0.0, 1.0):
        bonus = (upge.EntropyBonus(coefficient),) if coefficient else ()
        recipe = replace(
            small, method=replace(upge.grpo(), auxiliary=bonus), steps=6, epochs_per_batch=2
        )
        run = open_run(recipe)
        train(open_trainer(run, Resources()), run)
        found.append(run.rows()[-1]["policy/entropy"])
    assert found[1] > found[0]


def test_any_causal_model_trains(small, open_run, tmp_path):
    """A Llama of random weights, in a local folder, with a tokenizer beside it."""
    torch.manual_seed(0)
    donor = open_trainer(open_run(small), Resources()).policy.tokenizer
    config = LlamaConfig(
        vocab_size=len(donor),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=donor.eos_token_id,
        pad_token_id=donor.pad_token_id,
    )
    folder = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    donor.save_pretrained(folder)
    recipe: Recipe = replace(small, model=str(folder), steps=2)
    run = open_run(recipe)
    train(open_trainer(run, Resources()), run)
    assert run.rows()[-1]["policy/nll_demonstrations"] > 0


def test_validation_is_the_same_problems_for_all_and_never_a_test_suite(small, trainer_of):
    data = trainer_of(small).data
    tests = {p.question for suite in data.suites for p in suite.problems}
    assert not tests & {p.question for p in data.validation}
    assert not tests & {p.question for p in data.train}
