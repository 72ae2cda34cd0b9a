"""Gates: which share of a question goes to its rollouts and which to its demonstrations.

A gate reads P, the share of a question's rollouts that are correct, and returns (alpha, beta), the
weights of the two streams: the alpha = f(P), beta = g(P) of the paper's section 4.
"""

from typing import Annotated, ClassVar

from workbench.identity import Component
from workbench.rules import Count, Positive, Share, Within
from workbench.upge.batch import PerQuestion
from workbench.upge.tensors import torch

_SolveRate = Annotated[
    float, Within(at_least=0, at_most=1, what="a share of solved rollouts", such_as=0.5)
]


class Gate(Component):
    """The weights (alpha, beta) [question] of rollouts and demonstrations."""

    reads_rollouts: ClassVar[bool] = True

    def __call__(self, solve_rate: PerQuestion, step: int) -> tuple[PerQuestion, PerQuestion]:
        raise NotImplementedError


class Open(Gate):
    """No gate: both streams have weight 1 on every question (LUFFY, SRFT)."""

    reads_rollouts = False

    def __call__(self, solve_rate: PerQuestion, step: int) -> tuple[PerQuestion, PerQuestion]:
        return torch.ones_like(solve_rate), torch.ones_like(solve_rate)


class Switch(Gate):
    """Demonstrations where P <= at_most, rollouts elsewhere: the paper's gamma (eq. 10)."""

    at_most: _SolveRate

    def __call__(self, solve_rate: PerQuestion, step: int) -> tuple[PerQuestion, PerQuestion]:
        # n rollouts give multiples of 1/n; half of a tiny step keeps 1/8 <= 0.125 true in float32.
        demonstrate = (solve_rate <= self.at_most + 1e-6).to(solve_rate.dtype)
        return 1 - demonstrate, demonstrate


class SoftSwitch(Gate):
    """beta falls along a sigmoid of P around `centre`; alpha = 1 - beta.

    beta = sigmoid(slope (centre - P)); a large slope is `Switch(centre)`.
    """

    centre: _SolveRate = 0.25
    slope: Positive = 10.0

    def __call__(self, solve_rate: PerQuestion, step: int) -> tuple[PerQuestion, PerQuestion]:
        beta = torch.sigmoid(self.slope * (self.centre - solve_rate))
        return 1 - beta, beta


class Anneal(Gate):
    """beta goes linearly from `start` to `end` over `steps` optimizer steps; alpha = 1 - beta."""

    reads_rollouts = False
    start: Share = 1.0
    end: Share = 0.0
    steps: Count = 100

    def __call__(self, solve_rate: PerQuestion, step: int) -> tuple[PerQuestion, PerQuestion]:
        progress = min(1.0, step / self.steps)
        beta = torch.full_like(solve_rate, self.start + (self.end - self.start) * progress)
        return 1 - beta, beta
