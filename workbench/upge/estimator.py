"""One estimator of the policy gradient: the paper's equation, for one stream of tokens."""

from dataclasses import dataclass

from workbench.recipe import Objective
from workbench.upge.advantages import Advantage, GroupNormalized
from workbench.upge.aggregations import Aggregation, SequenceMean
from workbench.upge.batch import PerSequence, PerToken, TokenBatch
from workbench.upge.denominators import CurrentPolicy, Denominator
from workbench.upge.likelihoods import Likelihood, Plain
from workbench.upge.masks import KeepAll, Mask
from workbench.upge.tensors import torch


@dataclass(frozen=True, eq=False)
class Weights:
    """What an estimator makes of some rows, all [sequence, token].

    Attributes:
        stable: the mask, 0 to 1.
        ratio: pi / pi_ref.
        weight: stable * ratio * A * f'(pi), the weight on grad log pi.
    """

    stable: PerToken
    ratio: PerToken
    weight: PerToken


class Estimator(Objective):
    """grad = 1_stable * (1 / pi_ref) * A * grad f(pi), aggregated over one stream of tokens.

    The unified policy gradient estimator (arXiv 2509.04419, section 3): on grad log pi of a token
    the weight is stable * (pi / pi_ref) * A * f'(pi).
    """

    mask: Mask = KeepAll()
    denominator: Denominator = CurrentPolicy()
    advantage: Advantage = GroupNormalized()
    likelihood: Likelihood = Plain()
    aggregation: Aggregation = SequenceMean()

    def weights(
        self, batch: TokenBatch, logprobs: PerToken, advantage: PerToken, selected: PerToken
    ) -> Weights:
        """The weight on grad log pi of each token, where the policy gives `logprobs`; no gradient.

        `advantage` and `selected` are settled for the whole step; all are [sequence, token].
        """
        logprobs, old, trained = logprobs.detach(), batch.old_logprobs, batch.trained
        stable = selected * self.mask(logprobs - old, advantage, trained)
        ratio = (logprobs - self.denominator(logprobs, old, trained)).exp()
        ratio = ratio * self.denominator.correction(batch)
        weight = stable * ratio * advantage * self.likelihood(logprobs)
        # Outside the trained tokens log-probabilities mean nothing and may be infinite.
        return Weights(*(torch.where(trained, each, 0.0) for each in (stable, ratio, weight)))

    def settle(self, batch: TokenBatch, stream: PerSequence) -> tuple[PerToken, PerToken]:
        """Advantages and selected tokens [sequence, token] of the whole step."""
        advantage = self.advantage(batch)
        return advantage, self.mask.select(batch, advantage, stream)

    def as_method(self) -> Objective:
        from workbench.upge.method import Method

        return Method(rollouts=self)

    def on_policy(self) -> "Estimator":
        """The same estimator where pi equals pi_old: ratio masks and pi_old have no effect."""
        return Estimator(
            self.mask.on_policy(),
            self.denominator.on_policy(),
            self.advantage,
            self.likelihood,
            self.aggregation,
        )

    @property
    def label(self) -> str:
        parts = (self.mask, self.denominator, self.advantage, self.likelihood, self.aggregation)
        shown = [str(part).removesuffix("()") for part in parts]
        return " · ".join(shown[:3] + [s for s in shown[3:] if s not in ("Plain", "SequenceMean")])

    @property
    def samples_rollouts(self) -> bool:
        return True

    @property
    def needs_demonstrations(self) -> bool:
        return False

    @property
    def needs_values(self) -> bool:
        return self.advantage.needs_values

    @property
    def needs_old(self) -> bool:
        """Whether `settle` reads what the old policy says of the tokens."""
        return self.mask.needs_old or self.needs_values
