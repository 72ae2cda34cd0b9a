"""1 / pi_ref: what the likelihood gradient is divided by.

Each returns log pi_ref [sequence, token]; the estimator's ratio is pi / pi_ref, detached.
"""

from workbench.identity import Component
from workbench.recipe import require
from workbench.upge.batch import PerToken, TokenMask
from workbench.upge.masks import sequence_log_ratio


class Denominator(Component):
    """A reference policy's log-probabilities of the tokens."""

    def __call__(self, logprobs: PerToken, old: PerToken, trained: TokenMask) -> PerToken:
        """Log pi_ref [sequence, token], from those of the current and the old policy."""
        raise NotImplementedError

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


class Capped(Denominator):
    """pi_ref = max(pi_over, pi / cap): the ratio to `over`, but never above `cap`.

    CISPO (MiniMax-M1, 2025, eq. 4): the clipped ratio is a detached weight, so that the gradient
    always flows, unlike under a mask.
    """

    cap: float
    over: Denominator = OldPolicy()

    def check(self) -> None:
        require(self.cap > 0, self, "cap", "a ratio above 0 (not a distance from 1)")

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
