"""Sequences as people know them (a problem, a response, a verdict) and as tensors."""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workbench.problems import Problem, Verdict

# What a pass costs beside its tokens, in micro-batches of the size that resources say.
PASS = 1 / 16


@dataclass(frozen=True)
class Sequence:
    """One response to one question of a step, sampled or demonstrated.

    Attributes:
        problem: what was asked.
        question: which question of the step, from 0.
        prompt, response: token ids.
        text: the response, decoded.
        verdict: what the verifier said; a demonstration is correct.
        finished: False where the response was cut at the limit.
        demonstration: not sampled from the policy.
        engine_logprobs: the rollout engine's own, empty for a demonstration.
    """

    problem: Problem
    question: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    text: str
    verdict: Verdict
    finished: bool = True
    demonstration: bool = False
    engine_logprobs: tuple[float, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the verifier found the answer right; an ungradable one is not."""
        return self.verdict is Verdict.CORRECT

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Padded:
    """Sequences side by side, padded on the right, where a causal model never looks: no mask.

    Attributes:
        ids: [sequence, prompt + response].
        starts: [sequence], tokens of each prompt.
        first: tokens of the shortest prompt; no response begins before this column.
        trained: [sequence, token], which tokens of the responses are real.
    """

    ids: Tensor
    starts: Tensor
    first: int
    trained: Tensor

    @property
    def width(self) -> int:
        """Tokens of the longest response."""
        return self.trained.shape[1]

    def by_response(self, values: Tensor) -> Tensor:
        """Values [sequence, token] of the responses, from those of the columns after `first`.

        Zero where a response is padded.
        """
        token = torch.arange(self.width, device=values.device)
        column = (self.starts[:, None] - self.first + token).clamp(max=values.shape[1] - 1)
        return torch.where(self.trained, values.gather(1, column), 0.0)


def pad(sequences: Many[Sequence], filler: int, device: torch.device) -> Padded:
    """The sequences as tensors."""
    starts = torch.tensor([len(s.prompt) for s in sequences])
    lengths = torch.tensor([len(s.response) for s in sequences])
    real = torch.arange(int((starts + lengths).max())) < (starts + lengths)[:, None]
    ids = torch.full(real.shape, filler)
    ids[real] = torch.tensor([token for s in sequences for token in s.prompt + s.response])
    trained = torch.arange(int(lengths.max())) < lengths[:, None]
    return Padded(ids.to(device), starts.to(device), int(starts.min()), trained.to(device))


def engine_logprobs(sequences: Many[Sequence], width: int) -> Tensor:
    """What the rollout engine gave each token [sequence, token]; 0 where it drew none."""
    found = torch.zeros(len(sequences), width)
    for row, s in enumerate(sequences):
        found[row, : len(s.engine_logprobs)] = torch.tensor(s.engine_logprobs)
    return found


def micro_batches(sequences: Many[Sequence], rows: Many[int], tokens: int) -> list[list[int]]:
    """The rows in groups of similar length whose padded size stays within `tokens`.

    A single longer sequence is a group of its own. Demonstrations and rollouts are not mixed, so
    that the gradient of each stream can be told apart.
    """
    groups = []
    for demonstration in (True, False):
        stream = [row for row in rows if sequences[row].demonstration is demonstration]
        stream.sort(key=lambda row: (sequences[row].length, row))
        edges = _cheapest([sequences[row].length for row in stream], tokens)
        groups += [stream[first:last] for first, last in pairwise(edges)]
    return groups


def _cheapest(lengths: Many[int], tokens: int) -> list[int]:
    """Where to cut rising lengths, so that padding and passes together cost least.

    The last group of the best grouping begins somewhere, and what is before it is grouped best.
    """
    cost, begins = [0.0], [0]
    for last, longest in enumerate(lengths, start=1):
        fewest = max(0, last - max(1, tokens // longest))
        found = {
            first: cost[first] + (last - first) * longest + PASS * tokens
            for first in range(fewest, last)
        }
        begins.append(min(found, key=found.__getitem__))
        cost.append(found[begins[-1]])
    edges = [len(lengths)]
    while edges[-1]:
        edges.append(begins[edges[-1]])
    return edges[::-1]
