"""The oracle: theorems on bias and variance hold to rounding on enumerable policies."""

import pytest
import torch

from workbench import upge
from workbench.moments import STATISTICS, jackknife
from workbench.upge import exact

SUMS = upge.ConstantLength(1)
WORLDS = [exact.World(), exact.World(questions=3, vocabulary=2, horizon=4, seed=4, solved=0.5)]
POLICIES = [make(world) for world in WORLDS for make in (exact.Tabular, exact.Neural)]
NAMES = [f"{type(p).__name__}-{i}" for i, p in enumerate(POLICIES)]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=NAMES)


def rollouts_only(advantage, **parts):
    return upge.Method(rollouts=upge.Estimator(advantage=advantage, aggregation=SUMS, **parts))


def near(a, b):
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@every_policy
def test_probabilities_add_up_and_scores_average_to_zero(policy):
    theta = policy.random(0)
    pi = exact.token_logprobs(policy, theta).sum(dim=-1).exp()
    near(pi.sum(dim=1), torch.ones(policy.world.questions, dtype=torch.float64))
    per_response = exact.scores(policy, theta).sum(dim=2)
    near(torch.einsum("qr,qrp->qp", pi, per_response), torch.zeros_like(per_response[:, 0]))


@every_policy
@pytest.mark.parametrize("rollouts", [2, 3])
def test_reinforce_and_rloo_have_no_bias(policy, rollouts):
    theta = policy.random(1)
    for method in (rollouts_only(upge.Reward()), upge.rloo()):
        found = exact.moments(method, policy, theta, rollouts=rollouts)
        near(found.mean, found.truth)
        assert found.bias_squared < 1e-20
        assert found.variance > 0


@every_policy
def test_masks_and_the_old_policy_have_no_bias_on_policy(policy):
    theta = policy.random(2)
    parts = {"mask": upge.RatioClip(0.2), "denominator": upge.OldPolicy()}
    found = exact.moments(rollouts_only(upge.LeaveOneOut(), **parts), policy, theta)
    near(found.mean, found.truth)
    assert max(found.bias_mask, found.bias_denominator, found.bias_rest) < 1e-20


MASKS = [
    upge.RatioClip(0.2), upge.DualClip(0.2), upge.SequenceClip(0.1), upge.SoftClip(),
    upge.RatioClip(0.2) & upge.KeepAll(),
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(
    "denominator", [upge.CurrentPolicy(), upge.OldPolicy(), upge.SequenceGeometric()], ids=str
)
def test_no_mask_and_no_old_denominator_has_a_bias_on_policy(mask, denominator):
    policy = POLICIES[1]
    parts = {"mask": mask, "denominator": denominator}
    found = exact.moments(rollouts_only(upge.LeaveOneOut(), **parts), policy, policy.random(2))
    near(found.mean, found.truth)
    assert max(found.bias_mask, found.bias_denominator) < 1e-20


def test_a_bias_is_told_apart_by_what_makes_it():
    """The advantage's is not the denominator's, and the three vectors add up to the whole."""
    policy, theta = POLICIES[0], POLICIES[0].random(3)
    centred = exact.moments(rollouts_only(upge.GroupCentered()), policy, theta)
    assert centred.bias_denominator < 1e-20
    assert centred.bias_rest == pytest.approx(float(centred.truth.square().sum()) / 4)
    unit = exact.moments(rollouts_only(upge.LeaveOneOut(), denominator=upge.Unit()), policy, theta)
    assert unit.bias_denominator > 1e-3 and unit.bias_rest < 1e-20
    assert unit.bias_denominator == pytest.approx(float(unit.bias_squared))
    old = theta + 0.5 * policy.random(8)
    parts = {"mask": upge.RatioClip(0.05), "denominator": upge.OldPolicy()}
    clipped = exact.moments(
        rollouts_only(upge.GroupCentered(), **parts), policy, theta, old=old, rollouts=3
    )
    three = (clipped.bias_mask, clipped.bias_denominator, clipped.bias_rest)
    assert min(three) > 1e-6
    assert sum(each**0.5 for each in three) >= float(clipped.bias_squared) ** 0.5


def test_entropies_are_those_of_the_policy_that_draws():
    """SRFT weighs by them, so that zeros in their place would be another method."""
    policy = POLICIES[0]
    theta, old = policy.random(0), policy.random(1)
    found = exact.token_entropies(policy, old)
    world, probability = policy.world, policy.logits(old).softmax(dim=-1)
    wanted = torch.distributions.Categorical(probability).entropy()
    for response, tokens in enumerate(world.responses):
        for place in range(len(tokens)):
            prefix = world.prefixes.index(tokens[:place])
            near(found[:, response, place], wanted[:, prefix])
    weighed = exact.moments(upge.srft(), policy, theta, old=old)
    got = exact.sampled_moments(upge.srft(), policy, theta, rollouts=2, samples=800, old=old)
    assert ((got.mean - weighed.mean).abs() <= 4.5 * got.mean_error + 1e-12).all()


@every_policy
def test_a_step_of_random_questions_varies_by_its_questions_too(policy):
    """With gradients of one question each: its mean square less the square of the mean."""
    theta, world = policy.random(16), policy.world
    found = exact.moments(upge.sft(SUMS), policy, theta)
    each = exact.scores(policy, theta).sum(dim=2)
    square = (world.demonstrators * each.square().sum(dim=-1)).sum(dim=1).mean()
    variance = square - found.mean.square().sum()
    near(torch.as_tensor(found.of_random(1).variance), variance)
    near(torch.as_tensor(found.of_random(8).variance), variance / 8)
    assert found.of_random(world.questions).variance > found.variance


@every_policy
@pytest.mark.parametrize("rollouts", [2, 3, 4])
def test_a_groups_own_mean_shrinks_the_gradient_by_one_in_n(policy, rollouts):
    if rollouts == 4 and len(policy.world.responses) > 15:
        pytest.skip("more groups than a second allows")
    found = exact.moments(
        rollouts_only(upge.GroupCentered()), policy, policy.random(3), rollouts=rollouts
    )
    near(found.mean, found.truth * (rollouts - 1) / rollouts)


@every_policy
def test_signed_rewards_double_the_gradient(policy):
    found = exact.moments(upge.reinforce(), policy, policy.random(4))
    near(found.mean, 2 * found.truth)


def test_dividing_by_the_std_biases_between_questions_but_not_within_one():
    method = rollouts_only(upge.GroupNormalized())
    one = exact.Tabular(exact.World(questions=1, horizon=2))
    assert exact.moments(method, one, one.random(5), rollouts=4).cosine > 1 - 1e-9
    several = exact.Tabular(exact.World(questions=3, horizon=2, solved=0.5))
    theta = several.random(5, scale=1.5)
    found = {n: exact.moments(method, several, theta, rollouts=n) for n in (3, 4)}
    # Of 3 binary rewards all groups that are not of one kind have the same std: a mere scale.
    assert found[3].relative_bias < 1e-6
    assert found[4].relative_bias > 1e-3
    centred = exact.moments(rollouts_only(upge.GroupCentered()), several, theta, rollouts=4)
    assert centred.relative_bias < 1e-6


@every_policy
@pytest.mark.parametrize("aggregation", [upge.SequenceMean(), upge.TokenMean()], ids=str)
def test_token_and_sequence_means_are_biased(policy, aggregation):
    found = exact.moments(upge.rloo(aggregation), policy, policy.random(6))
    assert found.relative_bias > 1e-3


def test_token_ratios_are_biased_off_policy_even_unclipped():
    policy = exact.Tabular(WORLDS[0])
    theta = policy.random(7)
    old = theta + 0.5 * policy.random(8)
    found = exact.moments(
        rollouts_only(upge.LeaveOneOut(), denominator=upge.OldPolicy()), policy, theta, old=old
    )
    assert found.bias_denominator > 1e-6
    assert found.bias_mask == 0.0 and found.bias_rest < 1e-20


@every_policy
def test_unit_with_ones_is_the_gradient_of_the_expected_token_probability(policy):
    theta = policy.random(9)
    method = upge.dft(SUMS)
    found = exact.moments(method, policy, theta)
    leaf = theta.clone().requires_grad_()
    probability = torch.where(policy.world.trained, exact.token_logprobs(policy, leaf).exp(), 0.0)
    (policy.world.demonstrators * probability.sum(dim=-1)).sum(dim=1).mean().backward()
    near(found.mean, leaf.grad)


@every_policy
@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_the_gradient_of_j_is_the_rl_part_plus_mu_times_the_sft_part(policy, mu):
    theta = policy.random(10)
    rl = exact.moments(upge.rloo(), policy, theta).mean
    sft = exact.moments(upge.sft(SUMS), policy, theta).mean
    near(rl + mu * sft, exact.true_gradient(policy, theta, mu))


@every_policy
def test_one_method_with_both_streams_estimates_j_without_bias(policy):
    both = upge.Method(
        rollouts=upge.rloo().rollouts,
        demonstrations=(upge.Term(upge.sft(SUMS).demonstrations, 0.3),),
    )
    found = exact.moments(both, policy, policy.random(11), mu=0.3)
    near(found.mean, found.truth)


def test_the_trust_region_adds_its_gradient():
    """E[log(pi / pi_ref) grad log pi] of whole responses, off the reward's own gradient."""
    policy = exact.Tabular(WORLDS[0])
    theta, reference = policy.random(12), policy.random(13)
    plain = exact.true_gradient(policy, theta)
    near(exact.true_gradient(policy, theta, trust=0.5, reference=theta), plain)
    now, before = (exact.token_logprobs(policy, t).sum(dim=-1) for t in (theta, reference))
    score = exact.scores(policy, theta).sum(dim=2)
    pull = torch.einsum("qr,qr,qrp->p", now.exp(), now - before, score) / policy.world.questions
    near(exact.true_gradient(policy, theta, trust=0.5, reference=reference), plain - 0.5 * pull)
    against = exact.moments(upge.rloo(), policy, theta, trust=0.5, reference=reference)
    near(torch.as_tensor(against.bias_squared), 0.25 * pull.square().sum())


@pytest.mark.parametrize(
    "method", [upge.rloo(), upge.grpo(), upge.hpt(), upge.luffy()], ids=lambda m: m.label
)
def test_sampling_agrees_with_enumeration(method):
    policy = exact.Neural(WORLDS[0])
    theta = policy.random(14)
    wanted = exact.moments(method, policy, theta)
    got = exact.sampled_moments(method, policy, theta, rollouts=2, samples=1000, seed=1)
    # About 30 parameters at 4.5 standard errors: a false alarm in ten thousand.
    assert ((got.mean - wanted.mean).abs() <= 4.5 * got.mean_error + 1e-12).all()
    for name in ("variance", "bias_squared", "mse", "cosine", "scale_free_error"):
        found, right = jackknife(STATISTICS[name], got), STATISTICS[name](wanted)
        # The interval is of 95%: twice as far is as rare as 4.5 standard errors.
        assert abs(found.value - right) <= 2.2 * (found.high - found.value) + 1e-12, name


def test_coupled_methods_are_sampled_and_not_enumerated():
    policy = exact.Tabular(WORLDS[0])
    theta = policy.random(15)
    for method in (upge.reinforce_pp(), upge.cispo(aggregation=upge.TokenMean(upge.PerStream()))):
        with pytest.raises(ValueError, match="ties the questions"):
            exact.moments(method, policy, theta)
        found = exact.sampled_moments(method, policy, theta, rollouts=4, samples=200)
        assert found.variance[0] > 0
    with pytest.raises(ValueError, match="auxiliary"):
        exact.moments(upge.hpt_released(), policy, theta)


def test_too_many_groups_are_refused_with_their_number():
    policy = exact.Tabular(exact.World(vocabulary=4, horizon=4))
    with pytest.raises(ValueError, match="groups of 4 rollouts"):
        exact.moments(upge.rloo(), policy, policy.random(0), rollouts=4)
