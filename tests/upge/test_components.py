"""What every component promises, and what each kind of component does."""

import dataclasses
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from math import nan

import pytest
import torch
from batches import BATCHES, DEGENERATE, Row, distance, make_batch, ordinary, value_and_gradients
from every_component import ACTING, VALUES
from torch import Tensor

from workbench import upge
from workbench.identity import Component, canonical, fingerprint
from workbench.identity import replace as changed
from workbench.upge import Estimator, Method, Term, TokenBatch

BATCH = ordinary(seed=3)
NAMESPACE = {name: getattr(upge, name) for name in upge.__all__}
every_value = pytest.mark.parametrize("value", VALUES, ids=str)


def of_kind(kind: type) -> list:
    return [value for value in VALUES if isinstance(value, kind)]


# --- values ---------------------------------------------------------------------------------------


@every_value
def test_a_component_prints_as_the_python_that_makes_it(value: Component) -> None:
    assert eval(str(value), NAMESPACE) == value
    assert eval(repr(value), NAMESPACE) == value


@every_value
def test_equal_components_hash_and_fingerprint_alike(value: Component) -> None:
    twin = pickle.loads(pickle.dumps(value))
    assert twin == value and hash(twin) == hash(value)
    assert fingerprint(twin) == fingerprint(value)


def test_different_components_differ_in_everything() -> None:
    assert len(set(VALUES)) == len(VALUES)
    assert len({str(value) for value in VALUES}) == len(VALUES)
    assert len({fingerprint(value) for value in VALUES}) == len(VALUES)


@every_value
def test_a_component_cannot_be_changed(value: Component) -> None:
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, getattr(value, field.name))


@every_value
def test_the_class_is_part_of_the_identity(value: Component) -> None:
    form = canonical(value)
    assert isinstance(form, dict) and list(form) == [type(value).__name__]


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    program = (
        "from workbench import upge; from workbench.identity import fingerprint\n"
        "print(*(fingerprint(make()) for make in upge.NAMED.values()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "271828"}
    command = [sys.executable, "-c", program]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split() == [fingerprint(make()) for make in upge.NAMED.values()]


# A change here makes every recorded run of these methods look like another experiment.
GOLDEN = {
    "sft": "0c7eb6e642f401ee45d918bd6e1211df21843d4a6bc4c089422e7cf708cc6399",
    "srft": "0982b643d62728512e152fec3cff6aeae1ece9d1f6c220a402ce1befe09e1b9c",
    "hpt": "a60cfee03967e7815a0b099089dc48edc5f7ad397e288c9f9a2ac0beb74c06e5",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_identity_of_a_method_does_not_drift(name: str) -> None:
    assert fingerprint(upge.NAMED[name]()) == GOLDEN[name]


ONE_NUMBER = [
    (upge.Switch(1), upge.Switch(1.0)),
    (upge.Switch(-0.0), upge.Switch(0.0)),
    (upge.RatioClip(0, high=1), upge.RatioClip(0.0, high=1.0)),
    (upge.Method(rollouts=Term(Estimator()).estimator), Method(rollouts=(Term(Estimator(), 1),))),
    (Method(Estimator(), ()), Method(Estimator(), None)),
]


@pytest.mark.parametrize(("one", "other"), ONE_NUMBER, ids=str)
def test_one_meaning_has_one_form(one: Component, other: Component) -> None:
    assert one == other and str(one) == str(other) and fingerprint(one) == fingerprint(other)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = [
    ("RatioClip('0.2')", TypeError, r"RatioClip.low takes float, got '0.2'.*without quotes"),
    ("RatioClip(True)", TypeError, r"takes float, got True"),
    ("RatioClip(nan)", TypeError, r"takes float, got nan"),
    ("RatioClip(0.2, hgih=0.3)", TypeError, r"no field 'hgih'; did you mean high\?"),
    ("RatioClip()", TypeError, r"missing 1 required .* 'low'"),
    (
        "RatioClip(1.2)",
        ValueError,
        r"RatioClip.low must be .* 0 to 1, got 1.2; the nearest is 1.0$",
    ),
    (
        "RatioClip(0.2, high=-0.1)",
        ValueError,
        r"RatioClip.high must be at least 0 or None, got -0.1; the nearest is 0.0$",
    ),
    (
        "DualClip(0.2, cap=1.0)",
        ValueError,
        r"DualClip.cap must be a ratio above 1, got 1.0; such as 3.0$",
    ),
    ("SequenceClip(-1)", ValueError, r"SequenceClip.low must be .* got -1.0; the nearest is 0.0$"),
    ("SoftClip(0)", ValueError, r"SoftClip.positive must be above 0, got 0.0; such as 1.0$"),
    ("ClipCov(0)", ValueError, r"must be a share above 0 and at most 1, got 0.0; such as 0.0002$"),
    (
        "ClipCov(low=5, high=1)",
        ValueError,
        r"ClipCov.low must be below high, which is 1.0, got 5.0; such as 0.0$",
    ),
    ("TopEntropy(1.5)", ValueError, r"TopEntropy.share must be .* got 1.5; the nearest is 1.0$"),
    ("KeepAll(low=1)", TypeError, r"KeepAll has no field 'low'; it has no fields"),
    (
        "Capped(0)",
        ValueError,
        "Capped.cap must be a ratio, not a distance from 1, above 0, .*; such as 2.0$",
    ),
    ("EngineCorrected(0)", ValueError, "EngineCorrected.cap must be a ratio, .* above 0"),
    (
        "Capped(1, EngineCorrected(2))",
        ValueError,
        r"without correction, .*; write EngineCorrected\(2.0, over=Capped\(1.0\)\)$",
    ),
    (
        "EngineCorrected(2, EngineCorrected(2))",
        ValueError,
        r"without correction, got Engine.*; such as OldPolicy\(\)$",
    ),
    ("Shaped(0)", ValueError, r"Shaped.gamma must be above 0, got 0.0; such as 0.1$"),
    ("GroupNormalized(ddof=2)", ValueError, r"ddof must be from 0 to 1, got 2; the nearest is 1$"),
    (
        "GroupNormalized(epsilon=-1)",
        ValueError,
        r"epsilon must be at least 0, got -1.0; the nearest is 0.0$",
    ),
    ("BatchNormalized(epsilon=0)", ValueError, r"epsilon must be above 0, got 0.0; such as 1e-08$"),
    ("GAE(1.1)", ValueError, r"GAE.discount must be from 0 to 1, got 1.1; the nearest is 1.0$"),
    (
        "GAE(trace=-0.1)",
        ValueError,
        r"GAE.trace must be from 0 to 1, got -0.1; the nearest is 0.0$",
    ),
    ("ConstantLength(0)", ValueError, r"length must be at least 1, got 0; the nearest is 1$"),
    ("ConstantLength(1.5)", TypeError, r"length takes int, got 1.5 \(float\); the nearest is 2$"),
    ("TokenMean(TokenMean())", TypeError, r"TokenMean.scope takes Scope.*PerQuestion"),
    (
        "Switch(1.5)",
        ValueError,
        r"Switch.at_most must be a share .* 0 to 1, got 1.5; the nearest is 1.0$",
    ),
    ("Switch(at_mots=0)", TypeError, r"did you mean at_most\?"),
    ("SoftSwitch(slope=0)", ValueError, r"slope must be above 0, got 0.0; such as 10.0$"),
    ("SoftSwitch(2)", ValueError, r"SoftSwitch.centre must be .* got 2.0; the nearest is 1.0$"),
    (
        "Anneal(start=2)",
        ValueError,
        r"Anneal.start must be a share from 0 to 1, got 2.0; the nearest is 1.0$",
    ),
    ("Anneal(steps=0)", ValueError, r"Anneal.steps must be at least 1, got 0"),
    ("KLPenalty(-1)", ValueError, r"KLPenalty.coefficient must be at least 0"),
    ("ValueLoss(0)", ValueError, r"ValueLoss.coefficient must be above 0"),
    ("EntropyWeight(-1, 1)", ValueError, r"EntropyWeight.scale must be at least 0"),
    ("Estimator(OldPolicy())", TypeError, r"Estimator.mask takes Mask, got OldPolicy\(\)"),
    ("Estimator(RatioClip)", TypeError, r"write RatioClip\(\.\.\.\) to make a value"),
    ("Estimator('RatioClip')", TypeError, r"did you mean RatioClip\?"),
    ("Estimator(lambda ratio: ratio)", TypeError, r"Estimator.mask takes Mask, got <function"),
    ("Term(sft())", TypeError, r"Term.estimator takes Estimator"),
    ("Method()", ValueError, r"needs an estimator for rollouts, for demonstrations, or both"),
    ("Method(rollouts=grpo())", TypeError, r"Method.rollouts takes"),
    ("Method(Estimator(), gate=Switch(0))", ValueError, r"Switch\(0.0\).* only one stream"),
    ("Method(None, Estimator(), SoftSwitch())", ValueError, r"only one stream"),
    ("hpt(gate=0.5)", TypeError, r"Method.gate takes Gate, got 0.5"),
    ("dr_grpo(0)", ValueError, r"ConstantLength.length must be at least 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[c for c, *_ in REFUSED])
def test_a_mistake_is_named_with_its_rule(call: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        eval(call, {**NAMESPACE, "nan": nan})


def test_an_unknown_name_hints_at_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean grpo"):
        upge.__getattr__("grop")


def with_nan(rewards: Tensor, value: float = float("nan")) -> Tensor:
    return rewards.index_fill(0, torch.tensor([2]), value)


MISFITS = [
    ("rewards", lambda b: torch.ones(2), r"shape \(2,\), expected \(20,\)"),
    ("trained", lambda b: b.trained[:, :1], r"trained has shape \(20, 1\), expected \(20, "),
    ("logprobs", lambda b: b.rewards, r"logprobs is \[sequence, token\], got shape \(20,\)"),
    ("logprobs", lambda b: b.logprobs.half(), "float32 or float64, .*float16; .*logprobs.float"),
    ("old_logprobs", lambda b: b.logprobs.int(), "old_logprobs must be floating point, .*int32"),
    ("old_entropy", lambda b: b.trained, "old_entropy must be floating point, got torch.bool"),
    ("trained", lambda b: b.trained.int(), r"trained must be bool, .*; write trained.bool\(\)"),
    ("demonstration", lambda b: b.rewards, "demonstration must be bool, got torch.float64"),
    ("correct", lambda b: b.rewards, "correct must be bool, got torch.float64"),
    ("rewards", lambda b: b.correct, r"rewards must be floating point, got torch.bool"),
    ("rewards", lambda b: b.rewards.long(), r"got torch.int64; write rewards.float\(\)"),
    ("rewards", lambda b: with_nan(b.rewards), "rewards must be finite, got nan in row 2"),
    ("rewards", lambda b: with_nan(b.rewards, float("inf")), "finite, got inf in row 2"),
    ("group", lambda b: b.rewards, r"group must be an integer, got torch.float64; .*group.long"),
    ("group", lambda b: b.correct, "group must be an integer, got torch.bool"),
]


@pytest.mark.parametrize(("field", "value", "message"), MISFITS)
def test_a_batch_of_the_wrong_shape_or_kind_is_refused(field, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BATCH, **{field: value(BATCH)})


def test_a_field_of_a_batch_is_a_tensor() -> None:
    with pytest.raises(TypeError, match="rewards must be a tensor, got list"):
        replace(BATCH, rewards=BATCH.rewards.tolist())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_any_integers_tell_questions_apart(dtype: torch.dtype) -> None:
    narrow = replace(BATCH, group=BATCH.group.to(dtype))
    for method in (upge.hpt(), upge.grpo(upge.ClipCov(0.3, low=0.05, high=50.0))):
        assert torch.equal(method.loss(narrow), method.loss(BATCH))


NEEDS = [
    (upge.ppo(), "values", "GAE reads TokenBatch.values"),
    (upge.srft(), "old_entropy", "EntropyWeight reads TokenBatch.old_entropy"),
    (upge.grpo(upge.TopEntropy()), "old_entropy", "TopEntropy reads TokenBatch.old_entropy"),
    (ACTING["KLPenalty(0.1, estimator=K2(), to_base=True)"], "base_logprobs", "base_logprobs"),
    (upge.corrected(upge.grpo()), "engine_logprobs", "EngineCorrected reads TokenBatch.engine_log"),
]


@pytest.mark.parametrize(("method", "field", "message"), NEEDS, ids=str)
def test_what_a_method_reads_and_lacks_is_named(method: Method, field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method.loss(replace(BATCH, **{field: None}))


def test_a_loss_without_the_current_policys_values_or_entropy_says_so() -> None:
    with pytest.raises(ValueError, match="value head"):
        upge.ppo().loss(BATCH)
    with pytest.raises(ValueError, match="entropy"):
        upge.hpt_released().loss(BATCH)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", of_kind(upge.Mask), ids=str)
@pytest.mark.parametrize("name", ["random 0", "far off policy", "fully masked rows"])
def test_masks_are_between_0_and_1(mask: upge.Mask, name: str) -> None:
    batch = BATCHES[name]
    advantage = upge.GroupNormalized()(batch)
    log_ratio = batch.logprobs - batch.old_logprobs
    everything = torch.ones_like(batch.demonstration)
    for kept in (
        mask(log_ratio, advantage, batch.trained),
        mask.select(batch, advantage, everything),
    ):
        assert ((kept >= 0) & (kept <= 1)).all()


@pytest.mark.parametrize("denominator", of_kind(upge.Denominator), ids=str)
def test_a_ratio_clip_acts_whatever_the_denominator(denominator: upge.Denominator) -> None:
    batch = BATCHES["far off policy"]
    clipped, kept = (
        Method(rollouts=Estimator(mask, denominator)).weights(batch)
        for mask in (upge.RatioClip(0.2), upge.KeepAll())
    )
    changed = clipped != kept
    assert changed.any() and (clipped[changed] == 0).all()


EDGES = [  # ratio, advantage, kept by RatioClip(0.2, high=0.3), by DualClip with cap 2
    (1.0, 1.0, True, True),
    (1.29, 1.0, True, True),
    (1.31, 1.0, False, False),
    (1.31, -1.0, True, True),
    (2.1, -1.0, True, False),
    (0.81, -1.0, True, True),
    (0.79, -1.0, False, False),
    (0.79, 1.0, True, True),
    (9.0, 0.0, True, True),
]


@pytest.mark.parametrize(("ratio", "advantage", "clip", "dual"), EDGES)
def test_clips_act_only_in_the_direction_of_the_advantage(
    ratio: float, advantage: float, clip: bool, dual: bool
) -> None:
    log_ratio, A = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    trained = torch.ones(1, 1, dtype=torch.bool)
    assert bool(upge.RatioClip(0.2, high=0.3)(log_ratio, A, trained)) is clip
    assert bool(upge.DualClip(0.2, high=0.3, cap=2.0)(log_ratio, A, trained)) is dual


def many_tokens(seed: int = 0, step: int = 0) -> TokenBatch:
    rows = [Row(q, float(i < 2), 25) for q in range(4) for i in range(4)]
    rows += [Row(q, 1.0, 25, demonstration=True) for q in range(4)]
    return make_batch(rows, seed, step=step)


def selected(mask: upge.Mask, batch: TokenBatch) -> Tensor:
    """True where the mask's selection keeps a rollout token."""
    advantage = upge.GroupNormalized()(batch)
    return mask.select(batch, advantage, ~batch.demonstration).bool()[~batch.demonstration]


def test_clip_cov_drops_a_share_of_all_tokens_among_those_that_covary() -> None:
    batch = many_tokens()
    rollouts = ~batch.demonstration
    A, log_pi = upge.GroupNormalized()(batch)[rollouts], batch.old_logprobs[rollouts]
    covariance = (A - A.mean()) * (log_pi - log_pi.mean())
    eligible = (covariance > 0.3) & (covariance < 2.0)
    for share, count in ((1e-9, 1), (0.01, 4), (0.1, 40), (1.0, int(eligible.sum()))):
        dropped = ~selected(upge.ClipCov(share, 0.3, 2.0), batch)
        assert dropped.sum() == min(count, int(eligible.sum()))
        assert (eligible | ~dropped).all()


def test_clip_cov_draws_anew_each_step_and_alike_in_the_same() -> None:
    mask = upge.ClipCov(0.05, 0.05, 50.0)
    draws = [selected(mask, many_tokens(step=step)) for step in (0, 0, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[2], draws[3])


def test_clip_cov_drops_every_eligible_token_equally_often() -> None:
    mask = upge.ClipCov(0.05, 0.0, 50.0)
    dropped = sum((~selected(mask, many_tokens(step=s))).double() for s in range(200))
    assert isinstance(dropped, Tensor)
    eligible = dropped[dropped > 0]
    expected = 200 * 20 / len(eligible)
    chi_squared = ((eligible - expected) ** 2 / expected).sum()
    assert abs(float(chi_squared) - len(eligible)) < 5 * (2 * len(eligible)) ** 0.5


def test_top_entropy_keeps_the_share_of_highest_entropy() -> None:
    batch = many_tokens()
    assert batch.old_entropy is not None
    entropy = batch.old_entropy[~batch.demonstration]
    for share, count in ((1e-9, 1), (0.2, 80), (0.5, 200), (1.0, 400)):
        kept = selected(upge.TopEntropy(share), batch)
        assert kept.sum() == count
        assert kept.all() or entropy[kept].min() > entropy[~kept].max()


@pytest.mark.parametrize("mask", [upge.ClipCov(0.1, 0.05, 50.0), upge.TopEntropy(0.3)], ids=str)
def test_a_selection_is_of_the_step_and_not_of_the_micro_batch(mask: upge.Mask) -> None:
    batch, method = many_tokens(), Method(rollouts=Estimator(mask, upge.OldPolicy()))
    whole = value_and_gradients(method.loss, batch)[1]
    step = method.prepare(batch)
    for row in range(0, len(batch), 3):
        leaf = batch.logprobs[[row]].clone().requires_grad_()
        part = torch.autograd.grad(step.loss(torch.tensor([row]), leaf), leaf)[0]
        assert torch.equal(part[0], whole[row])


def test_selections_do_not_read_the_current_policy() -> None:
    batch = many_tokens()
    moved = replace(batch, logprobs=batch.logprobs - 1)
    for mask in (upge.ClipCov(0.1, 0.05, 50.0), upge.TopEntropy(0.3)):
        assert torch.equal(selected(mask, batch), selected(mask, moved))


def test_tokens_without_a_gate_weight_take_no_part_in_a_selection() -> None:
    batch = many_tokens()
    rewards = torch.where(batch.group == 0, 0.0, batch.rewards)  # question 0 is demonstrated
    batch = replace(batch, rewards=rewards, correct=rewards > 0)
    method = upge.hpt(rollouts=Estimator(upge.TopEntropy(0.5), upge.OldPolicy()))
    term = method.prepare(batch).terms[0]
    trained = ~batch.demonstration & (batch.group != 0)
    assert term.selected[trained].sum() == 150


# --- on policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ACTING.values(), ids=ACTING)
def test_on_policy_form_has_the_same_gradient_where_the_policies_are_equal(method: Method) -> None:
    batch = replace(BATCH, logprobs=BATCH.old_logprobs)
    ours = value_and_gradients(method.on_policy().loss, batch)
    assert distance(ours, value_and_gradients(method.loss, batch)) < 1e-12
    assert method.on_policy().on_policy() == method.on_policy()


ON_POLICY_TWINS = [
    (upge.grpo(), upge.sapo()),
    (upge.grpo(), upge.gspo()),
    (upge.grpo(), upge.grpo(upge.DualClip(0.2))),
    (upge.cispo(5.0), upge.cispo(1.0)),
    (Method(Estimator(denominator=upge.OldPolicy())), Method(Estimator())),
]


@pytest.mark.parametrize(("one", "other"), ON_POLICY_TWINS, ids=str)
def test_ratio_methods_are_one_method_on_policy(one: Method, other: Method) -> None:
    assert one != other and one.on_policy() == other.on_policy()


def test_what_can_act_on_policy_stays() -> None:
    mask = upge.RatioClip(0.2) & upge.ClipCov()
    assert mask.on_policy() == upge.ClipCov()
    assert upge.Capped(0.5).on_policy() == upge.Capped(0.5)
    assert upge.Unit().on_policy() == upge.Unit()
    corrected = upge.EngineCorrected(1.2).on_policy()
    assert corrected == upge.EngineCorrected(1.2, upge.CurrentPolicy())


# --- advantages -----------------------------------------------------------------------------------


def by_row(advantage: upge.Advantage, batch: TokenBatch) -> list[float]:
    values = advantage(batch)
    assert (values == values[:, :1]).all()
    return values[:, 0].tolist()


ROLLOUTS = [Row(0, r, 2) for r in (1.0, 0.0, 0.0, 0.0)]
TOGETHER = make_batch([*ROLLOUTS, Row(0, 1.0, 3, demonstration=True)], seed=0)
ADVANTAGES = [
    (upge.Ones(), [1, 1, 1, 1, 1]),
    (upge.Reward(), [1, 0, 0, 0, 1]),
    (upge.Signed(), [1, -1, -1, -1, 1]),
    (upge.GroupCentered(), [0.75, -0.25, -0.25, -0.25, 0.75]),
    (upge.GroupCentered(with_demonstrations=True), [0.6, -0.4, -0.4, -0.4, 0.6]),
    (upge.LeaveOneOut(), [1, -1 / 3, -1 / 3, -1 / 3, 0.75]),
    (upge.LeaveOneOut(with_demonstrations=True), [0.75, -0.5, -0.5, -0.5, 0.75]),
    (upge.GroupNormalized(epsilon=0), [1.5, -0.5, -0.5, -0.5, 1.5]),
    (upge.GroupNormalized(epsilon=0, ddof=0), [3**0.5, *[-(3**-0.5)] * 3, 3**0.5]),
    (upge.GroupNormalized(epsilon=0.5), [0.75, -0.25, -0.25, -0.25, 0.75]),
    (
        upge.GroupNormalized(True, epsilon=0.0, ddof=0),
        [1.5**0.5, *[-((2 / 3) ** 0.5)] * 3, 1.5**0.5],
    ),
]


@pytest.mark.parametrize(("advantage", "expected"), ADVANTAGES, ids=str)
def test_advantages_of_one_in_four(advantage: upge.Advantage, expected: list[float]) -> None:
    assert by_row(advantage, TOGETHER) == pytest.approx(expected, abs=1e-12)


GROUPED = [a for a in of_kind(upge.Advantage) if hasattr(a, "lone_reward") and not a.lone_reward]


@pytest.mark.parametrize("advantage", GROUPED, ids=str)
def test_group_advantages_have_mean_0_over_what_they_are_statistics_of(
    advantage: upge.GroupCentered,
) -> None:
    for batch in (BATCH, TOGETHER, make_batch(DEGENERATE["rewards between 0 and 1"], 0)):
        rows = torch.ones_like(batch.demonstration)
        if not advantage.with_demonstrations:
            rows = ~batch.demonstration
        sums = batch.per_question(advantage(batch)[:, 0], rows)
        assert sums.abs().max() < 1e-12


@pytest.mark.parametrize("baseline", [False, True])
def test_batch_normalized_advantages_have_mean_0_and_variance_1_over_tokens(baseline: bool) -> None:
    tokens = BATCH.trained & ~BATCH.demonstration[:, None]
    values = upge.BatchNormalized(baseline)(BATCH)[tokens]
    assert float(values.mean()) == pytest.approx(0, abs=1e-12)
    assert float(values.var()) == pytest.approx(1, abs=1e-6)


LONE = [upge.GroupCentered, upge.GroupNormalized, upge.LeaveOneOut]


@pytest.mark.parametrize("make", LONE)
def test_a_lone_rollout_has_advantage_0_or_its_reward(make: type) -> None:
    batch = make_batch([Row(0, 1.0, 2), Row(1, 0.5, 2)], seed=0)
    assert by_row(make(), batch) == [0, 0]
    assert by_row(make(lone_reward=True), batch) == [1, 0.5]
    demonstrated = make_batch([Row(0, 0.0, 2), Row(0, 1.0, 2, demonstration=True)], seed=0)
    assert by_row(make(with_demonstrations=True), demonstrated)[0] < 0


def test_equal_rewards_have_no_advantage_whatever_the_rounding() -> None:
    for reward in (0.1, 0.3, 1 / 3, 1e-3, 123.456):
        batch = make_batch([Row(0, reward, 2) for _ in range(7)], seed=0)
        for advantage in (upge.GroupNormalized(), upge.GroupNormalized(epsilon=0)):
            assert by_row(advantage, batch) == [0] * 7


def test_gae_without_decay_is_the_return_minus_the_value() -> None:
    assert BATCH.values is not None
    found = upge.GAE(whiten=False)(BATCH)
    expected = torch.where(BATCH.trained, BATCH.rewards[:, None] - BATCH.values, 0.0)
    assert distance([found], [expected]) < 1e-12


# --- likelihoods, denominators --------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.01, 0.1, 3.0])
def test_shaping_is_the_derivative_of_its_function(gamma: float) -> None:
    pi = torch.linspace(1e-4, 1, 50, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad((pi / (pi + gamma)).sum(), pi)[0]
    assert torch.allclose(upge.Shaped(gamma)(pi.detach().log()), expected, rtol=1e-12)


def ratio_of(denominator: upge.Denominator, batch: TokenBatch) -> Tensor:
    reference = denominator(batch.logprobs, batch.old_logprobs, batch.trained)
    return (batch.logprobs - reference).exp()


def test_denominators_make_their_ratios() -> None:
    batch = BATCHES["far off policy"]
    pi, r = batch.logprobs.exp(), (batch.logprobs - batch.old_logprobs).exp()
    expected = {
        upge.CurrentPolicy(): torch.ones_like(r),
        upge.OldPolicy(): r,
        upge.Unit(): pi,
        upge.Capped(1.2): r.clamp(max=1.2),
        upge.Capped(0.3, over=upge.Unit()): pi.clamp(max=0.3),
    }
    for denominator, ratio in expected.items():
        assert distance([ratio_of(denominator, batch)], [ratio]) < 1e-12
    geometric = ratio_of(upge.SequenceGeometric(), batch)
    for row in range(len(batch)):
        here = batch.trained[row]
        expected_log = (batch.logprobs - batch.old_logprobs)[row, here].mean()
        assert torch.allclose(geometric[row].log(), expected_log, rtol=1e-12, atol=1e-12)


def test_a_correction_goes_by_token_or_by_sequence_and_spares_demonstrations() -> None:
    batch = make_batch([Row(0, 1.0, 2), Row(0, 0.0, 3, start=1), Row(0, 1.0, 2, True)], seed=0)
    ratios = [[0.5, 3.0, 9.0, 9.0], [9.0, 1.5, 2.0, 0.5], [9.0, 9.0, 9.0, 9.0]]
    engine = batch.old_logprobs - torch.tensor(ratios, dtype=torch.float64).log()
    batch = replace(batch, engine_logprobs=torch.where(batch.trained, engine, nan))
    token, sequence = upge.EngineCorrected(1.8), upge.EngineCorrected(1.8, by_sequence=True)
    table = {
        token: [[0.5, 1.8, 1, 1], [1, 1.5, 1.8, 0.5], [1] * 4],
        changed(token, drops=True): [[0.5, 0, 1, 1], [1, 1.5, 0, 0.5], [1] * 4],
        sequence: [[1.5] * 4, [1.5] * 4, [1] * 4],
        changed(sequence, cap=1.4): [[1.4] * 4, [1.4] * 4, [1] * 4],
        changed(sequence, cap=1.4, drops=True): [[0] * 4, [0] * 4, [1] * 4],
        upge.OldPolicy(): [[1] * 4] * 3,
    }
    for denominator, wanted in table.items():
        found = denominator.correction(batch)
        expected = torch.tensor(wanted, dtype=torch.float64)
        assert distance([found], [expected]) < 1e-12, denominator
        cap = getattr(denominator, "cap", 0.0)
        assert torch.equal(denominator.cut(batch), (expected == cap) | (expected == 0))


def test_a_correction_over_the_old_policy_is_a_reference_of_its_own() -> None:
    """pi_ref = max(pi_engine, pi_old / cap)."""
    assert BATCH.engine_logprobs is not None
    stream = ~BATCH.demonstration
    reference = BATCH.engine_logprobs.exp().maximum(BATCH.old_logprobs.exp() / 1.2)
    ratio = BATCH.logprobs.exp() / reference
    advantage = upge.Reward()(BATCH)
    here = Estimator(upge.KeepAll(), upge.EngineCorrected(1.2), upge.Reward())
    weights = here.weights(BATCH, BATCH.logprobs, advantage, torch.ones_like(ratio))
    kept = BATCH.trained & stream[:, None]
    assert distance([weights.ratio[kept]], [ratio[kept]]) < 1e-12


# --- gates ----------------------------------------------------------------------------------------

EIGHTHS = torch.arange(9) / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("right", range(9))
def test_a_switch_is_closed_up_to_its_threshold(right: int, dtype: torch.dtype) -> None:
    alpha, beta = upge.Switch(right / 8)(EIGHTHS.to(dtype), 0)
    assert beta.tolist() == [float(k <= right) for k in range(9)]
    assert torch.equal(alpha + beta, torch.ones(9, dtype=dtype))


@pytest.mark.parametrize("n", [3, 5, 6, 7, 8, 12])
def test_a_switch_knows_shares_that_no_float_holds(n: int) -> None:
    for right in range(n + 1):
        rows = [Row(0, float(i < right), 1) for i in range(n)]
        rate = make_batch(rows, seed=0).solve_rate.float()
        assert upge.Switch(right / n)(rate, 0)[1].item() == 1
        if right:
            assert upge.Switch((right - 1) / n)(rate, 0)[1].item() == 0


def test_a_steep_soft_switch_is_a_switch_and_a_flat_one_a_half() -> None:
    rate = EIGHTHS.double()
    steep = upge.SoftSwitch(0.3, slope=1e5)(rate, 0)
    assert distance(steep, upge.Switch(0.3)(rate, 0)) < 1e-12
    flat = upge.SoftSwitch(0.3, slope=1e-9)(rate, 0)
    assert distance(flat, [torch.full((9,), 0.5).double()] * 2) < 1e-8
    alpha, beta = upge.SoftSwitch(0.25)(rate, 0)
    assert beta[2] == 0.5 and (beta.diff() < 0).all() and torch.equal(alpha, 1 - beta)


def test_annealing_goes_from_start_to_end_and_stays() -> None:
    gate, rate = upge.Anneal(0.8, end=0.2, steps=4), EIGHTHS.double()
    betas = [float(gate(rate, step)[1][0]) for step in (0, 1, 2, 4, 100)]
    assert betas == pytest.approx([0.8, 0.65, 0.5, 0.2, 0.2])
    assert all((gate(rate, 1)[0] == 1 - gate(rate, 1)[1]).tolist())


def test_an_open_gate_gives_both_streams_everything() -> None:
    assert [w.tolist() for w in upge.Open()(torch.zeros(2), 0)] == [[1, 1], [1, 1]]


def test_a_gate_reads_correct_answers_and_not_rewards() -> None:
    shaped = replace(BATCH, rewards=BATCH.rewards + 0.5, correct=BATCH.rewards > 0)
    same = upge.hpt().prepare(shaped).beta
    assert torch.equal(same, upge.hpt().prepare(BATCH).beta) and same.sum() == 1


def test_rows_that_are_not_active_add_exactly_nothing() -> None:
    for method in ACTING.values():
        step = method.prepare(BATCH)
        entropy, values = BATCH.old_entropy, BATCH.values
        assert entropy is not None and values is not None
        idle = (~step.active).nonzero()[:, 0]
        assert step.loss(idle, BATCH.logprobs[idle], entropy[idle], values[idle]) == 0


# --- methods --------------------------------------------------------------------------------------

LABELS = [
    *((make(), name) for name, make in upge.NAMED.items()),
    (upge.hpt(upge.Switch(0.25)), "hpt[gate.at_most=0.25]"),
    (upge.sft(upge.SequenceMean()), "sft[demonstrations.aggregation=SequenceMean()]"),
    (
        Estimator(upge.RatioClip(0.2)).as_method(),
        "RatioClip(0.2) · CurrentPolicy · GroupNormalized",
    ),
    (
        Estimator(advantage=upge.Ones(), likelihood=upge.Shaped(0.1)).as_method(),
        "KeepAll · CurrentPolicy · Ones · Shaped(0.1)",
    ),
    (
        Estimator(upge.RatioClip(0.2) & upge.ClipCov(), aggregation=upge.TokenMean()).as_method(),
        "Both(RatioClip(0.2), ClipCov()) · CurrentPolicy · GroupNormalized · TokenMean",
    ),
]


@pytest.mark.parametrize(("method", "label"), LABELS, ids=[label for _, label in LABELS])
def test_labels_are_names_with_what_differs(method: Method, label: str) -> None:
    assert method.label == label


NEEDED = {  # rollouts, demonstrations, value head
    upge.sft: (False, True, False),
    upge.grpo: (True, False, False),
    upge.ppo: (True, False, True),
    upge.luffy: (True, True, False),
    upge.hpt: (True, True, False),
}


@pytest.mark.parametrize("make", NEEDED)
def test_a_method_knows_what_a_step_of_it_needs(make: type) -> None:
    method = make()
    needs = (method.samples_rollouts, method.needs_demonstrations, method.needs_values)
    assert needs == NEEDED[make]


def test_auxiliaries_say_what_they_need() -> None:
    assert upge.hpt_released().needs_entropy and not upge.hpt().needs_entropy
    base = ACTING["KLPenalty(0.1, estimator=K2(), to_base=True)"]
    assert base.needs_base and not ACTING["KLPenalty(0.1)"].needs_base


def test_a_bare_estimator_trains_rollouts_only() -> None:
    assert Estimator().as_method() == Method(rollouts=Estimator())


# --- losses beside the estimator ------------------------------------------------------------------


def auxiliary_loss(auxiliary: upge.Auxiliary, batch: TokenBatch) -> list[Tensor]:
    """Value and gradients by log-probabilities, entropy and values of the auxiliary part alone."""
    method = Method(demonstrations=upge.sft().demonstrations, auxiliary=(auxiliary,))

    def part(batch: TokenBatch, entropy: Tensor, values: Tensor) -> Tensor:
        current = upge.Current(batch.logprobs, entropy, values)
        return method.prepare(batch).losses(torch.arange(len(batch)), current)["auxiliary"]

    return value_and_gradients(part, batch)


@pytest.mark.parametrize("demonstrations", [False, True])
def test_the_entropy_bonus_is_a_mean_over_its_tokens(demonstrations: bool) -> None:
    tokens = BATCH.trained & (~BATCH.demonstration | demonstrations)[:, None]
    by_entropy = auxiliary_loss(upge.EntropyBonus(0.5, demonstrations), BATCH)[2]
    assert distance([by_entropy], [-0.5 * tokens.double() / tokens.sum()]) < 1e-12


DIVERGENCES = {  # of log(pi / reference)
    upge.K1(): lambda x: x,
    upge.K2(): lambda x: x**2 / 2,
    upge.K3(): lambda x: torch.exp(-x) - 1 + x,
}


@pytest.mark.parametrize("to_base", [False, True])
@pytest.mark.parametrize("estimator", DIVERGENCES, ids=str)
def test_the_kl_penalty_is_a_mean_over_rollout_tokens(
    estimator: upge.Divergence, to_base: bool
) -> None:
    tokens = BATCH.trained & ~BATCH.demonstration[:, None]

    def expected(batch: TokenBatch, entropy: Tensor, values: Tensor) -> Tensor:
        reference = batch.base_logprobs if to_base else batch.old_logprobs
        assert reference is not None
        return 0.3 * DIVERGENCES[estimator]((batch.logprobs - reference)[tokens]).mean()

    ours = auxiliary_loss(upge.KLPenalty(0.3, estimator, to_base), BATCH)
    assert distance(ours, value_and_gradients(expected, BATCH)) < 1e-12
