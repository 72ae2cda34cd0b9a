"""A post-training method: which estimator each stream gets, and which share of each question."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from workbench.identity import Component
from workbench.recipe import Objective
from workbench.rules import Amount
from workbench.upge.advantages import GAE
from workbench.upge.auxiliary import Auxiliary, Current
from workbench.upge.batch import PerQuestion, PerSequence, PerToken, TokenBatch, TokenMask
from workbench.upge.estimator import Estimator, Weights
from workbench.upge.gates import Gate, Open
from workbench.upge.tensors import Tensor, torch


class EntropyWeight(Component):
    """A coefficient scale * exp(exponent * H) on each sequence, H its mean old-policy entropy.

    SRFT (Fu et al. 2025, eq. 6 and 9): 0.5 exp(-H) on demonstrations, 0.1 exp(H) on correct
    rollouts; `correct_only` leaves incorrect ones at 1.
    """

    scale: Amount
    exponent: float
    correct_only: bool = False

    def __call__(self, batch: TokenBatch) -> PerSequence:
        if batch.old_entropy is None:
            raise ValueError("EntropyWeight reads TokenBatch.old_entropy, which is not given")
        entropy = torch.where(batch.trained, batch.old_entropy, 0.0).sum(dim=1)
        weight = self.scale * (self.exponent * entropy / batch.lengths.clamp(min=1)).exp()
        return torch.where(batch.correct, weight, 1.0) if self.correct_only else weight


class Term(Component):
    """One of several estimators on a stream, with its coefficient."""

    estimator: Estimator
    coefficient: float | EntropyWeight = 1.0

    @property
    def needs_old(self) -> bool:
        """Whether settling it reads what the old policy says of the tokens."""
        return self.estimator.needs_old or isinstance(self.coefficient, EntropyWeight)


Stream = Estimator | tuple[Term, ...] | None


def terms(stream: Stream) -> tuple[Term, ...]:
    """A stream's estimators with their coefficients: none, one or several."""
    if stream is None:
        return ()
    return (Term(stream),) if isinstance(stream, Estimator) else stream


class Method(Objective):
    """An estimator for rollouts, one for demonstrations, and the gate between them.

    The objective of a step is mean over its questions q of alpha_q L_rollouts(q) + beta_q
    L_demonstrations(q), plus auxiliary losses. A stream is None, one estimator, or several terms.

    Raises:
        ValueError: no stream at all, a gate with only one, demonstrations with an advantage of
            sampled responses, or a value loss without the returns of a GAE.
    """

    rollouts: Estimator | tuple[Term, ...] | None = None
    demonstrations: Estimator | tuple[Term, ...] | None = None
    gate: Gate = Open()
    auxiliary: tuple[Auxiliary, ...] = ()

    def check(self) -> None:
        for name in ("rollouts", "demonstrations"):
            stream = getattr(self, name)
            if stream == ():
                object.__setattr__(self, name, None)
            elif isinstance(stream, tuple) and stream == (Term(stream[0].estimator),):
                object.__setattr__(self, name, stream[0].estimator)  # one form for one meaning
        if self.rollouts is None and self.demonstrations is None:
            raise ValueError("Method needs an estimator for rollouts, for demonstrations, or both")
        if self.gate != Open() and (self.rollouts is None or self.demonstrations is None):
            raise ValueError(
                f"Method.gate is {self.gate}, but there is only one stream to give questions to"
            )
        for term in terms(self.demonstrations):
            if term.estimator.needs_values:
                raise ValueError(
                    f"{term.estimator.advantage} needs values, which are of sampled responses; "
                    "demonstrations take upge.Ones() or a group advantage"
                )
        for auxiliary in self.auxiliary:
            if auxiliary.needs_values and not self._has_returns:
                raise ValueError(
                    f"Method.auxiliary has {auxiliary}, but no estimator has the returns that it "
                    "fits; give one advantage=upge.GAE(), or leave it out"
                )

    @property
    def _has_returns(self) -> bool:
        return any(isinstance(term.estimator.advantage, GAE) for term in self.all_terms)

    # --- what a step of it needs ---

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The terms of both streams."""
        return terms(self.rollouts) + terms(self.demonstrations)

    @property
    def samples_rollouts(self) -> bool:
        return self.rollouts is not None or self.gate.reads_rollouts

    @property
    def needs_demonstrations(self) -> bool:
        return self.demonstrations is not None

    @property
    def needs_values(self) -> bool:
        return any(term.estimator.needs_values for term in self.all_terms)

    @property
    def needs_old(self) -> bool:
        """Whether `prepare` reads what the old policy says: log-probabilities, entropy, values.

        Where it does not, those of a row may be filled in as late as the loss of that row.
        """
        return any(term.needs_old for term in self.all_terms)

    @property
    def has_auxiliary(self) -> bool:
        return bool(self.auxiliary)

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss needs the current policy's entropy."""
        return any(each.needs_entropy for each in self.auxiliary)

    @property
    def needs_base(self) -> bool:
        """Whether the loss needs log-probabilities of the model that training began with."""
        return any(each.needs_base for each in self.auxiliary)

    def on_policy(self) -> "Method":
        return Method(
            _on_policy(self.rollouts), _on_policy(self.demonstrations), self.gate, self.auxiliary
        )

    @property
    def label(self) -> str:
        from workbench.upge.methods import name_of

        return name_of(self)

    # --- the loss ---

    def weights(self, batch: TokenBatch) -> PerToken:
        """The weight on grad log pi [sequence, token] of each row under its own stream.

        Before gate, aggregation and sign; several terms add up with their coefficients.
        """
        total = torch.zeros_like(batch.logprobs)
        for stream, of_stream in self._streams(batch):
            for term in of_stream:
                settled = term.estimator.settle(batch, stream)
                each = term.estimator.weights(batch, batch.logprobs, *settled).weight
                scaled = each * _coefficient(term, batch)[:, None]
                total = total + torch.where(stream[:, None], scaled, 0.0)
        return total

    def prepare(self, batch: TokenBatch) -> "Step":
        """Settles all that belongs to the whole optimizer step, not to a micro-batch."""
        alpha, beta = self.gate_weights(batch)
        settled = []
        for (stream, of_stream), gate in zip(self._streams(batch), (alpha, beta), strict=True):
            by_row = gate[batch.question]
            for term in of_stream:
                # Tokens that the gate lets nothing of through take no part in a selection.
                advantage, selected = term.estimator.settle(batch, stream & (by_row != 0))
                share = term.estimator.aggregation(batch, stream, by_row)
                share = share * (by_row * _coefficient(term, batch))[:, None]
                settled.append(SettledTerm(term.estimator, stream, advantage, selected, share))
        return Step(self, batch, tuple(settled), alpha, beta)

    def gate_weights(self, batch: TokenBatch) -> tuple[PerQuestion, PerQuestion]:
        """Alpha and beta [question]; a question without rollouts counts as solved by none."""
        return self.gate(batch.solve_rate.nan_to_num(0.0), batch.step)

    def loss(
        self, batch: TokenBatch, entropy: PerToken | None = None, values: PerToken | None = None
    ) -> Tensor:
        """The scalar to minimize, for the whole step at once, through `batch.logprobs`."""
        everything = torch.arange(len(batch), device=batch.logprobs.device)
        return self.prepare(batch).loss(everything, batch.logprobs, entropy, values)

    def _streams(self, batch: TokenBatch) -> tuple[tuple[PerSequence, tuple[Term, ...]], ...]:
        return (
            (~batch.demonstration, terms(self.rollouts)),
            (batch.demonstration, terms(self.demonstrations)),
        )


def _on_policy(stream: Stream) -> Stream:
    return tuple(Term(t.estimator.on_policy(), t.coefficient) for t in terms(stream)) or None


def _coefficient(term: Term, batch: TokenBatch) -> PerSequence:
    if isinstance(term.coefficient, EntropyWeight):
        return term.coefficient(batch)
    return torch.full_like(batch.rewards, term.coefficient, dtype=batch.logprobs.dtype)


@dataclass(frozen=True, eq=False)
class SettledTerm:
    """One estimator with what the whole step settled for it; tensors are [sequence, token].

    Attributes:
        estimator: what weighs the tokens.
        stream: bool [sequence], the rows it is for.
        advantage, selected: see `Estimator.settle`.
        share: the aggregation's share, times gate weight and coefficient.
    """

    estimator: Estimator
    stream: PerSequence
    advantage: PerToken
    selected: PerToken
    share: PerToken

    def weights(self, batch: TokenBatch, rows: Tensor, logprobs: PerToken) -> Weights:
        """The estimator's weights of these rows; `batch` is already cut to them."""
        return self.estimator.weights(batch, logprobs, self.advantage[rows], self.selected[rows])


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step with everything global settled; losses of any split of its rows add up.

    Attributes:
        method: what prepared it.
        batch: all rows of the step.
        terms: of both streams.
        alpha, beta: [question], the gate's weights.
    """

    method: Method
    batch: TokenBatch
    terms: tuple[SettledTerm, ...]
    alpha: PerQuestion
    beta: PerQuestion

    def loss(
        self,
        rows: Tensor,
        logprobs: PerToken,
        entropy: PerToken | None = None,
        values: PerToken | None = None,
    ) -> Tensor:
        """The part of the step's loss that these rows carry, a scalar.

        `rows` are indices into the step's batch; `logprobs` [row, token] carries the gradient.
        """
        return torch.stack(
            list(self.losses(rows, Current(logprobs, entropy, values)).values())
        ).sum()

    def losses(self, rows: Tensor, current: Current) -> dict[str, Tensor]:
        """The loss of these rows in its three parts: rollouts, demonstrations, auxiliary."""
        zero = current.logprobs.new_zeros(())
        parts = {"rollouts": zero, "demonstrations": zero, "auxiliary": zero}
        trained = self.batch.trained[rows]
        logprobs = torch.where(trained, current.logprobs, 0.0)
        for term, weights in self.weighted(rows, current.logprobs):
            per_token = -(weights.weight * term.share[rows]) * logprobs
            demonstrations = term.stream[rows] & self.batch.demonstration[rows]
            parts["demonstrations"] = parts["demonstrations"] + per_token[demonstrations].sum()
            parts["rollouts"] = parts["rollouts"] + per_token[~demonstrations].sum()
        for auxiliary in self.method.auxiliary:
            parts["auxiliary"] = parts["auxiliary"] + self._auxiliary(auxiliary, rows, current)
        return parts

    def weighted(self, rows: Tensor, logprobs: PerToken) -> Iterator[tuple[SettledTerm, Weights]]:
        """Each term with its weights on these rows: what the loss and the statistics read."""
        cut = self.batch.rows(rows)
        for term in self.terms:
            yield term, term.weights(cut, rows, logprobs)

    def token_weights(self) -> PerToken:
        """What multiplies grad log pi of each token in the step's direction of ascent.

        [sequence, token], aggregated and gated; auxiliary losses are not in it.
        """
        everything = torch.arange(len(self.batch), device=self.batch.logprobs.device)
        total = torch.zeros_like(self.batch.logprobs)
        for term, weights in self.weighted(everything, self.batch.logprobs):
            total = total + weights.weight * term.share
        return total

    @property
    def active(self) -> PerSequence:
        """Bool [sequence], the rows that can move the policy; all others add exactly nothing."""
        tokens = torch.zeros_like(self.batch.trained)
        for term in self.terms:
            tokens |= (term.share * term.selected * term.advantage) != 0
        for auxiliary in self.method.auxiliary:
            tokens |= self._tokens(auxiliary)
        return tokens.any(dim=1)

    def _tokens(self, auxiliary: Auxiliary) -> TokenMask:
        """An auxiliary loss's tokens: none of rows that the gate takes out of the step."""
        question, demonstration = self.batch.question, self.batch.demonstration
        gate = torch.where(demonstration, self.beta[question], self.alpha[question])
        return auxiliary.tokens(self.batch) & (gate != 0)[:, None]

    def _auxiliary(self, auxiliary: Auxiliary, rows: Tensor, current: Current) -> Tensor:
        tokens = self._tokens(auxiliary)
        returns = None if self.returns is None else self.returns[rows]
        per_token = auxiliary(self.batch.rows(rows), current, returns)
        return torch.where(tokens[rows], per_token, 0.0).sum() / tokens.sum().clamp(min=1)

    @cached_property
    def returns(self) -> PerToken | None:
        """What a value head should predict [sequence, token], where the method has one."""
        for term in self.terms:
            if isinstance(term.estimator.advantage, GAE) and self.batch.values is not None:
                return term.estimator.advantage.plain(self.batch) + self.batch.values
        return None
