"""Moments of many estimators from independent replicates on common rollouts.

K steps over the same questions, each with rollouts of its own; every estimator is computed on all
of them, and everything that is said of it follows from products of its K gradients. No product is
taken within a replicate, so that squared lengths are unbiased (U-statistics).

A sequence is differentiated once for every pattern of token weights that is not a multiple of
another. An estimator that weighs all tokens of a response alike, as most do on policy, needs the
sequence's score vector and nothing else, so that one backward pass serves all of those at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.moments import Array, Moments
from workbench.upge.aggregations import ConstantLength
from workbench.upge.batch import PerQuestion, TokenBatch
from workbench.upge.estimator import Estimator
from workbench.upge.method import Method, Term
from workbench.upge.methods import rloo, sft

LEAST_REPLICATES = 3  # one is left out by the jackknife, and a variance needs two


class Gradients(Protocol):
    """Gradients of sequences, whole or through a linear map of fewer dimensions."""

    def __call__(self, row: int, weights: Tensor) -> Tensor:
        """sum over t of weights[d, t] grad log pi_t of a sequence.

        Args:
            row: which sequence.
            weights: [pattern, token].

        Returns:
            [pattern, dimension].
        """
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """K independent steps over the same questions.

    Attributes:
        batch: every sequence once.
        steps: the rows of each step, all with the same questions; a demonstration is in each.
        gradients: of the batch's sequences at the current policy.
    """

    batch: TokenBatch
    steps: Sequence[Tensor]
    gradients: Gradients


@dataclass(frozen=True, eq=False)
class _Sums:
    """What is kept of some questions' gradients, for every estimator and replicate.

    Attributes:
        total: [estimator, replicate, dimension], summed over the questions.
        squares: [estimator, replicate], squared lengths summed over the questions.
        within: [estimator, 1 + replicate], each question's variance between its replicates, summed:
            of all replicates, then without each of them.
        questions: how many.
    """

    total: Tensor
    squares: Tensor
    within: Tensor
    questions: int


@dataclass(frozen=True)
class Found(Moments):
    """Moments of one estimator on some questions: from all replicates, then without each of them.

    Attributes:
        within: the part of the variance that is of rollouts: of a step that always has the same
            questions. The rest is of which questions a step has.
    """

    within: Array


def unbiased(mu: float) -> Method:
    """A method whose mean is the gradient of J_mu (2509.04419, eq. 3), on policy.

    Leave-one-out RL with token sums, plus mu times the demonstrations' log-likelihood.
    """
    if mu == 0:
        return rloo()
    imitation = sft(ConstantLength(1)).demonstrations
    assert isinstance(imitation, Estimator)
    return Method(rloo().rollouts, (Term(imitation, mu),))


def measure(
    methods: Sequence[Method],
    truths: Sequence[Method],
    sample: Sample,
    reference: Sample | None,
    strata: Sequence[PerQuestion],
    questions: int,
) -> Iterator[tuple[int, int, int, Found]]:
    """Moments of every method against every truth on every stratum of the questions.

    Args:
        methods: to be measured, none with auxiliary losses.
        truths: methods without bias on the reference, such as `unbiased(mu)`.
        sample: what the methods are computed on.
        reference: steps of the current policy; None where `sample` is one. On common rollouts the
            difference from the truth is paired, which removes most of its noise.
        strata: bool [question] each.
        questions: of the steps whose variance is told.

    Yields:
        Indices of method, truth and stratum with the moments. A stratum of fewer than two
        questions, which has no variance, is left out.

    Raises:
        ValueError: fewer than three replicates.
    """
    if len(sample.steps) < LEAST_REPLICATES:
        raise ValueError(f"{len(sample.steps)} replicates; at least {LEAST_REPLICATES} are needed")
    together = [*methods, *truths] if reference is None else methods
    found = _summed(contributions(together, sample), strata)
    known = (
        [_part(sums, len(methods)) for sums in found]
        if reference is None
        else _summed(contributions(truths, reference), strata)
    )
    for place, (sums, right) in enumerate(zip(found, known, strict=True)):
        if sums is None or right is None or sums.questions < 2:
            continue
        for method in range(len(methods)):
            for truth in range(len(truths)):
                yield method, truth, place, _moments(sums, method, right, truth, questions)


def contributions(methods: Sequence[Method], sample: Sample) -> Iterator[Tensor]:
    """Each question's gradient as if a step had no other: [method, replicate, dimension].

    In the order of questions; a step's gradient is the mean over its questions.
    """
    weights = [_weights(methods, sample, rows) for rows in sample.steps]
    for question in range(sample.batch.questions):
        members = (sample.batch.question == question).nonzero()[:, 0].tolist()
        found: Tensor | None = None
        for row in members:
            here = [(k, where) for k, w in enumerate(weights) if (where := w.get(row)) is not None]
            if not here:
                continue
            stacked = torch.stack([w for _, w in here], dim=1)  # [method, those replicates, token]
            each = _by_pattern(stacked.flatten(0, 1), row, sample.gradients)
            each = each.view(*stacked.shape[:2], -1)
            if found is None:
                found = each.new_zeros(len(methods), len(weights), each.shape[-1])
            found[:, [k for k, _ in here]] += each
        assert found is not None
        yield found


def _weights(methods: Sequence[Method], sample: Sample, rows: Tensor) -> dict[int, Tensor]:
    """The token weights [method, token] of each row of a step, of its own question alone."""
    batch = sample.batch.rows(rows)
    each = torch.stack([m.prepare(batch).token_weights() for m in methods], dim=1)
    each = each * batch.questions
    return dict(zip(rows.tolist(), each, strict=True))


def _by_pattern(weights: Tensor, row: int, gradients: Gradients) -> Tensor:
    """The gradient of every row of weights, by as few backward passes as there are patterns."""
    largest = weights.abs().max(dim=1)
    scale = weights.gather(1, largest.indices[:, None])[:, 0]
    some = scale != 0
    shapes = weights[some] / scale[some, None]
    # Multiples differ by rounding; five digits tell patterns apart far better than any estimate.
    _, which = torch.unique((shapes * 1e5).round(), dim=0, return_inverse=True)
    patterns = int(which.max()) + 1 if len(which) else 0
    first = torch.tensor([int((which == p).nonzero()[0]) for p in range(patterns)]).long()
    basis = gradients(row, shapes[first])
    found = basis.new_zeros(len(weights), basis.shape[-1])
    found[some] = basis[which] * scale[some, None].to(basis.dtype)
    return found


def _summed(gradients: Iterator[Tensor], strata: Sequence[PerQuestion]) -> list[_Sums | None]:
    sums: list[_Sums | None] = [None] * len(strata)
    for question, each in enumerate(gradients):
        one = _Sums(each, each.square().sum(dim=-1), _within(each), 1)
        for place, stratum in enumerate(strata):
            if stratum[question]:
                sums[place] = _plus(sums[place], one)
    return sums


def _plus(a: _Sums | None, b: _Sums) -> _Sums:
    if a is None:
        return b
    parts = (a.total + b.total, a.squares + b.squares, a.within + b.within)
    return _Sums(*parts, a.questions + b.questions)


def _part(sums: _Sums | None, first: int) -> _Sums | None:
    """The sums of the estimators from `first` on."""
    if sums is None:
        return None
    return _Sums(sums.total[first:], sums.squares[first:], sums.within[first:], sums.questions)


def _within(each: Tensor) -> Tensor:
    """The trace of the covariance between replicates: of all, then without each of them."""
    count = each.shape[1]
    off = (each - each.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    everything = off.sum(dim=1, keepdim=True)
    without = (everything - off * count / (count - 1)) / (count - 2)
    return torch.cat([everything / (count - 1), without], dim=1)


def _moments(sums: _Sums, method: int, right: _Sums, truth: int, questions: int) -> Found:
    mean, true = sums.total[method] / sums.questions, right.total[truth] / right.questions
    squared_mean = mean.square().sum(dim=-1) * sums.questions
    # Between the questions of each replicate: of rollouts and of questions together.
    both = (sums.squares[method] - squared_mean) / (sums.questions - 1)
    within = sums.within[method] / sums.questions
    return Found(
        inner=_without_each(mean @ true.T),
        square=_without_each(mean @ mean.T),
        truth_square=_without_each(true @ true.T),
        variance=_mean_without_each(both) / questions,
        within=_numbers(within) / questions,
    )


def _without_each(products: Tensor) -> Array:
    """The mean over pairs of two replicates of [replicate, replicate] products.

    Of all, then without each replicate.
    """
    gram = _numbers(products)
    np.fill_diagonal(gram, 0.0)
    count, total = len(gram), gram.sum()
    rest = total - gram.sum(axis=0) - gram.sum(axis=1)
    without = rest / ((count - 1) * (count - 2))
    return np.array([total / (count * (count - 1)), *without])


def _mean_without_each(values: Tensor) -> Array:
    numbers = _numbers(values)
    count, total = len(numbers), numbers.sum()
    return np.array([total / count, *((total - numbers) / (count - 1))])


def _numbers(values: Tensor) -> Array:
    return values.double().cpu().numpy().copy()
