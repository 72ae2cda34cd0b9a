"""How tokens become one number: an estimator's price in length bias, and so a part of it.

An aggregation gives every token a share [sequence, token]; the loss is the sum of share times
weight times log pi. All counts are over the whole optimizer step, so that nothing depends on
micro-batches, padding, packing or processes. What a mean is taken over is its scope.
"""

from workbench.identity import Component
from workbench.rules import Count
from workbench.upge.batch import PerSequence, PerToken, TokenBatch
from workbench.upge.tensors import torch


class Scope(Component):
    """Which rows an aggregation counts for each row; the call sums a row's quantity over them."""

    def __call__(
        self, batch: TokenBatch, quantity: PerSequence, stream: PerSequence, gate: PerSequence
    ) -> PerSequence:
        """For each row, the sum of `quantity` over the rows of its scope, times its questions."""
        raise NotImplementedError


class PerQuestion(Scope):
    """Means are over the stream's rows of a question, then over **all** questions of the step.

    So a stream counts by the share of questions that the gate gives it (the paper's mixture).
    """

    def __call__(
        self, batch: TokenBatch, quantity: PerSequence, stream: PerSequence, gate: PerSequence
    ) -> PerSequence:
        return batch.per_question(quantity, stream)[batch.question] * batch.questions


class PerGroup(Scope):
    """Means are over a question's rollouts and demonstrations together, then over all questions.

    LUFFY's: a demonstration is one more member of the group.
    """

    def __call__(
        self, batch: TokenBatch, quantity: PerSequence, stream: PerSequence, gate: PerSequence
    ) -> PerSequence:
        everything = torch.ones_like(stream)
        return batch.per_question(quantity, everything)[batch.question] * batch.questions


class PerStream(Scope):
    """Means are over those rows of the stream, in the whole step, that the gate lets through.

    The stream keeps its total weight with one question gated as with all: another algorithm than
    `PerQuestion`, and what codebases do that divide by a global token count. A row counts whole
    whatever its weight by a soft gate, as long as it is not 0.
    """

    def __call__(
        self, batch: TokenBatch, quantity: PerSequence, stream: PerSequence, gate: PerSequence
    ) -> PerSequence:
        total = torch.where(stream & (gate != 0), quantity, 0).sum()
        return total.expand(len(batch))


class Aggregation(Component):
    """A share for every token of a stream."""

    # Not annotated, so not a field here: subclasses declare it last, ConstantLength(1) reads best.
    scope = PerQuestion()

    def __call__(self, batch: TokenBatch, stream: PerSequence, gate: PerSequence) -> PerToken:
        """Shares [sequence, token], 0 outside the stream; `gate` is the weight of each row."""
        over = self.scope(batch, self.counted(batch), stream, gate)
        rows = torch.where(stream, 1 / over.clamp(min=1), 0) * self.within(batch)
        return rows[:, None] * batch.trained

    def counted(self, batch: TokenBatch) -> PerSequence:
        """What a row adds to the count that its scope divides by: itself, unless tokens count."""
        return torch.ones(len(batch), dtype=batch.logprobs.dtype, device=batch.logprobs.device)

    def within(self, batch: TokenBatch) -> PerSequence:
        """The share of a row's token in the row."""
        raise NotImplementedError


class TokenMean(Aggregation):
    """Every token of the scope counts the same: long responses count more (DAPO, eq. 8)."""

    scope: Scope = PerQuestion()

    def counted(self, batch: TokenBatch) -> PerSequence:
        return batch.lengths.to(batch.logprobs.dtype)

    def within(self, batch: TokenBatch) -> PerSequence:
        return torch.ones_like(self.counted(batch))


class SequenceMean(Aggregation):
    """Every sequence of the scope counts the same: its tokens by 1 / length (GRPO, GSPO)."""

    scope: Scope = PerQuestion()

    def within(self, batch: TokenBatch) -> PerSequence:
        return 1 / batch.lengths.clamp(min=1).to(batch.logprobs.dtype)


class ConstantLength(Aggregation):
    """Token sums, divided by one constant `length` and the number of sequences (Dr. GRPO).

    `ConstantLength(1)` is the plain sum over tokens, the only one without length bias in scale too.
    """

    length: Count
    scope: Scope = PerQuestion()

    def within(self, batch: TokenBatch) -> PerSequence:
        return torch.full_like(self.counted(batch), 1 / self.length)
