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
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True)
class Padded:
    """Sequences side by side: prompts padded on the left, responses on the right.

    Attributes:
        ids, attended, positions: [sequence, prompt + response].
        responses, trained: [sequence, token], the response part and which of it is real.
    """

    ids: Tensor
    attended: Tensor
    positions: Tensor
    responses: Tensor
    trained: Tensor

    @property
    def width(self) -> int:
        """Tokens of the longest response."""
        return self.responses.shape[1]


def pad(sequences: Many[Sequence], filler: int, device: torch.device) -> Padded:
    """The sequences as tensors, with all responses starting in the same column."""
    left = max(len(s.prompt) for s in sequences)
    width = max(len(s.response) for s in sequences)
    ids = torch.full((len(sequences), left + width), filler)
    attended = torch.zeros(len(sequences), left + width, dtype=torch.long)
    for row, s in enumerate(sequences):
        span = slice(left - len(s.prompt), left + len(s.response))
        ids[row, span] = torch.tensor(s.prompt + s.response)
        attended[row, span] = 1
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0)
    ids, attended, positions = ids.to(device), attended.to(device), positions.to(device)
    return Padded(ids, attended, positions, ids[:, left:], attended[:, left:].bool())


def micro_batches(sequences: Many[Sequence], rows: Many[int], tokens: int) -> list[list[int]]:
    """The rows in groups of similar length whose padded size stays within `tokens`.

    A single longer sequence is a group of its own. Demonstrations and rollouts are not mixed, so
    that the gradient of each stream can be told apart.
    """
    order = sorted(rows, key=lambda r: (not sequences[r].demonstration, _length(sequences[r]), r))
    groups: list[list[int]] = []
    for row in order:
        # Sorted, so this row is the longest of its group so far.
        last = groups[-1] if groups else []
        same = bool(last) and sequences[last[0]].demonstration == sequences[row].demonstration
        if same and (len(last) + 1) * _length(sequences[row]) <= tokens:
            last.append(row)
        else:
            groups.append([row])
    return groups


def _length(sequence: Sequence) -> int:
    return len(sequence.prompt) + len(sequence.response)
