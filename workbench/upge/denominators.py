"""1 / pi_ref: what the likelihood gradient is divided by.

Each returns log pi_ref [sequence, token]; the estimator's ratio is pi / pi_ref, detached.
"""

from math import log
from typing import Annotated

from workbench.identity import Component, replace
from workbench.rules import Within, require
from workbench.upge.batch import PerToken, TokenBatch, TokenMask
from workbench.upge.masks import sequence_log_ratio
from workbench.upge.tensors import torch


class Denominator(Component):
    """A reference policy's log-probabilities of the tokens."""

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        """Log pi_ref [sequence, token], from those of the current and the old policy."""
        raise NotImplementedError

    def correction(self, batch: TokenBatch) -> PerToken:
        """What else multiplies the ratio: 1, unless the denominator is `EngineCorrected`."""
        return torch.ones_like(batch.logprobs)

    def cut(self, batch: TokenBatch) -> TokenMask:
        """The tokens whose correction is not what it would be without its cap."""
        return torch.zeros_like(batch.trained)

    def on_policy(self) -> "Denominator":
        """What the denominator is where current and old policy are equal."""
        return self


class CurrentPolicy(Denominator):
    """pi_ref = pi: the ratio is 1 and the update is weighted log-likelihood (SFT, REINFORCE)."""

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        return logprobs


class OldPolicy(Denominator):
    """pi_ref = pi_old: importance sampling from the policy that made the rollouts (PPO, GRPO)."""

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        return old

    def on_policy(self) -> Denominator:
        return CurrentPolicy()


class Unit(Denominator):
    """pi_ref = 1: the gradient of the probability itself (LUFFY and SRFT off-policy, DFT)."""

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        return logprobs.new_zeros(logprobs.shape)


_Ratio = Annotated[float, Within(above=0, what="a ratio, not a distance from 1,", such_as=2)]


class Capped(Denominator):
    """pi_ref = max(pi_over, pi / cap): the ratio to `over`, but never above `cap`.

    CISPO (MiniMax-M1, 2025, eq. 4): the clipped ratio is a detached weight, so that the gradient
    always flows, unlike under a mask.
    """

    cap: _Ratio
    over: Denominator = OldPolicy()

    def check(self) -> None:
        if isinstance(self.over, EngineCorrected):
            outside = replace(self.over, over=replace(self, over=self.over.over))
            require(False, self, "over", "a denominator without correction", f"write {outside}")

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        bound = logprobs - logprobs.new_tensor(self.cap).log()
        return self.over(logprobs, old, trained).maximum(bound)

    def on_policy(self) -> Denominator:
        inert = self.cap >= 1 and self.over.on_policy() == CurrentPolicy()
        return CurrentPolicy() if inert else self


class SequenceGeometric(Denominator):
    """pi_ref = pi / s, with s the geometric mean of a sequence's token ratios.

    GSPO (Zheng et al. 2025, eq. 7); the paper's pi * (pi_old(tau) / pi(tau))^(1/length).
    """

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        return logprobs - sequence_log_ratio(logprobs - old, trained)

    def on_policy(self) -> Denominator:
        return CurrentPolicy()


class EngineCorrected(Denominator):
    """pi_ref = pi_over / w with w = min(pi_old / pi_engine, cap): for rollouts of another engine.

    Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training"): with the same weights an inference engine draws from probabilities
    that are not quite the trainer's. Over `OldPolicy`, pi_ref is max(pi_engine, pi_old / cap). What
    no engine drew, a demonstration, has w = 1.

    Attributes:
        cap: the largest w; verl's is 2, TRL's 3.
        over: the denominator without a correction.
        by_sequence: one w for all tokens of a sequence, from the product of their ratios.
        drops: what is above the cap is left out, w = 0, instead of cut down to it (the masked
            variant of Liu et al. 2025, "When Speed Kills Stability"; TRL's default, by sequence).
    """

    cap: _Ratio
    over: Denominator = OldPolicy()
    by_sequence: bool = False
    drops: bool = False

    def check(self) -> None:
        if isinstance(self.over, EngineCorrected):
            hint = f"such as {self.over.over}"
            require(False, self, "over", "a denominator without correction", hint)

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        return self.over(logprobs, old, trained)

    def correction(self, batch: TokenBatch) -> PerToken:
        weight = self._log_ratio(batch).clamp(max=log(self.cap)).exp()
        return torch.where(self.cut(batch), 0.0, weight) if self.drops else weight

    def cut(self, batch: TokenBatch) -> TokenMask:
        return self._log_ratio(batch) > log(self.cap)

    def on_policy(self) -> Denominator:
        return replace(self, over=self.over.on_policy())

    def _log_ratio(self, batch: TokenBatch) -> PerToken:
        """Log(pi_old / pi_engine) [sequence, token], of a token or of its whole sequence."""
        if batch.engine_logprobs is None:
            raise ValueError(
                "EngineCorrected reads TokenBatch.engine_logprobs, which is not given: the "
                "log-probabilities that the rollout engine drew the tokens with"
            )
        drawn = batch.trained & ~batch.demonstration[:, None]
        log_ratio = torch.where(drawn, batch.old_logprobs - batch.engine_logprobs, 0.0)
        if self.by_sequence:
            log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
        return log_ratio
