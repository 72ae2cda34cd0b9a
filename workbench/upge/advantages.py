"""A: how much better a response, or a token, was than expected.

Each returns [sequence, token] for every row of the step, computed from all of it. Statistics are
over a question's rollouts, or over its rollouts and demonstrations together where
`with_demonstrations` says so; a demonstration's own advantage is taken against the same statistics.
"""

from typing import Annotated, ClassVar

from workbench.identity import Component
from workbench.rules import Amount, Positive, Within
from workbench.upge.batch import PerSequence, PerToken, TokenBatch
from workbench.upge.tensors import Tensor, torch


class Advantage(Component):
    """A number for every token of the step."""

    needs_values: ClassVar[bool] = False

    def __call__(self, batch: TokenBatch) -> PerToken:
        raise NotImplementedError


def _spread(values: PerSequence, batch: TokenBatch) -> PerToken:
    """One value for all tokens of a row."""
    return values[:, None].expand_as(batch.logprobs).to(batch.logprobs.dtype)


class Ones(Advantage):
    """A = 1: every token is to be imitated (SFT)."""

    def __call__(self, batch: TokenBatch) -> PerToken:
        return torch.ones_like(batch.logprobs)


class Reward(Advantage):
    """A = R, without a baseline (REINFORCE)."""

    def __call__(self, batch: TokenBatch) -> PerToken:
        return _spread(batch.rewards, batch)


class Signed(Advantage):
    """A = 1 where the response is correct, -1 where it is not (the paper's REINFORCE row)."""

    def __call__(self, batch: TokenBatch) -> PerToken:
        return _spread(torch.where(batch.correct, 1.0, -1.0), batch)


def _statistics_rows(batch: TokenBatch, with_demonstrations: bool) -> PerSequence:
    return torch.ones_like(batch.demonstration) if with_demonstrations else ~batch.demonstration


def _count(batch: TokenBatch, rows: PerSequence) -> PerSequence:
    """For each row, how many rows its question's statistics are over."""
    return batch.per_question(torch.ones_like(batch.rewards), rows)[batch.question]


def _centred(batch: TokenBatch, rows: PerSequence) -> PerSequence:
    """R minus the mean over its question's rows."""
    mean = batch.per_question(batch.rewards, rows)[batch.question] / _count(batch, rows).clamp(
        min=1
    )
    return batch.rewards - mean


def _without_lone(
    values: PerSequence, batch: TokenBatch, count: PerSequence, least: int, keep: bool
) -> PerSequence:
    """A group too small for its statistics gives 0, or its plain reward where `keep` says so."""
    lone = batch.rewards if keep else torch.zeros_like(batch.rewards)
    return torch.where(count >= least, values, lone)


class GroupCentered(Advantage):
    """A = R - mean over the question's group (Dr. GRPO, Liu et al. 2025, section 3.2).

    With n rollouts on policy its expectation is (n - 1) / n of the true gradient, for the mean
    contains R itself. `lone_reward`: a group of one gets R (verl) and not 0.
    """

    with_demonstrations: bool = False
    lone_reward: bool = False

    def __call__(self, batch: TokenBatch) -> PerToken:
        rows = _statistics_rows(batch, self.with_demonstrations)
        values = _centred(batch, rows)
        return _spread(
            _without_lone(values, batch, _count(batch, rows), 2, self.lone_reward), batch
        )


class GroupNormalized(Advantage):
    """A = (R - mean) / (std + epsilon) over the question's group (GRPO, Shao et al. 2024).

    Codebases differ in `ddof` (1 in verl and TRL, 0 in open-instruct: a factor 0.935 at n = 8) and
    in `epsilon` (1e-6, 1e-4, 1e-8).
    """

    with_demonstrations: bool = False
    epsilon: Amount = 1e-6
    ddof: Annotated[int, Within(at_least=0, at_most=1)] = 1
    lone_reward: bool = False

    def __call__(self, batch: TokenBatch) -> PerToken:
        rows = _statistics_rows(batch, self.with_demonstrations)
        count, centred = _count(batch, rows), _centred(batch, rows)
        squares = batch.per_question(centred.square(), rows)[batch.question]
        std = (squares / (count - self.ddof).clamp(min=1)).sqrt()
        # All rewards equal: centred is 0 up to rounding, and 0 / 0 must not make it anything else.
        values = torch.where(std > 1e-9, centred / (std + self.epsilon), torch.zeros_like(std))
        return _spread(_without_lone(values, batch, count, 2, self.lone_reward), batch)


class LeaveOneOut(Advantage):
    """A = R - mean over the *other* rollouts of the question (RLOO, Ahmadian et al. 2024, eq. 6).

    Unbiased on policy. A row outside the statistics is taken against the mean of them all.
    """

    with_demonstrations: bool = False
    lone_reward: bool = False

    def __call__(self, batch: TokenBatch) -> PerToken:
        rows = _statistics_rows(batch, self.with_demonstrations)
        count, centred = _count(batch, rows), _centred(batch, rows)
        others = centred * count / (count - 1).clamp(min=1)
        values = _without_lone(others, batch, count, 2, self.lone_reward)
        return _spread(torch.where(rows, values, centred), batch)


def whitened(values: PerToken, tokens: Tensor, epsilon: float = 1e-8) -> PerToken:
    """Mean 0 and variance 1 over the chosen tokens, all others moved and scaled alike."""
    chosen = values[tokens]
    if chosen.numel() < 2:
        return values
    return (values - chosen.mean()) * (chosen.var() + epsilon).rsqrt()


class BatchNormalized(Advantage):
    """A = R, whitened over the tokens of the step's rollouts (REINFORCE++, Hu et al. 2025).

    `centred_by_group` first subtracts the question's mean: REINFORCE++-baseline.
    """

    centred_by_group: bool = False
    with_demonstrations: bool = False
    epsilon: Positive = 1e-8

    def __call__(self, batch: TokenBatch) -> PerToken:
        rows = _statistics_rows(batch, self.with_demonstrations)
        values = _centred(batch, rows) if self.centred_by_group else batch.rewards
        return whitened(_spread(values, batch), batch.trained & rows[:, None], self.epsilon)


_Factor = Annotated[float, Within(at_least=0, at_most=1)]


class GAE(Advantage):
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), rewards at the end.

    Needs a value head, which a `ValueLoss` beside it trains. Without one the head stays where it
    begins, at 0, and the estimate is the discounted reward. Codebases whiten it over the step's
    rollout tokens; `whiten=False` does not.
    """

    needs_values = True
    discount: _Factor = 1.0
    trace: _Factor = 1.0
    whiten: bool = True

    def __call__(self, batch: TokenBatch) -> PerToken:
        advantage = self.plain(batch)
        rollouts = batch.trained & ~batch.demonstration[:, None]
        return whitened(advantage, rollouts) if self.whiten else advantage

    def plain(self, batch: TokenBatch) -> PerToken:
        """The estimate before whitening; plus the values, what a value head should predict."""
        if batch.values is None:
            raise ValueError(
                "GAE reads TokenBatch.values, which is not given: it needs a value head"
            )
        # The last trained token carries the reward; tokens that are not trained are stepped over.
        position = batch.trained.cumsum(dim=1)
        last = batch.trained & (position == position[:, -1:])
        rewards = torch.where(last, batch.rewards[:, None], 0.0).to(batch.values.dtype)
        advantage = torch.zeros_like(batch.values)
        following = carried = batch.values.new_zeros(len(batch))
        for token in reversed(range(batch.values.shape[1])):
            value, here = batch.values[:, token], batch.trained[:, token]
            surprise = rewards[:, token] + self.discount * following - value
            estimate = surprise + self.discount * self.trace * carried
            carried = torch.where(here, estimate, carried)
            following = torch.where(here, value, following)
            advantage[:, token] = torch.where(here, estimate, 0.0)
        return advantage
