"""How a model reads sequences: end to end, with what they share only once; or padded, in lines."""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from workbench.products import ROWS
from workbench.training.sequences import Sequence

# What a pass costs beside its tokens, in micro-batches of the size that resources say.
PASS = 1 / 16
# What a call of attention costs beside its tokens, in tokens, by kind of device.
CALL = {"cpu": 64, "cuda": 4096}
# What a token of a shared prompt costs that attention alone reads once more, in tokens.
AGAIN = 1 / 8


@dataclass(frozen=True)
class Rows:
    """How attention reads tokens laid end to end: each sequence is a row, with its prompt.

    Rows of similar length are read in one call, padded on the right, where a causal model never
    looks.

    Attributes:
        tokens: which token is at each place of all calls, one call after the other.
        shapes: rows and columns of each call.
        home: [token], the place whose result is the token's own; a shared prompt has it in several.
    """

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]
    home: Tensor

    def split(self, values: Tensor) -> list[Tensor]:
        """Values [token, ...] as the calls read them, [row, column, ...] each."""
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = values.index_select(0, self.tokens).split(sizes)
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, values: Many[Tensor]) -> Tensor:
        """What the calls gave [row, column, ...], by token."""
        flat = torch.cat([value.flatten(0, 1) for value in values])
        return flat.index_select(0, self.home)


@dataclass(frozen=True)
class Layout:
    """Sequences as a model reads them, and where it predicts what of their responses.

    Attributes:
        ids: [line, column].
        kept: columns whose predictions are asked for.
        targets: [line, kept], the token that comes after each, where one is predicted.
        place: [sequence, token], which of the flattened kept columns predicts a response's token.
        trained: [sequence, token], which tokens of the responses are real.
        columns, predictions: how many of all columns, and of the kept ones, each sequence has, one
            sequence after the other; a prompt that several share is the first one's.
        positions: [line, column], each token's in its sequence; None where it is the column.
        rows: what attention reads, where lines are not sequences.
    """

    ids: Tensor
    kept: Tensor
    targets: Tensor
    place: Tensor
    trained: Tensor
    columns: tuple[int, ...]
    predictions: tuple[int, ...]
    positions: Tensor | None = None
    rows: Rows | None = None

    @property
    def width(self) -> int:
        """Tokens of the longest response."""
        return self.trained.shape[1]

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model's forward is called with."""
        given = {"input_ids": self.ids, "logits_to_keep": self.kept, "use_cache": False}
        if self.rows is not None:
            # A mask of four dimensions is passed on as it is: this one is empty and nobody reads
            # it, but without one transformers would make one of tokens by tokens.
            nothing = torch.empty(1, 1, 0, 0, device=self.ids.device)
            given |= {"position_ids": self.positions, "attention_mask": nothing, "rows": self.rows}
        return given

    def by_response(self, values: Tensor) -> Tensor:
        """Values [sequence, token] of the responses, from those of the kept columns, [line, kept].

        Zero where a response is padded.
        """
        return torch.where(self.trained, values.flatten()[self.place], 0.0)


def trained_tokens(sequences: Many[Sequence]) -> Tensor:
    """Which tokens of the responses are real, [sequence, token]."""
    lengths = torch.tensor([len(s.response) for s in sequences])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def pad(sequences: Many[Sequence], filler: int, device: torch.device) -> Layout:
    """A line a sequence, padded on the right, where a causal model never looks: no mask."""
    starts = torch.tensor([len(s.prompt) for s in sequences])
    lengths = torch.tensor([s.length for s in sequences])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(real.shape, filler)
    ids[real] = torch.tensor([token for s in sequences for token in s.prompt + s.response])
    trained = trained_tokens(sequences)
    # The token before a column predicts it, and no response begins before the shortest prompt ends.
    kept = torch.arange(int(starts.min()) - 1, real.shape[1] - 1)
    line = len(kept) * torch.arange(len(sequences))
    place = (line + starts - starts.min())[:, None] + torch.arange(trained.shape[1])
    return Layout(
        ids=ids.to(device),
        kept=kept.to(device),
        targets=ids[:, kept + 1].to(device),
        place=place.where(trained, 0).to(device),
        trained=trained.to(device),
        columns=(real.shape[1],) * len(sequences),
        predictions=(len(kept),) * len(sequences),
    )


def pack(sequences: Many[Sequence], filler: int, device: torch.device) -> Layout:
    """One line of all sequences, in which a prompt that a question's begin with is there once.

    It is filled up to a length that comes again, for the sake of the libraries that multiply.
    """
    if len(sequences) == 1:
        return pad(sequences, filler, device)
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    spans: list[tuple[range, range]] = []  # of each sequence's prompt and response
    prompts: dict[tuple[int, tuple[int, ...]], range] = {}
    columns = []
    for s in sequences:
        before = len(ids)
        if (s.question, s.prompt) not in prompts:
            prompts[s.question, s.prompt] = range(len(ids), len(ids) + len(s.prompt))
            ids += s.prompt
            positions += range(len(s.prompt))
        prompt = prompts[s.question, s.prompt]
        response = range(len(ids), len(ids) + len(s.response))
        ids += s.response
        positions += range(len(s.prompt), s.length)
        kept += [prompt[-1], *response[:-1]]
        spans.append((prompt, response))
        columns.append(len(ids) - before)
    more = -len(ids) % ROWS
    ids += [filler] * more
    positions += [0] * more
    columns[-1] += more  # which nobody reads: no gradient comes from there
    trained = trained_tokens(sequences)
    begins = list(accumulate((len(s.response) for s in sequences), initial=0))[:-1]
    place = torch.tensor(begins)[:, None] + torch.arange(trained.shape[1])
    targets = torch.tensor([token for s in sequences for token in s.response])
    return Layout(
        ids=torch.tensor(ids)[None].to(device),
        kept=torch.tensor(kept).to(device),
        targets=targets[None].to(device),
        place=place.where(trained, 0).to(device),
        trained=trained.to(device),
        columns=tuple(columns),
        predictions=tuple(len(s.response) for s in sequences),
        positions=torch.tensor(positions)[None].to(device),
        rows=_rows(spans, len(ids), device),
    )


def _rows(spans: Many[tuple[range, range]], tokens: int, device: torch.device) -> Rows:
    """Each sequence as a row of one of the calls, which together cost least."""
    order = sorted(range(len(spans)), key=lambda row: sum(map(len, spans[row])))
    lengths = [sum(map(len, spans[row])) for row in order]
    places: list[int] = []
    shapes = []
    home = [0] * tokens
    for first, last in pairwise(cheapest(lengths, CALL[device.type])):
        columns = lengths[last - 1]
        shapes.append((last - first, columns))
        for row in order[first:last]:
            for token in (read := [*spans[row][0], *spans[row][1]]):
                home[token] = len(places)
                places.append(token)
            places += [0] * (columns - len(read))
    return Rows(torch.tensor(places).to(device), tuple(shapes), torch.tensor(home).to(device))


def cheapest(lengths: Many[int], each: float, limit: int | None = None) -> list[int]:
    """Where to cut rising lengths into groups, so that padding and groups together cost least.

    A group costs its padded size and `each`; one of several lengths has at most `limit`. The last
    group of the best grouping begins somewhere, and what is before it is grouped best.
    """
    cost, begins = [0.0], [0]
    for last, longest in enumerate(lengths, start=1):
        fewest = 0 if limit is None else max(0, last - max(1, limit // longest))
        found = {
            first: cost[first] + (last - first) * longest + each for first in range(fewest, last)
        }
        begins.append(min(found, key=found.__getitem__))
        cost.append(found[begins[-1]])
    edges = [len(lengths)]
    while edges[-1]:
        edges.append(begins[edges[-1]])
    return edges[::-1]


def micro_batches(
    sequences: Many[Sequence], rows: Many[int], tokens: int, packed: bool
) -> list[list[int]]:
    """The rows in groups that cost at most `tokens` each, but for a single longer sequence.

    Demonstrations and rollouts are not mixed, so that the gradient of each stream can be told
    apart.
    """
    groups = []
    for demonstration in (True, False):
        stream = [row for row in rows if sequences[row].demonstration is demonstration]
        groups += _filled(sequences, stream, tokens) if packed else _even(sequences, stream, tokens)
    return groups


def _filled(sequences: Many[Sequence], rows: Many[int], tokens: int) -> list[list[int]]:
    """Groups for `pack`: question by question, for the sake of what its sequences share."""
    groups: list[list[int]] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    room = 0.0
    for row in sorted(rows, key=lambda row: (sequences[row].question, row)):
        one = sequences[row]
        again = (one.question, one.prompt) in seen
        cost = len(one.response) + len(one.prompt) * (AGAIN if again else 1)
        if not groups or cost > room:
            groups.append([])
            seen, room, cost = set(), float(tokens), one.length
        groups[-1].append(row)
        seen.add((one.question, one.prompt))
        room -= cost
    return groups


def _even(sequences: Many[Sequence], rows: Many[int], tokens: int) -> list[list[int]]:
    """Groups for `pad`: of similar length, so that padding and passes together cost least."""
    order = sorted(rows, key=lambda row: (sequences[row].length, row))
    edges = cheapest([sequences[row].length for row in order], PASS * tokens, tokens)
    return [order[first:last] for first, last in pairwise(edges)]
