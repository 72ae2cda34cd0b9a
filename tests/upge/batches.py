"""Small random batches in float64, ordinary and degenerate, and the gradients of losses on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.upge import TokenBatch

torch.set_num_threads(1)

PER_TOKEN = (
    "logprobs", "old_logprobs", "old_entropy", "values", "base_logprobs", "engine_logprobs",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One sequence of a batch: its question, reward, trained tokens, and where they start."""

    question: int
    reward: float
    length: int
    demonstration: bool = False
    start: int = 0


def make_batch(rows: Sequence[Row], seed: int, drift: float = 0.4, step: int = 0) -> TokenBatch:
    """Random log-probabilities for these rows; `drift` is how far the policy has moved."""
    generator = torch.Generator().manual_seed(seed)
    width = max(1, *(row.start + row.length for row in rows))
    shape = (len(rows), width)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    old = -normal().exp()
    position = torch.arange(width)
    spans = [(position >= row.start) & (position < row.start + row.length) for row in rows]
    return TokenBatch(
        logprobs=(old + drift * normal()).clamp(max=-1e-3),
        old_logprobs=old,
        trained=torch.stack(spans),
        rewards=torch.tensor([row.reward for row in rows], dtype=torch.float64),
        group=torch.tensor([row.question for row in rows]),
        demonstration=torch.tensor([row.demonstration for row in rows]),
        old_entropy=normal().exp(),
        values=normal(),
        base_logprobs=(old + normal()).clamp(max=-1e-3),
        engine_logprobs=(old + 0.3 * normal()).clamp(max=-1e-3),
        step=step,
    )


def _rollouts(question: int, rewards: Sequence[float], lengths: Sequence[int]) -> list[Row]:
    return [Row(question, r, n) for r, n in zip(rewards, lengths, strict=True)]


def _demonstration(question: int, length: int) -> Row:
    return Row(question, 1.0, length, demonstration=True)


def ordinary(seed: int, step: int = 0, drift: float = 0.4) -> TokenBatch:
    """Four questions from never to always solved, ragged, with shuffled rows and odd group ids."""
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = []
    for question, solved in ((7, 0), (3, 1), (11, 2), (5, 4)):
        rows += _rollouts(
            question,
            [float(i < solved) for i in range(4)],
            torch.randint(1, 7, (4,), generator=generator).tolist(),
        )
        rows.append(_demonstration(question, int(torch.randint(2, 9, (), generator=generator))))
    order = torch.randperm(len(rows), generator=generator).tolist()
    starts = torch.randint(0, 3, (len(rows),), generator=generator).tolist()
    moved = [replace(rows[i], start=start) for i, start in zip(order, starts, strict=True)]
    batch = make_batch(moved, seed, drift, step)
    # A tool's output inside a response: tokens that are not trained need not be at the ends.
    hole = torch.rand(batch.trained.shape, generator=generator) < 0.1
    return replace(batch, trained=batch.trained & ~hole)


MIXED = [*_rollouts(0, (1, 0, 0, 1), (3, 5, 2, 4)), *_rollouts(1, (0, 0, 1, 0), (1, 6, 3, 2))]
BOTH_DEMONSTRATIONS = [_demonstration(0, 6), _demonstration(1, 3)]

DEGENERATE: dict[str, list[Row]] = {
    "all right": [
        *_rollouts(0, (1, 1, 1), (2, 3, 4)),
        *_rollouts(1, (1, 1), (5, 1)),
        *BOTH_DEMONSTRATIONS,
    ],
    "all wrong": [
        *_rollouts(0, (0, 0, 0), (2, 3, 4)),
        *_rollouts(1, (0, 0), (5, 1)),
        *BOTH_DEMONSTRATIONS,
    ],
    "one rollout a question": [Row(0, 1, 3), Row(1, 0, 4), *BOTH_DEMONSTRATIONS],
    "a lone rollout and nothing else": [Row(0, 1, 3)],
    "no demonstration": MIXED,
    "a demonstration of one question only": [*MIXED, _demonstration(1, 3)],
    "two demonstrations of a question": [*MIXED, *BOTH_DEMONSTRATIONS, _demonstration(1, 5)],
    "no rollout": BOTH_DEMONSTRATIONS,
    "a question without rollouts": [*MIXED, *BOTH_DEMONSTRATIONS, _demonstration(2, 4)],
    "fully masked rows": [
        *MIXED,
        Row(0, 1, 0),
        Row(1, 0, 0),
        *BOTH_DEMONSTRATIONS,
        _demonstration(1, 0),
    ],
    "nothing trained": [Row(0, 1, 0), Row(0, 0, 0), _demonstration(0, 0)],
    "single tokens": [*_rollouts(0, (1, 0, 0), (1, 1, 1)), _demonstration(0, 1)],
    "one token in all": [Row(0, 1, 1), Row(0, 0, 0)],
    "ragged lengths": [*_rollouts(0, (1, 0, 1), (1, 12, 4)), _demonstration(0, 20)],
    "rewards between 0 and 1": [
        *_rollouts(0, (0.1, 0.7, 0.1, -0.5), (3, 2, 5, 4)),
        _demonstration(0, 3),
    ],
    "equal rewards that are not whole": _rollouts(0, (0.1, 0.1, 0.1), (3, 2, 5)),
}

BATCHES: dict[str, TokenBatch] = {
    **{f"random {seed}": ordinary(seed) for seed in range(3)},
    "on policy": ordinary(3, drift=0.0),
    "far off policy": ordinary(4, drift=1.5),
    **{name: make_batch(rows, seed=9) for name, rows in DEGENERATE.items()},
}


Loss = Callable[[TokenBatch, Tensor, Tensor], Tensor]


def value_and_gradients(loss: Loss, batch: TokenBatch) -> list[Tensor]:
    """`loss(batch, entropy, values)` and its gradients by log-probabilities, entropy and values.

    The current policy's entropy and values are made up, but differ from the old ones.
    """
    assert batch.old_entropy is not None and batch.values is not None
    leaves = [batch.logprobs, 0.9 * batch.old_entropy, batch.values + 0.3]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(replace(batch, logprobs=leaves[0]), leaves[1], leaves[2])
    if not value.requires_grad:  # an empty sum
        return [value, *(torch.zeros_like(leaf) for leaf in leaves)]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [value.detach(), *(torch.zeros_like(b) if a is None else a for a, b in pairs)]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest entry where that is above 1e-3."""
    scale = max(1e-3, *(float(each.abs().max()) for each in other))
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / scale
