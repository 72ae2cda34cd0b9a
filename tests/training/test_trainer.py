"""One optimizer step is the method's, whatever the micro-batches."""

import dataclasses
import gc
import math
import weakref

import pytest
import torch
from steps import by_turns, one_step

from workbench import Data, Optimizer, Recipe, Sampling, replace, upge, worker
from workbench.problems import Verdict
from workbench.recipe import Measurement
from workbench.resources import Resources
from workbench.rollout import Request
from workbench.schema import File
from workbench.training import opening
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.policy import Policy
from workbench.training.randomness import questions_of, seed_of
from workbench.training.sampling import grade, prompt_of, sample, validate
from workbench.training.scoring import collate
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer
from workbench.training.update import update

METHODS = sorted(upge.NAMED)

# Each reads something more of the old policy, of the current one, or of the base.
MORE = {
    "a choice by entropy": upge.grpo(upge.RatioClip(0.2) & upge.TopEntropy(0.5)),
    "a choice by covariance": upge.grpo(upge.ClipCov(0.3, low=0.0)),
    "two penalties": replace(
        upge.hpt(),
        auxiliary=(upge.KLPenalty(0.1, upge.K2(), to_base=True), upge.KLPenalty(0.1)),
    ),
    "an entropy bonus": replace(upge.luffy(), auxiliary=(upge.EntropyBonus(0.01),)),
}


def gradients(trainer):
    return torch.cat(
        [p.grad.flatten() for _, p in trainer.policy.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("name", METHODS)
def test_gradient_does_not_depend_on_micro_batches(name, small, trainer_of):
    recipe = replace(small, method=upge.NAMED[name](), optimizer=Optimizer(max_norm=1e9))
    found = []
    for tokens in (100_000, 150):
        trainer = trainer_of(recipe, Resources(tokens=tokens))
        torch.manual_seed(0)
        metrics = one_step(trainer)[2]
        measured = {key: value for key, value in metrics.items() if key.startswith("grad/")}
        found.append((gradients(trainer), measured))
    (one, said), (other, same) = found
    assert one.norm() > 0
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(one.norm()))
    noise = said["grad/variance"]
    assert noise > 0
    assert same == pytest.approx(said, rel=1e-2, abs=1e-4 * noise)


@pytest.mark.parametrize(
    "method",
    [*(make() for make in upge.NAMED.values()), *MORE.values()],
    ids=[*upge.NAMED, *MORE],
)
def test_one_pass_is_the_update_that_two_make(method, small, trainer_of, monkeypatch):
    """Where the old policy is scored before every update, and where the update's pass says it."""
    recipe = replace(small, method=method, optimizer=Optimizer(max_norm=1e9))
    found = []
    for one_pass in (Trainer.one_pass, property(lambda _: False)):
        monkeypatch.setattr(Trainer, "one_pass", one_pass)
        trainer = trainer_of(recipe, Resources(tokens=300))
        metrics = one_step(trainer)[2]
        weights = torch.cat([p.detach().flatten() for _, p in trainer.policy.parameters()])
        found.append((gradients(trainer), weights, metrics))
    (one, moved, said), (two, wanted, expected) = found
    assert one.norm() > 0
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(two.norm()))
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-6)
    assert list(said) == list(expected)
    assert said == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "hpt", "luffy"])
def test_one_pass_scores_every_rollout_once(name, small, trainer_of, monkeypatch):
    trainer, rows = trainer_of(replace(small, method=upge.NAMED[name]())), []
    score = Policy.score

    def counted(policy, layout, *rest, **named):
        rows.append(len(layout.trained))
        return score(policy, layout, *rest, **named)

    monkeypatch.setattr(Policy, "score", counted)
    sequences, batch, _ = one_step(trainer, precise=False)
    active = trainer.method.prepare(batch).active
    assert sum(rows) == int((~batch.demonstration | active).sum()) <= len(sequences)
    scored = ~batch.demonstration | active
    assert ((batch.old_logprobs != 0).any(dim=1) == scored).all()


@pytest.mark.parametrize("updates", [1, 2])
def test_every_pass_of_an_update_shows_that_the_run_gets_on(
    updates, small, trainer_of, monkeypatch
):
    recipe = replace(small, method=upge.hpt(), updates_per_batch=updates)
    trainer, passes, beats = trainer_of(recipe, Resources(tokens=100)), [], []
    score = Policy.score

    def counted(policy, *rest, **named):
        passes.append(len(beats))
        return score(policy, *rest, **named)

    monkeypatch.setattr(Policy, "score", counted)
    monkeypatch.setattr(trainer, "beat", lambda: beats.append(len(passes)))
    one_step(trainer, precise=False)
    assert len(beats) > 4
    assert beats == list(range(len(beats)))
    assert passes == [number + 1 for number in beats]


@pytest.mark.parametrize("name", ["sft", "grpo", "hpt", "luffy"])
def test_the_trainers_gradient_is_the_methods(name, small, trainer_of):
    """Against one backward pass over all rows at once, through `Method.loss`."""
    trainer = trainer_of(
        replace(small, method=upge.NAMED[name](), optimizer=Optimizer(max_norm=1e9)),
        Resources(tokens=200),
    )
    start = {n: p.detach().clone() for n, p in trainer.policy.parameters()}
    sequences, batch, _ = one_step(trainer, precise=False)
    got = gradients(trainer)
    with torch.no_grad():
        for n, p in trainer.policy.parameters():
            p.copy_(start[n])
    trainer.optimizer.zero_grad()
    scored = trainer.policy.score(trainer.policy.lay_out(sequences))
    whole = upge.TokenBatch(
        scored.logprobs,
        batch.old_logprobs,
        batch.trained,
        batch.rewards,
        batch.group,
        batch.demonstration,
        old_entropy=batch.old_entropy,
    )
    trainer.method.loss(whole).backward()
    torch.testing.assert_close(got, gradients(trainer), rtol=1e-3, atol=1e-4 * float(got.norm()))


@pytest.mark.parametrize(
    ("name", "rollouts", "sequences"), [("sft", 4, 1.0), ("grpo", 4, 0.0), ("luffy", 7, 1 / 8)]
)
def test_offline_share_of_sequences(name, rollouts, sequences, small, trainer_of):
    trainer = trainer_of(replace(small, method=upge.NAMED[name](), rollouts=rollouts))
    metrics = one_step(trainer, precise=False)[2]
    assert metrics["offline/sequences"] == pytest.approx(sequences)
    assert 0 <= metrics["offline/gradient"] <= 1
    assert metrics["offline/questions"] == pytest.approx({1.0: 1.0, 0.0: 0.0}.get(sequences, 0.5))


def test_a_steps_questions_are_recorded_with_their_levels(small, open_run):
    run = open_run(replace(small, method=upge.sft(), steps=1))
    trainer = open_trainer(run, Resources())
    train(trainer, run)
    levels = {problem.id: problem.level for problem in trainer.data.train}
    (row,) = run.rows(File.QUESTIONS)
    assert row["levels"] == [levels[name] for name in row["questions"]]
    assert len(set(row["levels"])) > 1


def test_a_too_large_gradient_is_skipped_and_counted(small, trainer_of):
    recipe = replace(small, method=upge.sft(), optimizer=Optimizer(skip_above=1e-6))
    trainer = trainer_of(recipe)
    before = [p.detach().clone() for _, p in trainer.policy.parameters()]
    metrics = one_step(trainer, precise=False)[2]
    assert metrics["optim/skipped"] == 1
    after = [p for _, p in trainer.policy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_non_finite_gradient_is_skipped_and_counted(small, trainer_of):
    trainer = trainer_of(replace(small, method=upge.sft()))
    name, parameter = trainer.policy.parameters()[3]
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = parameter.detach().clone()
    assert one_step(trainer, precise=False)[2]["optim/skipped"] == 1
    assert torch.equal(parameter, before), name


def test_a_cut_demonstration_is_counted(small, trainer_of):
    recipe = replace(small, method=upge.sft(), sampling=replace(small.sampling, max_tokens=20))
    metrics = one_step(trainer_of(recipe), precise=False)[2]
    assert metrics["offline/cut_demonstrations"] == small.questions
    assert (
        one_step(trainer_of(replace(small, method=upge.sft())), precise=False)[2][
            "offline/cut_demonstrations"
        ]
        < small.questions
    )


def test_an_update_that_nothing_moves_still_follows_its_momentum(small, trainer_of):
    trainer = trainer_of(replace(small, method=upge.grpo()))
    one_step(trainer, precise=False)
    before = [p.detach().clone() for _, p in trainer.policy.parameters()]
    problems = list(trainer.data.train[:4])
    wrong = [
        dataclasses.replace(s, verdict=Verdict.WRONG)
        for s in grade(trainer, problems, sample(trainer, problems, 2))
    ]
    tally = Tally()
    update(trainer, wrong, collate(trainer, wrong), tally)
    assert tally.metrics()["optim/gradient_norm"] == 0
    after = [p.detach() for _, p in trainer.policy.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_several_updates_move_the_ratio_and_one_does_not(small, trainer_of):
    still = one_step(trainer_of(replace(small, method=upge.grpo())), precise=False)[2]
    moved = one_step(
        trainer_of(replace(small, method=upge.grpo(), epochs_per_batch=2, rollouts=8)),
        precise=False,
    )[2]
    assert still["ratio/raw_max"] == pytest.approx(1.0, abs=1e-3)
    assert moved["ratio/raw_max"] > 1.001
    assert moved["policy/kl_old"] > 0


def test_every_epoch_is_a_permutation_and_seams_lose_nothing():
    per_step, total = 4, 10
    met = [i for step in range(1, 11) for i in questions_of(step, per_step, total, seed=3)[0]]
    assert [sorted(met[e * total : (e + 1) * total]) for e in range(4)] == [list(range(10))] * 4
    assert met[:10] != met[10:20]
    assert questions_of(3, per_step, total, 3)[1] == 0
    assert questions_of(4, per_step, total, 3)[1] == 1
    assert questions_of(1, per_step, total, 4)[0] != questions_of(1, per_step, total, 3)[0]


def test_seeds_follow_from_names():
    assert seed_of(0, "rollout", 1) == seed_of(0, "rollout", 1)
    assert len({seed_of(0, "rollout", i) for i in range(1000)}) == 1000
    assert 0 <= seed_of("a") < 2**63


def test_tally_takes_means_once():
    tally = Tally()
    tally.add("a", 1, 1)
    tally.add("a", 0, 3)
    tally.add("never", 0, 0)
    assert tally.metrics() == {"a": 0.25}


def test_value_head_learns(small, trainer_of):
    trainer = trainer_of(replace(small, method=upge.ppo()))
    one_step(trainer, precise=False)
    assert trainer.policy.value_head is not None
    assert float(trainer.policy.value_head.bias.detach().abs().sum()) > 0


def test_entropy_of_demonstrations_is_of_those_that_take_part(small, trainer_of):
    """Of a question that all rollouts solve LUFFY learns nothing, nor is it scored."""
    trainer = trainer_of(replace(small, method=upge.luffy(), rollouts=3))
    problems = list(trainer.data.train[:4])
    graded = grade(trainer, problems, sample(trainer, problems, 1))
    sequences = [
        s if s.demonstration or s.question > 1 else dataclasses.replace(s, verdict=Verdict.CORRECT)
        for s in (by_turns(s, row) for row, s in enumerate(graded))
    ]
    taken = [s for s in sequences if s.demonstration and s.question > 1]
    layout = trainer.policy.lay_out(taken)
    entropy = trainer.policy.score(layout, entropy=True).entropy
    expected = float(entropy[layout.trained].mean())
    tally = Tally()
    update(trainer, sequences, collate(trainer, sequences), tally)
    assert tally.metrics()["policy/entropy_demonstrations"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", [upge.sft(), upge.grpo()], ids=lambda m: m.label)
def test_validation_says_how_sure_any_method_is(method, small, trainer_of):
    trainer = trainer_of(replace(small, method=method))
    trainer.policy.model.double()
    tally = Tally()
    validate(trainer, tally)
    problems = list(trainer.data.validation[:5])
    requests = [
        Request(prompt_of(trainer, p), 1, seed_of(seed_of(0, "validation"), "evaluation", p.id))
        for p in problems
    ]
    answers = [found for (found,) in trainer.engine.generate(requests, trainer.decoding)]
    sequences = [
        Sequence(p, 0, prompt_of(trainer, p), a.tokens, "", Verdict.WRONG)
        for p, a in zip(problems, answers, strict=True)
    ]
    layout = trainer.policy.lay_out(sequences)
    surprisal = -trainer.policy.score(layout).logprobs.detach()[layout.trained].mean()
    assert tally.metrics()["validation/entropy"] == pytest.approx(float(surprisal), rel=1e-5)


def test_weights_are_no_copies_but_where_they_are_put_together(small, trainer_of):
    policy = trainer_of(replace(small, dtype="bfloat16")).policy
    given = policy.weights(policy.dtype)
    assert [each.data_ptr() for _, each in given] == [p.data_ptr() for _, p in policy.parameters()]


def test_what_trained_is_gone_before_anything_is_measured(small, open_run, monkeypatch):
    opened, measured = [], []

    def open_it(*given):
        found = open_trainer(*given)
        opened.append(weakref.ref(found.policy.model))
        return found

    monkeypatch.setattr(opening, "open_trainer", open_it)
    monkeypatch.setattr(worker, "_measure", lambda *given: measured.append(opened[0]()))
    suite = Measurement("chain", samples=1, temperature=0.6, top_p=0.95, max_tokens=8, seed=0)
    run = open_run(replace(small, steps=1))
    gc.disable()  # whenever that would come by itself
    try:
        worker._complete(run, Resources(device="cpu"), [suite], [], [], lambda: False)
    finally:
        gc.enable()
    assert measured == [None]


def test_a_recipe_without_its_own_data_says_so(trainer_of):
    with pytest.raises(ValueError, match="did you mean arithmetic"):
        trainer_of(Recipe("arithmetic-1m", Data("arithmetics"), upge.sft()))


def finite(row):
    return all(value is None or math.isfinite(value) for key, value in row.items() if "/" in key)


@pytest.mark.parametrize("method", ["grpo", "rloo", "dapo", "ppo"])
def test_a_step_in_which_every_advantage_is_zero_moves_nothing(method, small, open_run):
    # One token is no answer: of every question all rollouts are wrong.
    recipe = replace(small, method=upge.NAMED[method](), sampling=Sampling(max_tokens=1), steps=2)
    run = open_run(recipe)
    trainer = open_trainer(run, Resources())
    before = [p.detach().clone() for p in trainer.policy.model.parameters()]
    train(trainer, run)
    rows = run.rows()[1:]
    assert [row["reward/solve_none"] for row in rows] == [1, 1]
    assert [row["optim/skipped"] for row in rows] == [0, 0]
    assert all(map(finite, rows))
    if method != "ppo":  # whose advantage is of the value head too
        assert [row["optim/gradient_norm"] for row in rows] == [0, 0]
        assert all(map(torch.equal, before, trainer.policy.model.parameters()))


@pytest.mark.parametrize(
    ("method", "shown"), [("sft", "some"), ("luffy", "some"), ("hpt", "some"), ("hpt", "none")]
)
def test_a_question_without_a_demonstration_leaves_no_gap_in_a_step(method, shown, small, open_run):
    run = open_run(replace(small, method=upge.NAMED[method](), steps=2))
    trainer = open_trainer(run, Resources())
    without = [
        p if shown == "some" and place % 3 == 0 else dataclasses.replace(p, demonstration=None)
        for place, p in enumerate(trainer.data.train)
    ]
    trainer.data = dataclasses.replace(trainer.data, train=tuple(without))
    train(trainer, run)
    assert all(map(finite, run.rows()))
    demonstrated = {p.id for p in without if p.demonstration is not None}
    for row in run.rows(File.QUESTIONS):
        assert len(row["questions"]) == len(row["alpha"]) == len(row["beta"]) == small.questions
        assert method != "sft" or demonstrated.issuperset(row["questions"])
