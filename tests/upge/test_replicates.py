"""Replicates: unbiased moments with intervals that cover what enumeration says."""

import numpy as np
import pytest
import torch

from workbench import upge
from workbench.moments import STATISTICS, jackknife, left_out, of_each, of_pairs
from workbench.training.gradient import Blocks
from workbench.upge import exact, replicates

WORLD = exact.World(questions=4)
POLICY = exact.Neural(WORLD)
THETA = POLICY.random(3)
OLD = THETA + 0.3 * POLICY.random(4)
SIDES = {id(theta): exact.token_logprobs(POLICY, theta) for theta in (THETA, OLD)}
ENTROPIES = {id(theta): exact.token_entropies(POLICY, theta) for theta in (THETA, OLD)}
SCORES = exact.scores(POLICY, THETA)
SUMS = upge.ConstantLength(1)
DRAWN = 32  # questions of a sample, each one of the world's at random
STEP = 4  # questions of a step


def samples(*olds, replicate_count=2, rollouts=3, seed=0, drawn=DRAWN):
    """For each old policy a sample of the same random questions, each with one demonstration."""
    generator = torch.Generator().manual_seed(seed)
    questions = torch.randint(WORLD.questions, (drawn,), generator=generator)
    shown = WORLD.demonstrators[questions].multinomial(1, generator=generator)[:, 0]
    found = [_sample(old, questions, shown, replicate_count, rollouts, generator) for old in olds]
    return found[0] if len(found) == 1 else found


def _sample(old, questions, shown, replicate_count, rollouts, generator):
    each = replicate_count * rollouts
    draw = SIDES[id(old)].sum(dim=-1).exp()[questions]
    answers = draw.multinomial(each, True, generator=generator)
    responses = torch.cat([answers, shown[:, None]], dim=1)
    group = torch.arange(len(questions)).repeat_interleave(each + 1)
    index = (questions.repeat_interleave(each + 1), responses.flatten())
    demonstration = (torch.arange(each + 1) == each).repeat(len(questions))
    batch = upge.TokenBatch(
        logprobs=SIDES[id(THETA)][index],
        old_logprobs=SIDES[id(old)][index],
        trained=WORLD.trained[index[1]],
        rewards=torch.where(demonstration, 1.0, WORLD.rewards[index]),
        group=group,
        demonstration=demonstration,
        old_entropy=ENTROPIES[id(old)][index],
    )
    rows = torch.arange(len(batch)).view(len(questions), each + 1)
    parts = rows[:, :each].view(len(questions), replicate_count, rollouts)
    steps = [
        torch.cat([parts[:, k], rows[:, each:]], dim=1).flatten() for k in range(replicate_count)
    ]
    scores = SCORES[index]
    return replicates.Sample(batch, steps, lambda row, weights: weights @ scores[row])


def found(methods, here, reference=None, mu=(0.0,), questions=STEP):
    """Of all questions of a sample."""
    return [moments for _, moments in found_in(1, methods, here, reference, mu, questions)]


def found_in(parts, methods, here, reference=None, mu=(0.0,), questions=STEP):
    """Of each of so many parts of a sample, which are samples by themselves: index and moments."""
    truths = [replicates.unbiased(each) for each in mu]
    size = here.batch.questions // parts
    strata = (torch.arange(here.batch.questions) // size) == torch.arange(parts)[:, None]
    measured = replicates.measure(methods, truths, here, reference, strata, questions)
    for method, truth, _, moments in measured:
        yield method * len(mu) + truth, moments


METHODS = [
    upge.rloo(), upge.grpo(), upge.dr_grpo(), upge.reinforce(), upge.gspo(), upge.cispo(),
    upge.sft(SUMS), upge.luffy(), upge.srft(),
]  # fmt: skip
TRUTHS = (0.0, 0.3)  # weights of the demonstrations in J_mu
REPEATS = 100  # samples, which tell a share of 95% to two points


@pytest.mark.parametrize("old", [THETA, OLD], ids=["on", "off"])
def test_intervals_cover_the_enumerated_moments(old):
    """Prints the coverage of every statistic, pooled and of the worst pair (pytest -s)."""
    wanted = [
        exact.moments(method, POLICY, THETA, rollouts=3, old=old, mu=mu).of_random(DRAWN)
        for method in METHODS
        for mu in TRUTHS
    ]
    right = {n: np.array([float(s(w)) for w in wanted]) for n, s in STATISTICS.items()}
    covered, given = ({name: np.zeros(len(wanted)) for name in STATISTICS} for _ in range(2))
    drawn = REPEATS * DRAWN
    if old is THETA:
        here, reference = samples(THETA, drawn=drawn), None
    else:
        here, reference = samples(OLD, THETA, drawn=drawn)
    for place, got in found_in(REPEATS, METHODS, here, reference, TRUTHS, DRAWN):
        for name, statistic in STATISTICS.items():
            each, true = jackknife(statistic, got), right[name][place]
            covered[name][place] += each.low - 1e-6 <= true <= each.high + 1e-6
            # Where a squared length comes out negative there is no ratio, and no claim.
            given[name][place] += np.isfinite(each.low)
    for name in STATISTICS:
        shares = covered[name] / given[name]
        print(f"{name:18} {covered[name].sum() / given[name].sum():.3f}, worst {shares.min():.2f}")
    for name in STATISTICS:
        assert given[name].min() >= 0.3 * REPEATS, name
        assert covered[name].sum() / given[name].sum() >= 0.95, name


@pytest.mark.parametrize("mu", TRUTHS)
def test_the_moments_are_without_bias(mu):
    """On average over samples they are the enumerated ones, of rollouts and imitation together."""
    methods = [upge.sft(SUMS), upge.grpo()]
    wanted = [
        exact.moments(each, POLICY, THETA, rollouts=3, old=OLD, mu=mu).of_random(STEP)
        for each in methods
    ]
    every = [
        found(methods, *samples(OLD, THETA, seed=seed, drawn=6), (mu,), 6) for seed in range(150)
    ]
    for place, right in enumerate(wanted):
        for name in ("inner", "square", "truth_square", "bias_squared", "variance"):
            scale = 6 / STEP if name == "variance" else 1
            values = scale * np.array([getattr(each[place], name)[0] for each in every])
            error = values.std(ddof=1) / len(values) ** 0.5
            assert abs(values.mean() - getattr(right, name)) <= 4.5 * error + 1e-12, name


def test_within_a_question_is_the_variance_of_its_rollouts_alone():
    right = exact.moments(upge.grpo(), POLICY, THETA, rollouts=3)
    got = [found([upge.grpo()], samples(THETA, seed=seed))[0].within[0] for seed in range(60)]
    error = np.std(got, ddof=1) / 60**0.5
    assert abs(np.mean(got) - right.variance * WORLD.questions / STEP) <= 4.5 * error


EVERY = [make() for name, make in upge.NAMED.items() if name not in ("ppo", "hpt_released")]


def test_patterns_of_weights_give_every_method_its_gradient():
    """Also those that tie the questions of a step together, on steps of three questions each."""
    here = samples(OLD, rollouts=4, drawn=6)
    scores = [
        here.gradients(row, torch.eye(WORLD.horizon).double()) for row in range(len(here.batch))
    ]
    found = torch.stack(list(replicates.contributions(EVERY, here, questions=3)))
    for place, rows in enumerate(here.steps):
        for first in (0, 3):
            mine = rows[
                (here.batch.question[rows] >= first) & (here.batch.question[rows] < first + 3)
            ]
            batch = here.batch.rows(mine)
            gradients = torch.stack([scores[row] for row in mine.tolist()])
            for number, method in enumerate(EVERY):
                weights = method.prepare(batch).token_weights()
                wanted = torch.einsum("rt,rtp->p", weights, gradients)
                torch.testing.assert_close(
                    found[first : first + 3, number, place].mean(dim=0),
                    wanted,
                    rtol=1e-4,
                    atol=1e-5,
                )


def test_methods_that_weigh_whole_responses_share_one_score_vector():
    asked = []
    here = samples(THETA, rollouts=4, drawn=5)
    counting = replicates.Sample(
        here.batch,
        here.steps,
        lambda row, weights: (asked.append(len(weights)), here.gradients(row, weights))[1],
    )
    whole = [upge.rloo(), upge.grpo(), upge.dr_grpo(), upge.dapo(), upge.gspo(), upge.reinforce()]
    list(replicates.contributions(whole, counting, STEP))
    assert set(asked) <= {0, 1}
    asked.clear()
    list(replicates.contributions([*whole, upge.luffy()], counting, STEP))
    assert max(asked) == 1  # the demonstration's shaped weights; rollouts are as before


def test_live_blocks_measure_what_the_probe_does():
    """Of the same rollouts they are the same numbers: a block of one question each is a draw."""
    here = samples(OLD, drawn=6)
    methods = [upge.grpo(), upge.luffy(), upge.sft(SUMS)]
    each = torch.stack(list(replicates.contributions(methods, here, 6)))
    kept = left_out(6)
    for place in range(len(methods)):
        one = each[:, place, 0]  # of the first replicate
        parts = torch.stack([torch.zeros_like(one), one / 6])
        live = Blocks(parts.sum(dim=1), parts, torch.ones(6)).moments()
        square = of_pairs(one.numpy(), one.numpy(), kept)
        variance = (of_each(one.square().sum(dim=1).numpy(), kept) - square) / 6
        assert live["grad/square"] == pytest.approx(square[0])
        assert live["grad/variance"] == pytest.approx(variance[0])


def test_an_unbiased_method_has_no_bias_against_itself_whatever_mu():
    imitation = upge.Term(upge.sft(SUMS).demonstrations, 0.3)
    both = upge.Method(upge.rloo().rollouts, (imitation,))
    (same,) = found([both], samples(THETA), mu=(0.3,))
    assert np.abs(same.bias_squared).max() < 1e-12 and same.variance[0] > 0
    (other,) = found([upge.rloo()], samples(THETA), mu=(0.3,))
    assert other.bias_squared[0] > 1e-3


def test_a_squared_length_of_noise_is_zero_however_few_the_draws():
    """Imitation of five questions is no truth by itself: their own average would be."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 5, 30, generator=generator, dtype=torch.float64).numpy()
    squares = [of_pairs(each, each, left_out(5))[0] for each in noise]
    assert abs(np.mean(squares)) <= 4 * np.std(squares) / 20


def test_one_replicate_is_refused():
    with pytest.raises(ValueError, match="1 replicates; at least 2"):
        found([upge.rloo()], samples(THETA, replicate_count=1))
