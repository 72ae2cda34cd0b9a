"""Moments of many estimators from common rollouts: of a step whose questions are drawn at random.

Every question is an independent draw, with a few replicates of its rollouts; every estimator is
computed on all of them, and all that is said of it follows from products of the gradients of two
questions. No product is taken within a question, so that squared lengths are unbiased
(U-statistics), and speak of the questions that these are a sample of: within a handful, their own
average is a truth that imitation of that very handful cannot miss.

A sequence is differentiated once for every pattern of token weights that is not a multiple of
another. An estimator that weighs all tokens of a response alike, as most do on policy, needs the
sequence's score vector and nothing else, so that one backward pass serves all of those at once.

Where an estimator ties the questions of a step together (batch whitening, token selections), it is
computed on steps of the recipe's size, and the questions of a step are still taken for independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.moments import Array, Moments, left_out, of_each, of_pairs
from workbench.upge.aggregations import ConstantLength
from workbench.upge.batch import PerQuestion, TokenBatch
from workbench.upge.estimator import Estimator
from workbench.upge.method import Method, Term
from workbench.upge.methods import rloo, sft

LEAST_QUESTIONS = 3  # one is left out by the jackknife, and a product needs two
LEAST_REPLICATES = 2  # which the variance between a question's own needs


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
    """Questions, each with the rollouts of K replicates.

    Attributes:
        batch: every sequence once.
        steps: the rows of each replicate, all with the same questions; a demonstration is in each.
        gradients: of the batch's sequences at the current policy.
    """

    batch: TokenBatch
    steps: Sequence[Tensor]
    gradients: Gradients


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of the gradients of all questions, for every estimator.

    Attributes:
        mean: float32 [question, estimator, dimension], over the replicates.
        square: [question, estimator], squared length of one replicate, their mean.
        within: [question, estimator], variance between replicates.
    """

    mean: Array
    square: Array
    within: Array

    def of(self, questions: npt.NDArray[np.int64], estimator: int) -> Array:
        """The means of some questions, float64 [question, dimension]."""
        return self.mean[questions, estimator].astype(np.float64)


@dataclass(frozen=True)
class Found(Moments):
    """Moments of one estimator from all questions, then without each group of them.

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
        reference: steps of the current policy over the same questions; None where `sample` is one.
            On common rollouts the difference from the truth is paired, which removes most of its
            noise.
        strata: bool [question] each.
        questions: of the steps whose variance is told, drawn at random from a stratum.

    Yields:
        Indices of method, truth and stratum with the moments. A stratum of fewer than three
        questions is left out.

    Raises:
        ValueError: fewer than two replicates.
    """
    if len(sample.steps) < LEAST_REPLICATES:
        raise ValueError(f"{len(sample.steps)} replicates; at least {LEAST_REPLICATES} are needed")
    together = [*methods, *truths] if reference is None else methods
    found = _kept(contributions(together, sample, questions))
    right, first = found, len(methods)
    if reference is not None:
        right, first = _kept(contributions(truths, reference, questions)), 0
    for place, stratum in enumerate(strata):
        chosen = stratum.nonzero()[:, 0].cpu().numpy()
        if len(chosen) < LEAST_QUESTIONS:
            continue
        kept = left_out(len(chosen))
        true = [right.of(chosen, first + truth) for truth in range(len(truths))]
        lengths = [of_pairs(each, each, kept) for each in true]
        for method in range(len(methods)):
            mean = found.of(chosen, method)
            square = of_pairs(mean, mean, kept)
            spread = of_each(found.square[chosen, method], kept) - square
            within = of_each(found.within[chosen, method], kept)
            for truth, (each, length) in enumerate(zip(true, lengths, strict=True)):
                inner = of_pairs(mean, each, kept)
                moments = Found(inner, square, length, spread / questions, within / questions)
                yield method, truth, place, moments


def contributions(methods: Sequence[Method], sample: Sample, questions: int) -> Iterator[Tensor]:
    """Each question's gradient as if a step had no other: [method, replicate, dimension].

    In the order of questions; a step's gradient is the mean over its questions, of which there are
    about as many as `questions` says.
    """
    weights = [_weights(methods, sample, rows, questions) for rows in sample.steps]
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


def _weights(
    methods: Sequence[Method], sample: Sample, rows: Tensor, questions: int
) -> dict[int, Tensor]:
    """The token weights [method, token] of each row of a replicate, of its own question alone."""
    found: dict[int, Tensor] = {}
    question = sample.batch.question[rows]
    steps = max(1, sample.batch.questions // questions)
    for step in torch.arange(sample.batch.questions).tensor_split(steps):
        mine = rows[torch.isin(question, step.to(question.device))]
        batch = sample.batch.rows(mine)
        each = torch.stack([m.prepare(batch).token_weights() for m in methods], dim=1)
        found |= dict(zip(mine.tolist(), each * batch.questions, strict=True))
    return found


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


def _kept(gradients: Iterator[Tensor]) -> _Kept:
    parts = [(each.mean(dim=1), each.square().sum(dim=-1), _within(each)) for each in gradients]
    mean, square, within = (torch.stack(part) for part in zip(*parts, strict=True))
    return _Kept(mean.float().cpu().numpy(), _numbers(square.mean(dim=-1)), _numbers(within))


def _within(each: Tensor) -> Tensor:
    """The trace of the covariance between replicates, [estimator]."""
    off = (each - each.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return off.sum(dim=1) / (each.shape[1] - 1)


def _numbers(values: Tensor) -> Array:
    return values.double().cpu().numpy()
