"""The transformers engine draws from the model's distribution, whatever is decoded together."""

import pytest
import torch
from scipy import stats

from workbench import upge
from workbench.problems import Problem, Verdict
from workbench.rollout import Request
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine, draw
from workbench.training.sequences import Sequence, pad

QUESTIONS = ["345+812", "1", "345-(812+170)*999", "008*888+123-456"]
GREEDY = Decoding(temperature=1e-6, top_p=1.0, max_tokens=40)


@pytest.fixture
def policy(trainer_of, small):
    return trainer_of(small).policy


def requests(policy, samples):
    prompts = [policy.encode(f"{q}?\n") for q in QUESTIONS]
    return [Request(p, samples, seed=index) for index, p in enumerate(prompts)]


def engine_of(policy, sequences=512):
    return TransformersEngine(policy.model, policy.end, policy.pad, sequences)


def test_greedy_output_equals_transformers_generate(policy):
    found = engine_of(policy).generate(requests(policy, 1), GREEDY)
    for request, (response,) in zip(requests(policy, 1), found, strict=True):
        ids = torch.tensor([request.prompt])
        wanted = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )[0, ids.shape[1] :]
        assert response.tokens == tuple(wanted.tolist())


def test_responses_do_not_depend_on_what_is_decoded_together(policy):
    decoding = Decoding(1.0, 1.0, 48)
    together = engine_of(policy).generate(requests(policy, 6), decoding)
    apart = engine_of(policy, sequences=6).generate(requests(policy, 6), decoding)
    assert [[r.tokens for r in rs] for rs in together] == [[r.tokens for r in rs] for rs in apart]


def test_finished_responses_end_in_the_end_token_and_others_are_cut(policy):
    found = engine_of(policy).generate(requests(policy, 8), Decoding(1.0, 1.0, 12))
    responses = [response for responses in found for response in responses]
    assert {r.finished for r in responses} == {True, False}
    for response in responses:
        assert response.finished == (response.tokens[-1] in policy.end)
        assert not set(response.tokens[:-1]) & policy.end
        assert response.finished or len(response.tokens) == 12
        assert len(response.logprobs) == len(response.tokens)


def test_engine_logprobs_are_the_trainers(policy):
    decoding = Decoding(1.0, 1.0, 48)
    found = engine_of(policy).generate(requests(policy, 4), decoding)
    sequences = [
        Sequence(Problem("p", "q", "a"), 0, request.prompt, r.tokens, "", Verdict.WRONG)
        for request, responses in zip(requests(policy, 4), found, strict=True)
        for r in responses
    ]
    own = policy.score(pad(sequences, policy.pad, policy.device)).logprobs
    flat = [r for responses in found for r in responses]
    for row, response in enumerate(flat):
        theirs = torch.tensor(response.logprobs)
        torch.testing.assert_close(own[row, : len(theirs)], theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),
        (1.0, 0.7, [0.625, 0.375, 0.0, 0.0]),  # the smallest set with a mass of at least 0.7
        (1.0, 0.45, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_draws_follow_the_stated_distribution(temperature, top_p, wanted):
    draws = 20_000
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(draws, 4)
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, noise, Decoding(temperature, top_p, 1))
    counts = torch.bincount(tokens, minlength=4).numpy()
    allowed = [i for i, p in enumerate(wanted) if p > 0]
    assert counts.sum() == counts[allowed].sum()
    expected = [wanted[i] * draws / sum(wanted) for i in allowed]
    if len(allowed) > 1:
        assert stats.chisquare(counts[allowed], expected).pvalue > 1e-3
    full = (logits[0] / temperature).log_softmax(dim=0)
    torch.testing.assert_close(logprobs, full[tokens])


def test_demonstrations_can_be_scored_beside_rollouts(policy):
    ends = min(policy.end)
    sequences = [
        Sequence(
            Problem("p", "q", "a"), 0, policy.encode(q), (*policy.encode(t), ends), t, Verdict.WRONG
        )
        for q, t in (("1+1?\n", r"\boxed{2}"), ("345-812?\n", r"345-812=533;\boxed{533}"))
    ]
    both = policy.score(pad(sequences, policy.pad, policy.device), entropy=True)
    for row, sequence in enumerate(sequences):
        alone = policy.score(pad([sequence], policy.pad, policy.device), entropy=True)
        length = len(sequence.response)
        for name in ("logprobs", "entropy"):
            got, wanted = getattr(both, name)[row, :length], getattr(alone, name)[0]
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert isinstance(both, upge.Current)
