"""grad pi: the likelihood that is ascended, as the factor f'(pi) on its gradient."""

from typing import Annotated

from workbench.identity import Component
from workbench.rules import Within
from workbench.upge.batch import PerToken
from workbench.upge.tensors import torch


class Likelihood(Component):
    """A function f of the probability; the call returns f'(pi) [sequence, token]."""

    def __call__(self, logprobs: PerToken) -> PerToken:
        raise NotImplementedError


class Plain(Likelihood):
    """f(pi) = pi: the likelihood itself."""

    def __call__(self, logprobs: PerToken) -> PerToken:
        return torch.ones_like(logprobs)


class Shaped(Likelihood):
    """f(pi) = pi / (pi + gamma): steeper for improbable tokens.

    LUFFY's policy shaping (Yan et al. 2025, section 3.3) with gamma 0.1; f'(pi) = gamma / (pi +
    gamma)^2. It alters neither pi_ref nor the ratio that a mask reads.
    """

    gamma: Annotated[float, Within(above=0, such_as=0.1)]

    def __call__(self, logprobs: PerToken) -> PerToken:
        return self.gamma / (logprobs.exp() + self.gamma).square()
