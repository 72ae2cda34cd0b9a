"""The default engine: decodes with the trainer's own transformers model, in its process.

Every prompt is read once and its key-value cache repeated for its samples; finished sequences
leave the batch. Each request draws from its own random numbers, so that what else is decoded with
it changes nothing but rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from workbench.rollout.engine import Decoding, Request, Response

COMPACT_BELOW = 0.75  # share of live rows at which the dead ones leave the cache


@dataclass
class TransformersEngine:
    """Decodes up to `sequences` responses together, and calls `get_on` after each such batch."""

    model: PreTrainedModel
    end: frozenset[int]
    pad: int
    sequences: int = 512
    get_on: Callable[[], object] = bool

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Response]]:
        """See `Engine.generate`."""
        was_training = self.model.training
        self.model.eval()
        found: list[list[Response]] = []
        for chunk in _chunks(requests, self.sequences):
            found += self._decode(chunk, decoding)
            self.get_on()
        self.model.train(was_training)
        return found

    def _decode(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Response]]:
        state = self._read_prompts(requests)
        device = state.logits.device
        noise = torch.cat([_noise(r, decoding.max_tokens) for r in requests]).to(device)
        rows = len(noise)
        tokens = torch.full((rows, decoding.max_tokens), self.pad, device=device)
        logprobs = torch.zeros(rows, decoding.max_tokens, device=device)
        lengths = torch.zeros(rows, dtype=torch.long, device=device)
        ends = torch.tensor(sorted(self.end), device=device)
        for position in range(decoding.max_tokens):
            drawn, logprob = draw(state.logits, noise[state.row, position], decoding)
            tokens[state.row, position] = drawn
            logprobs[state.row, position] = logprob
            lengths[state.row[state.live]] = position + 1
            state.live &= ~torch.isin(drawn, ends)
            live = int(state.live.sum())
            if live == 0 or position + 1 == decoding.max_tokens:
                break
            if live <= COMPACT_BELOW * len(state.live):
                drawn = state.compact(drawn)
            state.advance(self.model, drawn)
        return self._responses(requests, tokens, logprobs, lengths)

    def _read_prompts(self, requests: Sequence[Request]) -> "_State":
        device = next(self.model.parameters()).device
        width = max(len(r.prompt) for r in requests)
        ids = torch.full((len(requests), width), self.pad)
        attended = torch.zeros(len(requests), width, dtype=torch.long)
        for index, request in enumerate(requests):
            ids[index, width - len(request.prompt) :] = torch.tensor(request.prompt)
            attended[index, width - len(request.prompt) :] = 1
        ids, attended = ids.to(device), attended.to(device)
        positions = (attended.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids,
            attention_mask=attended,
            position_ids=positions,
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        samples = torch.tensor([r.samples for r in requests], device=device)
        source = torch.arange(len(requests), device=device).repeat_interleave(samples)
        state = _State(
            cache=output.past_key_values,
            logits=output.logits[:, -1],
            attended=attended,
            position=positions[:, -1],
            row=source,
            live=torch.ones(len(requests), dtype=torch.bool, device=device),
        )
        state.select(source)
        state.row = torch.arange(len(source), device=device)
        return state

    def _responses(
        self, requests: Sequence[Request], tokens: Tensor, logprobs: Tensor, lengths: Tensor
    ) -> list[list[Response]]:
        all_tokens, all_logprobs = tokens.tolist(), logprobs.tolist()
        flat = []
        for row, length in enumerate(lengths.tolist()):
            ids = tuple(all_tokens[row][:length])
            flat.append(Response(ids, tuple(all_logprobs[row][:length]), ids[-1] in self.end))
        taken = iter(flat)
        return [[next(taken) for _ in range(request.samples)] for request in requests]


@dataclass
class _State:
    """The sequences being decoded; the first dimension of everything is the live batch.

    `row` says which response a batch row is; `live` whether it has not ended.
    """

    cache: DynamicCache
    logits: Tensor
    attended: Tensor
    position: Tensor
    row: Tensor
    live: Tensor

    def select(self, index: Tensor) -> None:
        """Keeps these batch rows, in this order, repeats allowed."""
        for layer in self.cache.layers:
            layer.batch_select_indices(index)  # type: ignore[attr-defined]
        self.logits, self.attended = self.logits[index], self.attended[index]
        self.position, self.row, self.live = self.position[index], self.row[index], self.live[index]

    def compact(self, drawn: Tensor) -> Tensor:
        """Lets ended rows go; returns the tokens drawn for those that stay."""
        kept = self.live.nonzero(as_tuple=True)[0]
        self.select(kept)
        return drawn[kept]

    def advance(self, model: PreTrainedModel, drawn: Tensor) -> None:
        """Feeds the drawn tokens; ended rows that are still here go along unread."""
        self.attended = torch.cat([self.attended, self.attended.new_ones(len(drawn), 1)], dim=1)
        self.position = self.position + 1
        output = model(
            input_ids=drawn[:, None],
            attention_mask=self.attended,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1]


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
    """Uniform numbers [sample, token] that follow from the request's seed alone."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.samples, tokens, generator=generator)


def _chunks(requests: Sequence[Request], sequences: int) -> Iterator[list[Request]]:
    """Whole requests, as many as `sequences` responses allow, at least one."""
    chunk: list[Request] = []
    for request in requests:
        if chunk and sum(r.samples for r in chunk) + request.samples > sequences:
            yield chunk
            chunk = []
        chunk.append(request)
    if chunk:
        yield chunk
