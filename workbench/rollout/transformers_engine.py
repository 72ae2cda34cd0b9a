"""The default engine: decodes with the trainer's own transformers model, in its process.

Every prompt is read once and its keys and values repeated for its samples; finished sequences leave
the batch, and a request is answered when its last one does. Each draws from its own random numbers,
so that what else is decoded with it changes nothing but rounding. So a small model's are decoded
apart where there are several threads: each keeps a core busy, where the threads of one product wait
for each other at every token.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from threading import Lock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.rollout.decoders import open_decoder
from workbench.rollout.engine import Decoding, Hear, Request, Response, unheard
from workbench.threads import at_once, threads_for

COMPACT_BELOW = 0.75  # share of live rows at which the dead ones leave the cache
# Tokens after which it is seen which rows are live, by kind of device: a GPU has to be waited for.
LOOK = {"cpu": 1, "cuda": 8}
ROWS_APART = 32  # fewest that a thread decodes apart


@dataclass
class TransformersEngine:
    """Decodes up to `sequences` responses together, and calls `get_on` before every token.

    `weights`, of a policy that is in shards, are copied into `model` at every call. `get_on` may be
    called from other threads, by one at a time.
    """

    model: PreTrainedModel
    end: frozenset[int]
    pad: int
    sequences: int = 512
    get_on: Callable[[], object] = bool
    weights: Callable[[], Iterable[tuple[str, Tensor]]] | None = None
    _one: Lock = field(default_factory=Lock, init=False)  # thread at a time that gets on

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], decoding: Decoding, hear: Hear = unheard
    ) -> list[list[Response]]:
        """See `Engine.generate`."""
        if self.weights is not None:
            parameters = dict(self.model.named_parameters())
            for name, value in self.weights():
                parameters[name].copy_(value)
        was_training = self.model.training
        self.model.eval()
        found: list[list[Response]] = [[] for _ in requests]

        def answer(place: int, responses: list[Response]) -> None:
            found[place] = responses
            with self._one:
                hear(place, responses)

        # Prompts of similar length together: padding is read at every step.
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt))
        try:
            for chunk in _chunks(requests, order, self.sequences):
                self._answer({place: requests[place] for place in chunk}, decoding, answer)
        finally:
            self.model.train(was_training)
        return found

    def close(self) -> None:
        """Nothing: it has no more than the trainer's model."""

    def _answer(self, requests: dict[int, Request], decoding: Decoding, answer: Hear) -> None:
        """A chunk's responses, from as many threads as have enough to do."""
        rows = sum(r.samples for r in requests.values())
        apart = max(1, min(threads_for(self.model), rows // ROWS_APART))
        parts = _chunks(requests, list(requests), -(-rows // apart))
        given = [{place: requests[place] for place in part} for part in parts]
        at_once(partial(self._decode, decoding=decoding, answer=answer), given)

    @torch.no_grad()
    def _decode(self, requests: dict[int, Request], decoding: Decoding, answer: Hear) -> None:
        decoder = open_decoder(
            self.model,
            [r.prompt for r in requests.values()],
            [r.samples for r in requests.values()],
            decoding.max_tokens,
            self.pad,
        )
        device = decoder.logits.device
        noise = [_noise(r, decoding.max_tokens) for r in requests.values()]
        noise = torch.cat(noise, dim=1).to(device)
        tokens = torch.full(noise.shape, self.pad, device=device)
        logprobs = torch.zeros(noise.shape, device=device)
        ends = torch.zeros(decoder.logits.shape[-1], dtype=torch.bool, device=device)
        ends[sorted(self.end)] = True
        row = torch.arange(noise.shape[1], device=device)  # which response a batch row is
        live = torch.ones_like(row, dtype=torch.bool)
        unanswered = _columns(requests)
        for position in range(decoding.max_tokens):
            with self._one:
                self.get_on()
            drawn, logprob = draw(decoder.logits, noise[position, row], decoding)
            tokens[position, row] = drawn
            logprobs[position, row] = logprob
            live = live & ~ends[drawn]
            if position + 1 == decoding.max_tokens:
                break
            if (position + 1) % LOOK[device.type] == 0:
                count = int(live.sum())
                if count == 0:
                    break
                if count <= COMPACT_BELOW * len(live):
                    kept = live.nonzero()[:, 0]
                    decoder.keep(kept)
                    row, drawn, live = row[kept], drawn[kept], live[kept]
                    left = set(row.tolist())
                    for place in [p for p, each in unanswered.items() if left.isdisjoint(each)]:
                        columns = unanswered.pop(place)
                        answer(place, self._responses(tokens, logprobs, columns, position + 1))
            decoder.step(drawn)
        for place, columns in unanswered.items():
            answer(place, self._responses(tokens, logprobs, columns, decoding.max_tokens))

    def _responses(
        self, tokens: Tensor, logprobs: Tensor, columns: range, drawn: int
    ) -> list[Response]:
        """Cuts each column [token, response] after its first end: what follows was never live."""
        found, part = [], (slice(drawn), slice(columns.start, columns.stop))
        for ids, each in zip(tokens[part].T.tolist(), logprobs[part].T.tolist(), strict=True):
            length = next((n for n, token in enumerate(ids, 1) if token in self.end), len(ids))
            finished = ids[length - 1] in self.end
            found.append(Response(tuple(ids[:length]), tuple(each[:length]), finished))
        return found


def draw(logits: Tensor, noise: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Tokens by inverse transform from uniform noise, and their log-probabilities.

    Args:
        logits: [row, vocabulary].
        noise: [row], uniform in [0, 1).
        decoding: nucleus filtering affects what is drawn, not the log-probability returned.
    """
    logprobs = (logits.float() / decoding.temperature).log_softmax(dim=-1)
    probabilities, ids = logprobs.exp(), None
    if decoding.top_p < 1:
        probabilities, ids = probabilities.sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = torch.where(before < decoding.top_p, probabilities, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    # The last nonzero probability is found through its total, so rounding can never draw beyond it.
    target = noise[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    token = index if ids is None else ids.gather(1, index)
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def _noise(request: Request, tokens: int) -> Tensor:
    """Uniform numbers [token, sample] that follow from the request's seed alone."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.samples, tokens, generator=generator).T


def _columns(requests: Mapping[int, Request]) -> dict[int, range]:
    """Which of all responses, one after another, are each request's."""
    ends = accumulate(request.samples for request in requests.values())
    return {
        place: range(end - requests[place].samples, end)
        for place, end in zip(requests, ends, strict=True)
    }


def _chunks(
    requests: Sequence[Request] | Mapping[int, Request], order: Sequence[int], sequences: int
) -> Iterator[list[int]]:
    """Indices of whole requests, as many as `sequences` responses allow, at least one."""
    chunk: list[int] = []
    size = 0
    for index in order:
        if chunk and size + requests[index].samples > sequences:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += requests[index].samples
    if chunk:
        yield chunk
