"""Decoders: a causal model fed one token a row, its keys and values kept in place.

`ModelDecoder` runs any Hugging Face causal model through its own forward. `LlamaDecoder` writes the
same arithmetic out for the Llama and Qwen2 families, because a small model spends most of a step on
what surrounds its matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.cache_utils import DynamicLayer

from workbench.products import linear

PLAIN_ROTARY = ("default", "linear", "llama3")  # angles that do not depend on the length read
SMALL = 200_000_000  # parameters up to which a second copy of the weights is no burden
PIECE = 16  # columns that are added to a cache at least, and a share of those there: 1 / 16


class Decoder(Protocol):
    """Rows that are all equally far into their responses; made by `open_decoder`.

    Attributes:
        logits: [row, vocabulary], of each row's next token.
    """

    logits: Tensor

    def keep(self, rows: Tensor) -> None:
        """Lets all rows go but these, given in ascending order."""
        ...

    def step(self, tokens: Tensor) -> None:
        """Feeds one token a row, [row]."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What was read: prompts padded on the left, [prompt, column], and where it led.

    Attributes:
        cache: keys and values of every layer.
        logits: [prompt, vocabulary], of the first response token.
        attended: 0 where a prompt is padded.
        lengths: [prompt], in tokens.
    """

    cache: DynamicCache
    logits: Tensor
    attended: Tensor
    lengths: Tensor


def open_decoder(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[int],
    room: int,
    pad: int,
) -> Decoder:
    """Reads the prompts once and makes `samples` rows of each, with room for `room` tokens."""
    read = _read(model, prompts, pad)
    device = read.logits.device
    source = torch.arange(len(prompts), device=device)
    source = source.repeat_interleave(torch.tensor(samples, device=device))
    kind = LlamaDecoder if is_small_llama(model) else ModelDecoder
    return kind(model, read, source, room)


def is_small_llama(model: PreTrainedModel) -> bool:
    """Whether a model is exactly what `LlamaDecoder` computes, and small enough to gain by it."""
    config: Any = model.config
    return (
        type(model) in (LlamaForCausalLM, Qwen2ForCausalLM)
        and model.num_parameters() <= SMALL
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in PLAIN_ROTARY
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and all(type(m) is nn.Linear for n, m in model.named_modules() if n.endswith("_proj"))
    )


def _read(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prompts:
    device = next(model.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    attended = torch.zeros(len(prompts), width, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt) :] = torch.tensor(prompt)
        attended[index, width - len(prompt) :] = 1
    ids, attended = ids.to(device), attended.to(device)
    output = model(
        input_ids=ids,
        attention_mask=attended,
        position_ids=(attended.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    )
    return Prompts(output.past_key_values, output.logits[:, -1], attended, attended.sum(dim=1))


class Buffer:
    """Keys or values [row, head, column, width], written in place, with room for `room` columns.

    The room is added piece by piece: products with what is there run several times faster where
    it lies end to end than where each row has all of its room.

    Attributes:
        data: what is written, and then zeros.
        used: columns that are written.
    """

    def __init__(self, start: Tensor, rows: Tensor, room: int) -> None:
        self.used = start.shape[2]
        self.most = self.used + room
        self.data = start[rows]

    @property
    def written(self) -> Tensor:
        """The columns that are."""
        return self.data[:, :, : self.used]

    def append(self, column: Tensor) -> None:
        """Writes one column [row, head, width]."""
        if self.used == self.data.shape[2]:
            rows, heads, used, width = self.data.shape
            more = min(max(PIECE, used // PIECE), self.most - used)
            grown = self.data.new_empty(rows, heads, used + more, width)
            grown[:, :, :used], grown[:, :, used:] = self.data, 0
            self.data = grown
        self.data[:, :, self.used] = column
        self.used += 1

    def keep(self, rows: Tensor) -> None:
        """Lets all rows go but these."""
        self.data = self.data[rows]


# --- any model ------------------------------------------------------------------------------------


class InPlaceLayer(DynamicLayer):
    """A layer of a `DynamicCache` that writes into buffers instead of making itself anew."""

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self.key_buffer = Buffer(layer.keys, rows, room)
        self.value_buffer = Buffer(layer.values, rows, room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.key_buffer.append(key_states[:, :, 0])
        self.value_buffer.append(value_states[:, :, 0])
        self.keys, self.values = self.key_buffer.written, self.value_buffer.written
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_buffer.keep(indices)
        self.value_buffer.keep(indices)


class ModelDecoder:
    """Any causal model, through its own forward.

    Layers that do more than remember (sliding windows, recurrent states) keep their own cache.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, source: Tensor, room: int) -> None:
        self.model, self.cache = model, prompts.cache
        for index, layer in enumerate(self.cache.layers):
            if type(layer) is DynamicLayer:
                self.cache.layers[index] = InPlaceLayer(layer, source, room)
            else:
                layer.batch_select_indices(source)  # type: ignore[attr-defined]
        self.logits = prompts.logits[source]
        self.attended = functional.pad(prompts.attended[source], (0, room), value=1)
        self.position = prompts.lengths[source]
        self.columns = prompts.attended.shape[1]

    def keep(self, rows: Tensor) -> None:
        """Lets all rows go but these, given in ascending order."""
        for layer in self.cache.layers:
            layer.batch_select_indices(rows)  # type: ignore[attr-defined]
        self.attended, self.position = self.attended[rows], self.position[rows]

    def step(self, tokens: Tensor) -> None:
        """Feeds one token a row, [row], through the model's own forward."""
        self.columns += 1
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.attended[:, : self.columns],
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        self.logits = output.logits[:, -1]


# --- the Llama and Qwen2 families -----------------------------------------------------------------


class Linear:
    """Linear maps of the same input side by side, copied column by column: faster to read so."""

    def __init__(self, *layers: nn.Linear) -> None:
        self.weight = torch.cat([layer.weight for layer in layers]).T.contiguous().T
        self.bias = None
        if layers[0].bias is not None:
            self.bias = torch.cat([layer.bias for layer in layers])

    def __call__(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


@dataclass
class Block:
    """One layer: its weights and its cache."""

    norm: Tensor
    project: Linear
    output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    keys: Buffer
    values: Buffer


class LlamaDecoder:
    """Llama and Qwen2, one token a row: fused projections, angles looked up, no mask made anew."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, source: Tensor, room: int) -> None:
        config, inner = model.config, model.model
        cache: Any = prompts.cache.layers
        self.width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.epsilon, self.scale = config.rms_norm_eps, self.width**-0.5
        self.embedding, self.norm = inner.embed_tokens.weight, inner.norm.weight
        self.head = Linear(model.lm_head)
        self.blocks = [
            Block(
                layer.input_layernorm.weight,
                Linear(*(getattr(layer.self_attn, f"{name}_proj") for name in "qkv")),
                Linear(layer.self_attn.o_proj),
                layer.post_attention_layernorm.weight,
                Linear(layer.mlp.gate_proj),
                Linear(layer.mlp.up_proj),
                Linear(layer.mlp.down_proj),
                Buffer(cached.keys, source, room),
                Buffer(cached.values, source, room),
            )
            for layer, cached in zip(inner.layers, cache, strict=True)
        ]
        self.logits = prompts.logits[source]
        self.position = prompts.lengths[source]
        columns = prompts.attended.shape[1] + room
        self.cos, self.sin = _angles(inner, columns)
        self.mask = _mask(prompts.attended, source, columns, cache[0].keys.dtype)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Lets all rows go but these, given in ascending order."""
        for block in self.blocks:
            block.keys.keep(rows)
            block.values.keep(rows)
        self.position = self.position[rows]
        self.mask = self.mask if len(self.mask) == 1 else self.mask[rows]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> None:
        """Feeds one token a row, [row], through the layers written out here."""
        hidden = self.embedding[tokens]
        self.mask[..., self.blocks[0].keys.used] = 0
        angles = self.cos[self.position, None], self.sin[self.position, None]
        for block in self.blocks:
            heads = block.project(self._normed(hidden, block.norm))
            hidden = hidden + block.output(self._attend(heads, block, angles))
            normed = self._normed(hidden, block.mlp_norm)
            gated = functional.silu(block.gate(normed), inplace=True).mul_(block.up(normed))
            hidden = hidden + block.down(gated)
        self.position = self.position + 1
        self.logits = self.head(self._normed(hidden, self.norm))

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.epsilon)

    def _attend(self, heads: Tensor, block: Block, angles: tuple[Tensor, Tensor]) -> Tensor:
        heads = heads.view(len(heads), -1, self.width)
        turned = _rotate(heads[:, : self.queries + self.keys], *angles)
        block.keys.append(turned[:, self.queries :])
        block.values.append(heads[:, self.queries + self.keys :])
        keys, values = block.keys.data, block.values.data
        # Queries that share keys are the rows of one product.
        queries = turned[:, : self.queries].unflatten(1, (self.keys, -1))
        scores = torch.add(self.mask[..., : keys.shape[2]], queries @ keys.mT, alpha=self.scale)
        return (scores.softmax(dim=-1) @ values).view(len(heads), -1)


def _angles(inner: Any, columns: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [position, width / 2] of the rotary embedding, which repeats its halves."""
    weight = inner.embed_tokens.weight
    cos, sin = inner.rotary_emb(weight, torch.arange(columns, device=weight.device)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _mask(attended: Tensor, source: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores [row, 1, 1, column]; [1, ...] where no prompt is padded.

    Columns after the prompts are shut until they are written.
    """
    rows = attended[:1] if bool(attended.all()) else attended[source]
    closed = functional.pad(rows == 0, (0, columns - rows.shape[1]), value=True)
    shut = torch.zeros(closed.shape, dtype=dtype, device=closed.device)
    return shut.masked_fill_(closed, float("-inf"))[:, None, None]
