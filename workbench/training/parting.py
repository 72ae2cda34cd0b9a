"""The gradient of one pass, told apart by block while it is made.

The gradient of a layer that acts on every token alone is a sum over tokens, and a token is in one
block of questions: the parts of all blocks come from one pass, the very pass that would be made
without. A matrix's part is the sum over tokens of an input times the gradient of an output. Inputs
are replaced by a few sums of theirs with random signs, which costs a fraction of the part and keeps
products of parts on average. A vector's part is kept whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.training.layout import Layout
from workbench.training.sums import VOCABULARY, sums

# An update measures one in so many of the norms, of the biases, and of the layers wider than the
# model, the MLP's, which stands for them: 2%, under 1% and 17% of the square, and most of the work.
DRAWN = 8


@dataclass(frozen=True)
class Tokens:
    """Which rows, of those that a layer is called with, are whose: [first, last) of a part."""

    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, counts: Sequence[int], parts: Sequence[int]) -> "Tokens":
        """Of sequences that follow each other, with so many rows each."""
        ends = list(accumulate(counts, initial=0))
        runs = [list(run) for _, run in groupby(range(len(parts)), key=parts.__getitem__)]
        return cls(tuple((parts[run[0]], ends[run[0]], ends[run[-1] + 1]) for run in runs))

    def after(self, count: int) -> "Tokens":
        """Those of a call that follows others, with `count` rows together."""
        left = [(part, max(0, a - count), b - count) for part, a, b in self.spans if b > count]
        return Tokens(tuple(left))

    def among(self, rows: int) -> Iterator[tuple[int, slice]]:
        """Parts, and where they are in a call with `rows` rows.

        These may be fewer than there are tokens, or several of each, as of a layer that sees heads.
        """
        each = max(1, rows // self.spans[-1][2])
        for part, first, last in self.spans:
            if each * first < rows:
                yield part, slice(each * first, min(rows, each * last))


class _Parts:
    """The parts of one parameter, [part, row, column]: of a matrix a row a sum, of a vector one.

    Attributes:
        scale: of what is added: the square root of how many parameters it stands for; 0 where
            another stands for it.
    """

    scale = 1.0

    def __init__(self, columns: int, inputs: int, sums: int | None) -> None:
        self.rows, self.columns = min(inputs, sums or inputs), columns
        self.inputs = inputs if self.rows < inputs else 0  # of which signs are drawn
        self.added = self.signs = torch.zeros(0)

    def summed(self, values: Tensor) -> Tensor:
        """Sums [..., row] of inputs [..., input] with signs; the inputs where they are kept."""
        return values @ self.signs.to(values.dtype).T if self.inputs else values

    def add(self, left: Tensor, right: Tensor, tokens: Tokens) -> None:
        """Adds the products of the rows of two matrices to the parts that the rows are in."""
        left, right = left.flatten(0, -2), right.flatten(0, -2)
        if right.device.type == "cpu":  # else oneDNN makes a program for each part's number of rows
            right = right.float()
        left = left.to(right.dtype)
        for part, here in tokens.among(len(right)):
            if right.dtype == torch.float32:
                self.added[part].addmm_(left[here].T, right[here])
            else:
                self.added[part] += left[here].T @ right[here]


@dataclass
class _Layer(ABC):
    """How the parts of a layer's parameters, `weight` and `bias`, are found."""

    weight: _Parts
    bias: _Parts | None

    def keep(self, given: Tensor) -> Tensor:
        """What of the input is kept until the gradient of the output is there: all, unless less."""
        return given

    @abstractmethod
    def add(self, kept: Tensor, gradient: Tensor, tokens: Tokens) -> None:
        """Adds what a call adds to the weight's parts."""

    @property
    def measured(self) -> bool:
        """Whether anything of it is, in this update."""
        return any(parts is not None and parts.scale for parts in (self.weight, self.bias))

    def add_all(self, kept: Tensor, gradient: Tensor, tokens: Tokens) -> None:
        """Adds what a call adds to the parts that are measured."""
        if self.weight.scale:
            self.add(kept, gradient, tokens)
        if self.bias is not None and self.bias.scale:
            scale = gradient.new_full((*gradient.shape[:-1], 1), self.bias.scale)
            self.bias.add(scale, gradient, tokens)


@dataclass
class _Linear(_Layer):
    # The last input, its sums, and whose signs: layers with one input have its sums in common.
    recent: list[tuple[Tensor, Tensor, _Parts]] = field(default_factory=list)

    def keep(self, given: Tensor) -> Tensor:
        if not self.weight.scale:
            return given.new_empty(0)
        if self.recent and self.recent[0][0] is given:
            self.weight.signs = self.recent[0][2].signs
        else:
            self.recent[:] = [(given, self.weight.summed(given), self.weight)]
        sums = self.recent[0][1]
        return sums if self.weight.scale == 1 else self.weight.scale * sums

    def add(self, kept: Tensor, gradient: Tensor, tokens: Tokens) -> None:
        self.weight.add(kept, gradient, tokens)


@dataclass
class _Embedding(_Layer):
    padding: int | None = None

    def add(self, kept: Tensor, gradient: Tensor, tokens: Tokens) -> None:
        ids, sums = kept.flatten(), self.weight.summed(gradient.flatten(0, -2))
        if self.padding is not None:
            sums = sums * (ids != self.padding)[:, None]
        for part, here in tokens.among(len(ids)):
            self.weight.added[part].index_add_(1, ids[here], sums[here].T.float())


@dataclass
class _Norm(_Layer):
    """Its weight's gradient is the output's times the input, less its mean, over its length.

    In a norm by the root of the mean square no mean is taken off.
    """

    centred: bool = False
    epsilon: float = 0.0

    def add(self, kept: Tensor, gradient: Tensor, tokens: Tokens) -> None:
        given = kept.float()
        if self.centred:
            given = given - given.mean(dim=-1, keepdim=True)
        length = torch.linalg.vector_norm(given, dim=-1, keepdim=True)
        inverse = (length.square() / given.shape[-1] + self.epsilon).rsqrt()
        self.weight.add(self.weight.scale * inverse, gradient.float() * given, tokens)


class Parting:
    """The parts of a model's gradient, by block.

    Args:
        model: one that `can_part`.
        sums: of each matrix's inputs; None keeps every part whole.

    Attributes:
        parts: [part, number], what has been added up since `begin`.
    """

    def __init__(self, model: PreTrainedModel, sums: int | None) -> None:
        self._width: int = model.config.get_text_config().hidden_size
        self._device = next(model.parameters()).device
        self._sums = sums
        self._places: dict[int, _Parts] = {}  # by parameter, which two layers may share
        self._light: dict[str, list[_Parts]] = {"norm": [], "bias": [], "wide": []}
        self._recent: list[tuple[Tensor, Tensor, _Parts]] = []
        self._tokens: tuple[Tokens, Tokens] | None = None
        self._head = model.get_output_embeddings()
        self._seen = 0  # rows that the output layer was called with
        self.parts = torch.zeros(0)
        for module in _layers(model):
            module.register_forward_hook(partial(self._tap, self._layer(module)))

    def begin(self, parts: int, seed: int) -> None:
        """Begins anew with `parts` parts, and signs that `seed` decides."""
        places = self._places.values()
        sizes = [place.rows * place.columns for place in places]
        if self.parts.shape == (parts, sum(sizes)):
            self.parts.zero_()  # another beside it would take as much again
        else:
            self.parts = torch.zeros(parts, sum(sizes), device=self._device)
        chance = torch.Generator().manual_seed(seed)
        for light in self._light.values() if self._sums is not None else ():
            count, drawn = len(light), -(-len(light) // DRAWN)
            for place, which in enumerate(torch.randperm(count, generator=chance).tolist()):
                light[which].scale = (count / drawn) ** 0.5 if place < drawn else 0.0
        generator = torch.Generator(self._device).manual_seed(seed)
        for place, added in zip(places, self.parts.split(sizes, dim=1), strict=True):
            place.added = added.unflatten(1, (place.rows, place.columns))
            signs = torch.empty(place.inputs, place.rows, device=self._device)
            signs.random_(0, 2, generator=generator).sub_(0.5).mul_(2 / place.rows**0.5)
            place.signs = signs.T.contiguous()  # a product with few columns is slow the other way

    @contextmanager
    def watch(self, layout: Layout, parts: Sequence[int]) -> Iterator[None]:
        """Parts the gradient that is computed inside: of sequences in a layout, with their parts.

        Forward and backward have to be inside.
        """
        self._tokens = Tokens.of(layout.columns, parts), Tokens.of(layout.predictions, parts)
        self._seen = 0
        try:
            yield
        finally:
            self._tokens = None
            self._recent.clear()

    def _tap(
        self, layer: _Layer, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if self._tokens is None or not output.requires_grad or not layer.measured:
            return
        if "forward" in vars(module):
            return  # an output layer that is left out
        tokens, predictions = self._tokens
        if module is self._head:
            tokens = predictions.after(self._seen)
            self._seen += output.shape[:-1].numel()
        with torch.no_grad():
            kept = layer.keep(arguments[0])
        output.register_hook(lambda gradient: layer.add_all(kept, gradient, tokens))

    def _layer(self, module: Any) -> _Layer:
        kind = _kind(module)
        vocabulary = kind == "embedding" or module is self._head
        sums = self._sums
        if vocabulary and sums is not None:
            sums *= VOCABULARY
        wide = kind == "linear" and max(module.in_features, module.out_features) > self._width
        light = None if vocabulary else "norm" if kind == "norm" else "wide" if wide else None
        given = getattr(module, "bias", None)
        both = (
            self._place(module.weight, sums, light),
            None if given is None else self._place(given, sums, None if vocabulary else "bias"),
        )
        layer: _Layer
        match kind:
            case "linear":
                layer = _Linear(*both, recent=self._recent)
            case "embedding":
                layer = _Embedding(*both, padding=module.padding_idx)
            case _:
                centred = not type(module).__name__.endswith("RMSNorm")
                epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
                layer = _Norm(*both, centred=centred, epsilon=epsilon)
        return layer

    def _place(self, parameter: Tensor, sums: int | None, light: str | None) -> _Parts:
        if id(parameter) not in self._places:
            inputs = parameter.shape[1] if parameter.ndim > 1 else 1
            self._places[id(parameter)] = place = _Parts(parameter.shape[0], inputs, sums)
            if light is not None:
                self._light[light].append(place)
        return self._places[id(parameter)]


def can_part(model: nn.Module) -> bool:
    """Whether every parameter is one of a layer that acts on each token alone, of a known kind.

    That tokens meet in attention alone is for the caller to know.
    """
    return all(_kind(module) is not None for module in _layers(model))


def sums_of(model: nn.Module) -> int:
    """How many sums are taken of each matrix's inputs."""
    return sums(sum(p.ndim > 1 for p in model.parameters()))


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that have parameters of their own."""
    return [each for each in model.modules() if any(True for _ in each.parameters(recurse=False))]


def _kind(module: Any) -> str | None:
    # Exactly these: a class derived from one may compute something else.
    if type(module) is nn.Linear:
        return "linear"
    if type(module) is nn.Embedding:
        return "embedding"
    if type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and module.weight.ndim == 1:
        return "norm"
    return None
