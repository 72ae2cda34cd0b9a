"""What an estimator sees: the tokens of one optimizer step, of rollouts and demonstrations."""

from dataclasses import dataclass, fields
from functools import cached_property

from workbench.upge.tensors import Tensor, torch

PerToken = Tensor  # float [sequence, token]
TokenMask = Tensor  # bool [sequence, token]
PerSequence = Tensor  # [sequence]
PerQuestion = Tensor  # [question]

_PER_TOKEN = (
    "logprobs", "old_logprobs", "trained", "old_entropy", "values", "base_logprobs",
    "engine_logprobs",
)  # fmt: skip
_PER_SEQUENCE = ("rewards", "group", "demonstration", "correct")
_BOOL = ("trained", "demonstration", "correct")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """All sequences of one optimizer step, of all processes, one row each.

    Attributes:
        logprobs: float [sequence, token], log pi of each token under the current policy.
        old_logprobs: float [sequence, token], under the policy that the rollouts came from; for
            demonstrations recomputed by the trainer, like all others.
        trained: bool [sequence, token], the response tokens.
        rewards: float [sequence]; a demonstration's is 1.
        group: int [sequence], which question.
        demonstration: bool [sequence], not sampled from the policy.
        correct: bool [sequence], what a gate reads; rewards above 0 unless given.
        old_entropy: float [sequence, token], nats, under the old policy.
        values: float [sequence, token], of the value head, under the old policy.
        base_logprobs: float [sequence, token], under the model that training began with.
        engine_logprobs: float [sequence, token], what the engine that drew the rollouts gave them;
            of no meaning for demonstrations.
        step: which optimizer step; seeds token selections and drives schedules.

    Raises:
        TypeError: a field that is no tensor.
        ValueError: a shape or dtype that does not fit, or rewards that are not finite.
    """

    logprobs: PerToken
    old_logprobs: PerToken
    trained: TokenMask
    rewards: PerSequence
    group: PerSequence
    demonstration: PerSequence
    correct: PerSequence = None  # type: ignore[assignment]
    old_entropy: PerToken | None = None
    values: PerToken | None = None
    base_logprobs: PerToken | None = None
    engine_logprobs: PerToken | None = None
    step: int = 0

    def __post_init__(self) -> None:
        given = {n: getattr(self, n) for n in (*_PER_TOKEN, *_PER_SEQUENCE)}
        for name, value in given.items():
            if value is not None:
                _check_dtype(name, value)
        if self.logprobs.ndim != 2:
            raise ValueError(
                f"TokenBatch.logprobs is [sequence, token], got shape {_shape(self.logprobs)}"
            )
        for name, value in given.items():
            wanted = _shape(self.logprobs) if name in _PER_TOKEN else _shape(self.logprobs)[:1]
            if value is not None and _shape(value) != wanted:
                raise ValueError(f"TokenBatch.{name} has shape {_shape(value)}, expected {wanted}")
        strange = ~self.rewards.isfinite()
        if strange.any():
            row = int(strange.nonzero()[0])
            raise ValueError(
                f"TokenBatch.rewards must be finite, got {self.rewards[row].item()} in row {row}; "
                "give an ungradable response 0.0"
            )
        if self.correct is None:
            object.__setattr__(self, "correct", self.rewards > 0)

    def __len__(self) -> int:
        return self.logprobs.shape[0]

    @cached_property
    def question(self) -> PerSequence:
        """Which question each row belongs to, counted from 0 in order of `group`."""
        return torch.unique(self.group, return_inverse=True)[1]

    @cached_property
    def questions(self) -> int:
        """How many questions the step has: what every objective is averaged over."""
        return int(self.question.max()) + 1 if len(self) else 0

    @cached_property
    def lengths(self) -> PerSequence:
        """Trained tokens of each row."""
        return self.trained.sum(dim=1)

    def per_question(self, values: PerSequence, rows: PerSequence) -> PerQuestion:
        """The sum over each question's chosen rows."""
        chosen = torch.where(rows, values, torch.zeros_like(values))
        total = chosen.new_zeros(self.questions)
        return total.index_add(0, self.question, chosen)

    @cached_property
    def solve_rate(self) -> PerQuestion:
        """P of the paper: each question's share of correct rollouts; NaN where it has none."""
        right = self.correct.to(self.logprobs.dtype)
        rollouts = ~self.demonstration
        return self.per_question(right, rollouts) / self.per_question(
            torch.ones_like(right), rollouts
        )

    def rows(self, index: Tensor, step: int | None = None) -> "TokenBatch":
        """Some of the rows, with all that belongs to them; at another `step` if one is given."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {k: v[index] if isinstance(v, torch.Tensor) else v for k, v in parts.items()}
        return TokenBatch(**{**cut, "step": self.step if step is None else step})


def _check_dtype(name: str, value: object) -> None:
    """Raises unless a field is a tensor of its declared kind; nothing is converted silently."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"TokenBatch.{name} must be a tensor, got {type(value).__name__}")
    dtype = value.dtype
    if name in _BOOL:
        fits, rule, nearest = dtype == torch.bool, "bool", "bool()"
    elif name == "group":
        whole = dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        fits, rule, nearest = whole, "an integer", "long()"
    elif name == "logprobs":
        # Counts of tokens take its dtype, and half precision cannot count to 1,000.
        fits, rule, nearest = (
            dtype in (torch.float32, torch.float64),
            "float32 or float64",
            "float()",
        )
    else:
        fits, rule, nearest = dtype.is_floating_point, "floating point", "float()"
    if not fits:
        raise ValueError(f"TokenBatch.{name} must be {rule}, got {dtype}; write {name}.{nearest}")


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
