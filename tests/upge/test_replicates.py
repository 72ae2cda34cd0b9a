"""Replicates: unbiased moments with intervals that cover what enumeration says."""

from functools import cached_property

import numpy as np
import pytest
import torch

from workbench import upge
from workbench.moments import Moments, jackknife
from workbench.training.gradient import Blocks
from workbench.upge import exact, replicates


class World(exact.World):
    """One demonstration a question, as data have it: moments are of rollouts alone."""

    @cached_property
    def demonstrators(self):
        likeliest = exact.World(self.questions).demonstrators.argmax(dim=1)
        return torch.nn.functional.one_hot(likeliest, len(self.responses)).double()


WORLD = World(questions=4)
POLICY = exact.Neural(WORLD)
THETA = POLICY.random(3)
OLD = THETA + 0.3 * POLICY.random(4)
LOGPROBS = {id(theta): exact.token_logprobs(POLICY, theta) for theta in (THETA, OLD)}
SCORES = exact.scores(POLICY, THETA)
SUMS = upge.ConstantLength(1)


def sample(old, replicate_count, rollouts, seed):
    """K steps with all questions of the world, rollouts of the old policy, one demonstration."""
    generator = torch.Generator().manual_seed(seed)
    current, before = LOGPROBS[id(THETA)], LOGPROBS[id(old)]
    draw = before.sum(dim=-1).exp()
    questions, responses, steps = [], [], [[] for _ in range(replicate_count)]
    demonstrations = []
    for question in range(WORLD.questions):
        drawn = draw[question].multinomial(replicate_count * rollouts, True, generator=generator)
        for place, response in enumerate(drawn.tolist()):
            steps[place // rollouts].append(len(questions))
            questions.append(question)
            responses.append(response)
            demonstrations.append(False)
        shown = WORLD.demonstrators[question].multinomial(1, generator=generator).item()
        for rows in steps:
            rows.append(len(questions))
        questions.append(question)
        responses.append(shown)
        demonstrations.append(True)
    index = (torch.tensor(questions), torch.tensor(responses))
    demonstration = torch.tensor(demonstrations)
    batch = upge.TokenBatch(
        logprobs=current[index],
        old_logprobs=torch.where(demonstration[:, None], current[index], before[index]),
        trained=WORLD.trained[index[1]],
        rewards=torch.where(demonstration, 1.0, WORLD.rewards[index]),
        group=index[0],
        demonstration=demonstration,
        old_entropy=torch.zeros_like(current[index]),
    )
    scores = SCORES[index]
    return replicates.Sample(
        batch, [torch.tensor(rows) for rows in steps], lambda row, weights: weights @ scores[row]
    )


ALL = [torch.ones(WORLD.questions, dtype=torch.bool)]


def found(methods, here, reference=None, mu=(0.0,)):
    truths = [replicates.unbiased(each) for each in mu]
    measured = replicates.measure(methods, truths, here, reference, ALL, WORLD.questions)
    return [moments for _, _, _, moments in measured]


METHODS = [
    upge.rloo(), upge.grpo(), upge.dr_grpo(), upge.reinforce(), upge.gspo(), upge.cispo(),
    upge.sft(SUMS), upge.luffy(),
]  # fmt: skip
TRUTHS = (0.0, 0.3)  # weights of the demonstrations in J_mu
STATISTICS = {
    "bias_squared": lambda m: m.bias_squared,
    "inner": lambda m: m.inner,
    "square": lambda m: m.square,
    "variance": lambda m: m.variance,
    "mse": lambda m: m.mse,
    "cosine": lambda m: m.cosine,
    "scale_free_error": lambda m: m.scale_free_error,
}
REPEATS, REPLICATES, ROLLOUTS = 100, 8, 3


@pytest.mark.parametrize("old", [THETA, OLD], ids=["on", "off"])
def test_intervals_cover_the_enumerated_moments(old):
    """Prints each coverage (pytest -s), which 100 seeds tell to two points."""
    wanted = [
        exact.moments(method, POLICY, THETA, rollouts=ROLLOUTS, old=old, mu=mu)
        for method in METHODS
        for mu in TRUTHS
    ]
    covered = {name: np.zeros(len(wanted)) for name in STATISTICS}
    given = {name: np.zeros(len(wanted)) for name in STATISTICS}
    for seed in range(REPEATS):
        here = sample(old, REPLICATES, ROLLOUTS, 2 * seed)
        reference = None if old is THETA else sample(THETA, REPLICATES, ROLLOUTS, 2 * seed + 1)
        for place, got in enumerate(found(METHODS, here, reference, TRUTHS)):
            rollouts_alone = Moments(got.inner, got.square, got.truth_square, got.within)
            for name, statistic in STATISTICS.items():
                each = jackknife(statistic, rollouts_alone)
                right = statistic(wanted[place])
                covered[name][place] += each.low - 1e-12 <= right <= each.high + 1e-12
                # Where a squared length comes out negative there is no ratio, and no claim.
                given[name][place] += np.isfinite(each.low)
    for name, counts in covered.items():
        print(f"{name:17}", *(f"{share:.2f}" for share in counts / given[name]))
    for name, counts in covered.items():
        assert given[name].min() >= 0.3 * REPEATS, name
        assert counts.sum() / given[name].sum() >= 0.94, name


@pytest.mark.parametrize("mu", TRUTHS)
def test_the_truth_is_the_enumerated_gradient_of_j_mu(mu):
    """On average the probe's reference says how long it is, and how long a demonstrations' step."""
    imitation = exact.moments(upge.sft(SUMS), POLICY, THETA, mu=mu)
    got = [
        found(
            [upge.sft(SUMS)], sample(OLD, 3, 3, 2 * seed), sample(THETA, 3, 3, 2 * seed + 1), (mu,)
        )
        for seed in range(60)
    ]
    for name in ("inner", "square", "truth_square", "bias_squared"):
        values = np.array([getattr(each, name)[0] for (each,) in got])
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - getattr(imitation, name)) <= 4.5 * error + 1e-12, name


EVERY = [make() for name, make in upge.NAMED.items() if name not in ("ppo", "hpt_released")]


def test_patterns_of_weights_give_every_method_its_gradient():
    here = sample(OLD, 3, 4, 0)
    scores = [
        here.gradients(row, torch.eye(WORLD.horizon).double()) for row in range(len(here.batch))
    ]
    found = torch.stack(list(replicates.contributions(EVERY, here)), dim=2)
    for place, rows in enumerate(here.steps):
        batch = here.batch.rows(rows)
        gradients = torch.stack([scores[row] for row in rows.tolist()])
        for number, method in enumerate(EVERY):
            weights = method.prepare(batch).token_weights()
            wanted = torch.einsum("rt,rtp->p", weights, gradients)
            torch.testing.assert_close(
                found[number, place].mean(dim=0), wanted, rtol=1e-4, atol=1e-5
            )


def test_methods_that_weigh_whole_responses_share_one_score_vector():
    asked = []
    here = sample(THETA, 3, 4, 0)
    counting = replicates.Sample(
        here.batch,
        here.steps,
        lambda row, weights: (asked.append(len(weights)), here.gradients(row, weights))[1],
    )
    whole = [upge.rloo(), upge.grpo(), upge.dr_grpo(), upge.dapo(), upge.gspo(), upge.reinforce()]
    list(replicates.contributions(whole, counting))
    assert set(asked) <= {0, 1}
    asked.clear()
    list(replicates.contributions([*whole, upge.luffy()], counting))
    assert max(asked) == 1  # the demonstration's shaped weights; rollouts are as before


def test_live_blocks_average_to_the_probes_variance():
    here = sample(OLD, 5, 4, 1)
    reference = sample(THETA, 5, 4, 2)
    methods = [upge.grpo(), upge.luffy()]
    each = torch.stack(list(replicates.contributions(methods, here)))  # [question, method, ...]
    for place, probed in enumerate(found(methods, here, reference)):
        sizes = torch.ones(WORLD.questions)
        live = []
        for replicate in range(5):
            part = each[:, place, replicate] / WORLD.questions
            parts = torch.stack([torch.zeros_like(part), part])
            live.append(Blocks(parts.sum(dim=1), parts, sizes).moments()["grad/variance"])
        assert np.mean(live) == pytest.approx(probed.variance[0])


def test_an_unbiased_method_has_no_bias_against_itself_whatever_mu():
    imitation = upge.Term(upge.sft(SUMS).demonstrations, 0.3)
    both = upge.Method(upge.rloo().rollouts, (imitation,))
    (same,) = found([both], sample(THETA, 4, 3, 0), mu=(0.3,))
    assert np.abs(same.bias_squared).max() < 1e-12 and same.variance[0] > 0
    (other,) = found([upge.rloo()], sample(THETA, 4, 3, 0), mu=(0.3,))
    assert other.bias_squared[0] > 1e-3


def test_two_replicates_are_refused():
    with pytest.raises(ValueError, match="2 replicates; at least 3"):
        found([upge.rloo()], sample(THETA, 2, 3, 0))
