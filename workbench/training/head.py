"""The output layer: what a model says of each token, without all of its logits at once.

A vocabulary of 150,000 times the tokens of a micro-batch is more numbers than the rest of a pass
keeps. So rows of hidden states are taken in parts, and the logits of a part are computed again for
the gradient: what is held is a part's, for the arithmetic of one more pass through the layer. That
changes nothing but rounding, by the order of sums. Logits that are few enough are computed at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Reading:
    """What is read from logits.

    Attributes:
        temperature: divides them.
        entropy: whether that is wanted, in nats.
        entropy_gradient: whether it is learned; else it is a number alone.
    """

    temperature: float
    entropy: bool
    entropy_gradient: bool

    def __call__(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of `ids`, and entropies or None, in float32 and of the shape of `ids`.

        Logits have the vocabulary as one more dimension, the last.
        """
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        total = logits.logsumexp(dim=-1)
        chosen = logits.gather(-1, ids[..., None])[..., 0] - total
        if not self.entropy:
            return chosen, None
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            return chosen, _entropy(logits, total)


def _entropy(logits: Tensor, total: Tensor) -> Tensor:
    logprobs = logits - total[..., None]
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def read_in_parts(
    head: nn.Module, hidden: Tensor, ids: Tensor, rows: int, reading: Reading
) -> tuple[Tensor, Tensor | None]:
    """`reading` of the logits that `head` makes of hidden states [sequence, token, width].

    At most `rows` of them are taken at a time. Of a model in shards the layer's parameters must be
    put together: they are from the model's pass to the end of its gradient's.
    """

    def part(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        return reading(head(states), wanted)

    pairs = zip(hidden.flatten(0, 1).split(rows), ids.flatten().split(rows), strict=True)
    found = [
        checkpoint(part, states, wanted, use_reentrant=False, preserve_rng_state=False)
        for states, wanted in pairs
    ]
    chosen = torch.cat([logprobs for logprobs, _ in found]).view(ids.shape)
    if not reading.entropy:
        return chosen, None
    return chosen, torch.cat([entropy for _, entropy in found]).view(ids.shape)


@contextmanager
def input_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer is given inside, one call after the other."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def left_out(head: nn.Module) -> Iterator[list[Tensor]]:
    """Has the layer give back a copy of what it is given, which is inside as well.

    A copy, because a model in shards must not end in a view (FSDP2 says why).
    """
    seen: list[Tensor] = []

    def give_back(hidden: Tensor) -> Tensor:
        seen.append(hidden.clone())
        return seen[-1]

    head.forward = give_back
    try:
        yield seen
    finally:
        del head.forward
