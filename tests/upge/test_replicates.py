"""Replicates: unbiased moments with intervals that cover what enumeration says."""

import numpy as np
import pytest
import torch

from workbench import upge
from workbench.moments import Moments, jackknife
from workbench.upge import exact, replicates

WORLD = exact.World(questions=6)
POLICY = exact.Neural(WORLD)
THETA = POLICY.random(3)
OLD = THETA + 0.3 * POLICY.random(4)
SUMS = upge.ConstantLength(1)


def sample(theta, old, replicate_count, rollouts, seed):
    """K steps with all questions of the world, rollouts of the old policy, one demonstration."""
    generator = torch.Generator().manual_seed(seed)
    draw = exact.token_logprobs(POLICY, old).sum(dim=-1).exp()
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
    current, before = exact.token_logprobs(POLICY, theta), exact.token_logprobs(POLICY, old)
    batch = upge.TokenBatch(
        logprobs=current[index],
        old_logprobs=torch.where(demonstration[:, None], current[index], before[index]),
        trained=WORLD.trained[index[1]],
        rewards=torch.where(demonstration, 1.0, WORLD.rewards[index]),
        group=index[0],
        demonstration=demonstration,
        old_entropy=torch.zeros_like(current[index]),
    )
    scores = exact.scores(POLICY, theta)[index]
    return replicates.Sample(
        batch, [torch.tensor(rows) for rows in steps], lambda row, weights: weights @ scores[row]
    )


ALL = [torch.ones(WORLD.questions, dtype=torch.bool)]


def found(methods, here, reference=None, mu=0.0):
    truths = [replicates.unbiased(mu)]
    measured = replicates.measure(methods, truths, here, reference, ALL, WORLD.questions)
    return [moments for _, _, _, moments in measured]


METHODS = [upge.rloo(), upge.grpo(), upge.dr_grpo(), upge.reinforce(), upge.gspo(), upge.cispo()]
STATISTICS = {
    "bias": lambda m: m.bias_squared,
    "inner": lambda m: m.inner,
    "error": lambda m: m.scale_free_error,
    "cosine": lambda m: m.cosine,
}


@pytest.mark.parametrize("old", [THETA, OLD], ids=["on", "off"])
def test_intervals_cover_the_enumerated_moments(old, record_property):
    repeats, rollouts = 60, 3
    wanted = [exact.moments(m, POLICY, THETA, rollouts=rollouts, old=old) for m in METHODS]
    covered = {name: np.zeros(len(METHODS)) for name in (*STATISTICS, "variance")}
    for seed in range(repeats):
        here = sample(THETA, old, 12, rollouts, 2 * seed)
        reference = None if old is THETA else sample(THETA, THETA, 12, rollouts, 2 * seed + 1)
        for i, got in enumerate(found(METHODS, here, reference)):
            fixed = Moments(got.inner, got.square, got.truth_square, got.within)
            for name, statistic in STATISTICS.items():
                each = jackknife(statistic, fixed)
                covered[name][i] += each.low - 1e-12 <= statistic(wanted[i]) <= each.high + 1e-12
            each = jackknife(lambda m: m.variance, fixed)
            covered["variance"][i] += each.low <= wanted[i].variance <= each.high
    for name, counts in covered.items():
        print(name, counts / repeats)
