"""Sequences as people know them (a problem, a response, a verdict) and as tensors."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.problems import Problem, Verdict


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


def engine_logprobs(sequences: Many[Sequence], width: int) -> Tensor:
    """What the rollout engine gave each token [sequence, token]; 0 where it drew none."""
    found = torch.zeros(len(sequences), width)
    for row, s in enumerate(sequences):
        found[row, : len(s.engine_logprobs)] = torch.tensor(s.engine_logprobs)
    return found
