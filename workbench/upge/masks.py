"""1_stable: which tokens an update trusts.

A mask reads the ratio of the current to the *old* policy, whatever denominator the estimator
divides by: otherwise RatioClip with CurrentPolicy would silently be KeepAll.
"""

from typing import Annotated, ClassVar

from workbench.identity import Component
from workbench.rules import Amount, Portion, Positive, Within, require
from workbench.upge.batch import PerSequence, PerToken, TokenBatch, TokenMask
from workbench.upge.tensors import Tensor, torch


class Mask(Component):
    """A weight in [0, 1] on each token; 0 keeps the token out of the gradient.

    Two parts multiply: `select`, settled once for the whole step from old-policy values, and the
    call, which follows the current policy token by token.
    """

    inert_on_policy: ClassVar[bool] = False  # whether it keeps everything where pi equals pi_old

    @property
    def needs_old(self) -> bool:
        """Whether `select` reads what the old policy says of the tokens."""
        return False

    def select(self, batch: TokenBatch, advantage: PerToken, stream: PerSequence) -> PerToken:
        """Keeps every token, unless a mask chooses among the tokens of the step's stream."""
        return torch.ones_like(batch.logprobs)

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        """Keeps every token, unless a mask reads log(pi / pi_old) or the advantage."""
        return torch.ones_like(log_ratio)

    def __and__(self, other: "Mask") -> "Both":
        return Both(self, other)

    def on_policy(self) -> "Mask":
        """What the mask is where current and old policy are equal."""
        return KeepAll() if self.inert_on_policy else self


# How far below 1 the ratio may fall; `high`, how far above it may rise, has no limit.
_Below = Annotated[
    float, Within(at_least=0, at_most=1, what="a distance below ratio 1,", such_as=0.2)
]


class KeepAll(Mask):
    """Keeps every token."""


class Both(Mask):
    """Keeps what both masks keep; weights multiply. Written `first & second`."""

    first: Mask
    second: Mask

    @property
    def needs_old(self) -> bool:
        return self.first.needs_old or self.second.needs_old

    def select(self, batch: TokenBatch, advantage: PerToken, stream: PerSequence) -> PerToken:
        return self.first.select(batch, advantage, stream) * self.second.select(
            batch, advantage, stream
        )

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        return self.first(log_ratio, advantage, trained) * self.second(
            log_ratio, advantage, trained
        )

    def on_policy(self) -> Mask:
        first, second = self.first.on_policy(), self.second.on_policy()
        if first == KeepAll():
            return second
        return first if second == KeepAll() else Both(first, second)


def _bounds(mask: "RatioClip | DualClip | SequenceClip") -> tuple[float, float]:
    return 1 - mask.low, 1 + (mask.low if mask.high is None else mask.high)


def _inside(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Whether min(r A, clip(r) A) has a gradient: it has none where r left the range A's way."""
    outside = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    return ~outside


class RatioClip(Mask):
    """Keeps a token unless its ratio left [1 - low, 1 + high] in the direction of its advantage.

    The gradient of PPO's min(r A, clip(r) A) (Schulman et al. 2017, eq. 7); DAPO's clip-higher is
    `RatioClip(0.2, high=0.28)`. `high` is `low` unless given.
    """

    inert_on_policy = True
    low: _Below
    high: Amount | None = None

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        return _inside(log_ratio.exp(), advantage, *_bounds(self)).to(log_ratio.dtype)


class DualClip(Mask):
    """Keeps what RatioClip keeps, but drops negative-advantage tokens with a ratio above `cap`.

    The gradient of max(min(r A, clip(r) A), cap A) for A < 0 (Ye et al. 2020, eq. 5); verl adds it
    to every PPO loss with cap 3.
    """

    inert_on_policy = True
    low: _Below
    high: Amount | None = None
    cap: Annotated[float, Within(above=1, what="a ratio")] = 3.0

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        ratio = log_ratio.exp()
        kept = _inside(ratio, advantage, *_bounds(self)) & ~((advantage < 0) & (ratio > self.cap))
        return kept.to(log_ratio.dtype)


def sequence_log_ratio(log_ratio: PerToken, trained: TokenMask) -> PerSequence:
    """Log of GSPO's s: the mean log-ratio over a sequence's trained tokens, [sequence, 1]."""
    total = torch.where(trained, log_ratio, 0.0).sum(dim=1, keepdim=True)
    return total / trained.sum(dim=1, keepdim=True).clamp(min=1)


class SequenceClip(Mask):
    """Keeps or drops whole sequences by the geometric mean of their token ratios.

    GSPO (Zheng et al. 2025, eq. 5 and 7), whose ranges are 3e-4 below and 4e-4 above.
    """

    inert_on_policy = True
    low: _Below
    high: Amount | None = None

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        ratio = sequence_log_ratio(log_ratio, trained).exp()
        return _inside(ratio, advantage, *_bounds(self)).to(log_ratio.dtype)


class SoftClip(Mask):
    """Fades tokens out as their ratio leaves 1, by 4 s (1 - s) with s = sigmoid(t (r - 1)).

    SAPO (Gao et al. 2025): the derivative of its (4 / t) sigmoid(t (r - 1)), with a temperature t
    for either sign of the advantage.
    """

    inert_on_policy = True
    positive: Positive = 1.0
    negative: Positive = 1.05

    def __call__(self, log_ratio: PerToken, advantage: PerToken, trained: TokenMask) -> PerToken:
        negative = torch.full_like(log_ratio, self.negative)
        temperature = torch.where(advantage > 0, self.positive, negative)
        share = torch.sigmoid(temperature * (log_ratio.exp() - 1))
        return 4 * share * (1 - share)


class ClipCov(Mask):
    """Drops a random `share` of the tokens whose advantage and log-probability covary strongly.

    Clip-Cov (Cui et al. 2025, eq. 11-12): among tokens whose product of centred advantage and
    centred log pi lies in (low, high), a share of all tokens (at least one) is dropped. Settled
    from old-policy values and drawn by a hash of the token and the step, so that it depends on
    neither the micro-batch nor the order of rows. The original adds PPO's clip: `RatioClip(0.2) &
    ClipCov()`.
    """

    share: Portion = 2e-4
    low: float = 1.0
    high: float = 5.0

    def check(self) -> None:
        rule, hint = f"below high, which is {self.high}", f"such as {self.high - 1}"
        require(self.low < self.high, self, "low", rule, hint)

    @property
    def needs_old(self) -> bool:
        return True

    def select(self, batch: TokenBatch, advantage: PerToken, stream: PerSequence) -> PerToken:
        tokens = batch.trained & stream[:, None]
        count = int(tokens.sum())
        if count == 0:
            return torch.ones_like(batch.logprobs)
        covariance = _centred(batch.old_logprobs, tokens) * _centred(advantage, tokens)
        eligible = tokens & (covariance > self.low) & (covariance < self.high)
        drawn = max(1, int(self.share * count))
        return (~_draw(batch, eligible, drawn)).to(batch.logprobs.dtype)


def _centred(values: PerToken, tokens: TokenMask) -> PerToken:
    return values - values[tokens].mean()


def _draw(batch: TokenBatch, eligible: TokenMask, count: int) -> TokenMask:
    """The `count` eligible tokens of lowest hash (ties together), whatever the order of rows."""
    keys = token_hash(batch)
    if int(eligible.sum()) <= count:
        return eligible
    threshold = keys[eligible].kthvalue(count).values
    return eligible & (keys <= threshold)


def token_hash(batch: TokenBatch) -> Tensor:
    """Integers that look random and follow only from question, position, log pi_old and step."""
    position = batch.trained.cumsum(dim=1)
    bits = batch.old_logprobs.detach().double().contiguous().view(torch.int64)
    key = bits ^ (position * 0x9E3779B9) ^ (batch.group[:, None].long() * 0x85EBCA6B)
    key = key + key.new_tensor(batch.step) * 0x27D4EB2F165667C5
    for shift, factor in ((31, 0x7FB5D329728EA185), (27, 0x1CE4E5B9BF58476D), (33, 1)):
        key = (key ^ (key >> shift)) * factor
    return key


class TopEntropy(Mask):
    """Keeps the `share` of the step's tokens with the highest old-policy entropy, ties included.

    Wang et al. 2025 ("Beyond the 80/20 rule"), who train on the top 20% with DAPO's clip:
    `RatioClip(0.2, high=0.28) & TopEntropy(0.2)`.
    """

    share: Portion = 0.2

    @property
    def needs_old(self) -> bool:
        return True

    def select(self, batch: TokenBatch, advantage: PerToken, stream: PerSequence) -> PerToken:
        if batch.old_entropy is None:
            raise ValueError("TopEntropy reads TokenBatch.old_entropy, which is not given")
        tokens = batch.trained & stream[:, None]
        count = int(tokens.sum())
        if count == 0:
            return torch.ones_like(batch.logprobs)
        kept = max(1, round(self.share * count))
        threshold = batch.old_entropy[tokens].kthvalue(count - kept + 1).values
        return (batch.old_entropy >= threshold).to(batch.logprobs.dtype)
