"""Losses beside the estimator: entropy bonus, KL penalty, value regression.

All are means over the step's tokens, by one global count.
"""

from dataclasses import dataclass
from typing import ClassVar

from workbench.identity import Component
from workbench.rules import Amount, Positive
from workbench.upge.batch import PerToken, TokenBatch, TokenMask
from workbench.upge.tensors import torch


@dataclass(frozen=True, eq=False)
class Current:
    """What the current policy says of some rows, with gradients: [sequence, token] each."""

    logprobs: PerToken
    entropy: PerToken | None = None
    values: PerToken | None = None


class Auxiliary(Component):
    """A loss on each token, [sequence, token], and the tokens it is a mean over."""

    needs_entropy: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False

    @property
    def needs_base(self) -> bool:
        """Whether it reads the log-probabilities of the model that training began with."""
        return False

    def tokens(self, batch: TokenBatch) -> TokenMask:
        """The trained tokens of rollouts, unless said otherwise."""
        return batch.trained & ~batch.demonstration[:, None]

    def __call__(self, rows: TokenBatch, current: Current, returns: PerToken | None) -> PerToken:
        raise NotImplementedError


class EntropyBonus(Auxiliary):
    """Minus `coefficient` times the mean token entropy, in nats.

    `demonstrations`: over demonstration tokens too, as the released HPT does (0.001).
    """

    needs_entropy = True
    coefficient: Amount
    demonstrations: bool = False

    def tokens(self, batch: TokenBatch) -> TokenMask:
        return batch.trained if self.demonstrations else super().tokens(batch)

    def __call__(self, rows: TokenBatch, current: Current, returns: PerToken | None) -> PerToken:
        if current.entropy is None:
            raise ValueError("EntropyBonus needs the current policy's entropy: pass `entropy`")
        return -self.coefficient * current.entropy


class Divergence(Component):
    """An estimate of KL(pi || reference) from log(pi / reference) of sampled tokens.

    Schulman's names ("Approximating KL divergence", 2020).
    """

    def __call__(self, log_ratio: PerToken) -> PerToken:
        raise NotImplementedError


class K1(Divergence):
    """log(pi / ref): unbiased as a value; as a loss on policy its expected gradient is zero."""

    def __call__(self, log_ratio: PerToken) -> PerToken:
        return log_ratio


class K2(Divergence):
    """log(pi / ref)^2 / 2: biased as a value; as a loss its gradient is the KL's, on policy."""

    def __call__(self, log_ratio: PerToken) -> PerToken:
        return log_ratio.square() / 2


class K3(Divergence):
    """ref / pi - 1 + log(pi / ref): unbiased, never negative; biased as a loss's gradient."""

    def __call__(self, log_ratio: PerToken) -> PerToken:
        return (-log_ratio).exp() - 1 + log_ratio


class KLPenalty(Auxiliary):
    """`coefficient` times the mean token KL to the old policy, or to the base model.

    GRPO's coefficient is 0.04, with K3 to the base, inside its sequence means (eq. 3); this is the
    mean over the tokens of the step.
    """

    coefficient: Amount
    estimator: Divergence = K3()
    to_base: bool = False

    @property
    def needs_base(self) -> bool:
        return self.to_base

    def __call__(self, rows: TokenBatch, current: Current, returns: PerToken | None) -> PerToken:
        reference = rows.base_logprobs if self.to_base else rows.old_logprobs
        if reference is None:
            raise ValueError("KLPenalty(to_base=True) reads TokenBatch.base_logprobs: not given")
        # Masked before the estimate: outside the trained tokens its gradient may be infinite.
        log_ratio = torch.where(rows.trained, current.logprobs - reference, 0.0)
        return self.coefficient * self.estimator(log_ratio)


class ValueLoss(Auxiliary):
    """`coefficient` times half the squared distance of the value head from GAE's returns."""

    needs_values = True
    coefficient: Positive = 0.5

    def __call__(self, rows: TokenBatch, current: Current, returns: PerToken | None) -> PerToken:
        if current.values is None or returns is None:
            raise ValueError("ValueLoss needs a value head and a GAE advantage in the method")
        error = torch.where(rows.trained, current.values - returns, 0.0)
        return self.coefficient * 0.5 * error.square()
