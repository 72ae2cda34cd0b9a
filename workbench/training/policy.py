"""The policy: a causal language model with its tokenizer, and a value head where one is needed."""

import copy
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from workbench.products import products
from workbench.recipe import Model
from workbench.resources import LOGITS
from workbench.training.attention import NAME as ROWS
from workbench.training.attention import read_rows
from workbench.training.head import Reading, input_of, left_out, read_in_parts
from workbench.training.layout import Layout, micro_batches, pack, pad
from workbench.training.sequences import Sequence
from workbench.training.team import in_shards, whole
from workbench.upge import Current

logging.disable_progress_bar()  # a worker's output is a log file

VALUE_HEAD = "value_head.safetensors"


@dataclass
class Policy:
    """A model that scores and a tokenizer that spells.

    Attributes:
        model: any Hugging Face causal model; parameters in float32.
        tokenizer: its own.
        temperature: divides the logits wherever log-probabilities are taken.
        dtype: of the computation; float32 computes as the parameters are.
        logits: how many are held at a time; see `Resources.logits`.
        value_head: a linear map from the last hidden state, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    value_head: nn.Linear | None = None
    logits: int = LOGITS

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def end(self) -> frozenset[int]:
        """The token ids that end a response."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids: Any = configured if configured is not None else self.tokenizer.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [ids])

    @property
    def pad(self) -> int:
        """The id that fills up rows; never attended to, so any will do."""
        known = self.tokenizer.pad_token_id
        return known if isinstance(known, int) else min(self.end)

    @property
    def packs(self) -> bool:
        """Whether the model reads sequences end to end."""
        return self.model.config._attn_implementation == ROWS

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every trained parameter by name, in a fixed order."""
        found = list(self.model.named_parameters())
        if self.value_head is not None:
            found += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return found

    def weights(self, dtype: torch.dtype | None = None) -> list[tuple[str, Tensor]]:
        """The model's weights by name, whole, as a rollout engine of its own loads them.

        Those that are put together of shards for it are in `dtype`; others are no copies.
        """
        found = []
        for name, parameter in self.model.named_parameters():
            there = parameter.detach()
            value = whole(there)
            found.append((name, value if value is there or dtype is None else value.to(dtype)))
        return found

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without what the tokenizer puts at the start of a prompt."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of a response without its end token."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def lay_out(self, sequences: Many[Sequence]) -> Layout:
        """Some sequences as the model reads them."""
        lay = pack if self.packs else pad
        return lay(sequences, self.pad, self.device)

    def micro_batches(
        self, sequences: Many[Sequence], rows: Many[int], tokens: int
    ) -> list[list[int]]:
        """Rows in groups that are scored together; see there."""
        return micro_batches(sequences, rows, tokens, self.packs)

    def score(
        self, layout: Layout, entropy: bool = False, entropy_gradient: bool = False
    ) -> Current:
        """Log-probabilities of the response tokens, [sequence, token], and what else is asked for.

        Entropy is in nats at the same temperature, a number alone unless `entropy_gradient`; values
        are of the state before each token.
        """
        reading = Reading(self.temperature, entropy, entropy_gradient)
        hidden, chosen, spread = self._read(layout, reading)
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden.flatten(0, 1).float()).view(chosen.shape)
        return Current(
            logprobs=layout.by_response(chosen),
            entropy=None if spread is None else layout.by_response(spread),
            values=None if values is None else layout.by_response(values),
        )

    def _read(self, layout: Layout, reading: Reading) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states of the columns that predict, and what is read of the tokens after them.

        Raises:
            ValueError: more logits than are held at a time, of a model that changes them after its
                output layer.
        """
        ids = layout.targets
        head: Any = self.model.get_output_embeddings()
        rows = max(1, self.logits // head.out_features)
        parted = ids.numel() > rows
        layer = left_out if parted else input_of
        with self._arithmetic(), self._products(), layer(head) as seen:
            output = self.model(**layout.inputs)
        hidden = seen[0]
        if not parted:
            return hidden, *reading(output.logits, ids)
        if output.logits is not seen[0]:
            raise ValueError(
                f"{self.model.name_or_path} scales or caps its logits after the output layer, so "
                f"that those of {ids.numel()} tokens cannot be computed in parts of {rows}; use "
                f"Resources(logits={ids.numel() * head.out_features}) or fewer Resources.tokens"
            )
        with self._arithmetic():
            return hidden, *read_in_parts(head, hidden, ids, rows, reading)

    def _arithmetic(self) -> torch.autocast:
        mixed = self.dtype != torch.float32
        # Its cache is one for all threads, and gradients of what it keeps are added in bfloat16.
        return torch.autocast(self.device.type, self.dtype, mixed, cache_enabled=False)

    def _products(self) -> AbstractContextManager[object]:
        # Layers that are computed again for the gradient are so outside of this, and FSDP2 wants to
        # know where a result came from.
        if self.model.is_gradient_checkpointing or in_shards(self.model):
            return nullcontext()
        return products(self.device, self.dtype)

    def frozen(self) -> "Policy":
        """A copy that is never trained: the base model of a KL penalty."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return Policy(model, self.tokenizer, self.temperature, self.dtype, logits=self.logits)

    def twin(self) -> "Policy":
        """One with the same weights, in the same memory, and gradients apart: another thread's."""
        parameters = [p for _, p in self.parameters()]
        shared: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), p.requires_grad) for p in parameters
        }
        shared |= {id(buffer): buffer for buffer in self.model.buffers()}
        model, head = copy.deepcopy((self.model, self.value_head), shared)
        return replace(self, model=model, value_head=head)


def load_policy(
    path: str,
    device: torch.device,
    dtype: str,
    temperature: float,
    values: bool,
    base: Model | None = None,
) -> Policy:
    """The policy in a folder or on the hub; a value head starts at zero unless saved beside it.

    Settings of `base` that are not None take the place of the configuration's.

    Raises:
        ValueError: such settings for a model without a rotary embedding.
    """
    config = configured(path, base)
    model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)
    read_rows(model)
    model.to(device)  # type: ignore[arg-type]
    head = None
    if values:
        head = nn.Linear(model.config.hidden_size, 1).to(device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        saved = Path(path) / VALUE_HEAD
        if saved.exists():
            from safetensors.torch import load_file

            head.load_state_dict(load_file(saved))
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.train()
    return Policy(model, tokenizer, temperature, getattr(torch, dtype), head)


def reading_settings(policy: Policy) -> dict[str, Any]:
    """The settings of the model's configuration that a `Model` may change, as they are."""
    names = ("max_position_embeddings", "rope_parameters")
    return {n: getattr(policy.model.config, n) for n in names if hasattr(policy.model.config, n)}


def configured(path: str, base: Model | None = None) -> PreTrainedConfig:
    """The configuration in a folder or on the hub, with the settings of `base` and no dropout.

    With it the policy that learns would not be the one that sampled: on policy, ratios would not
    be 1, and every estimate of a gradient would have noise that its method does not.

    Raises:
        ValueError: there are settings, and the model has no rotary embedding.
    """
    config = AutoConfig.from_pretrained(path)
    for name, value in vars(config).items():
        if name.endswith(("dropout", "pdrop", "layerdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    if base is None or (base.rope_theta is None and base.positions is None):
        return config
    rotary = getattr(config, "rope_parameters", None)
    if rotary is None:
        raise ValueError(
            f"{base} has settings of a rotary embedding, which model {base.name!r} does not have; "
            f"write model={base.name!r}"
        )
    if base.rope_theta is not None:
        config.rope_parameters = {**rotary, "rope_theta": base.rope_theta}
    if base.positions is not None:
        config.max_position_embeddings = base.positions
    return config


def pick_device(wanted: str) -> torch.device:
    """The device that `Resources.device` names; `auto` takes a GPU where there is one.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("Resources.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")
