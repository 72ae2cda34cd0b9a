"""The policy: a causal language model with its tokenizer, and a value head where one is needed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

from workbench.recipe import Model
from workbench.training.sequences import Padded
from workbench.training.team import whole
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
        value_head: a linear map from the last hidden state, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    value_head: nn.Linear | None = None

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

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every trained parameter by name, in a fixed order."""
        found = list(self.model.named_parameters())
        if self.value_head is not None:
            found += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return found

    def weights(self, dtype: torch.dtype | None = None) -> list[tuple[str, Tensor]]:
        """The model's weights by name, whole, as a rollout engine of its own loads them."""
        found = ((name, whole(p.detach())) for name, p in self.model.named_parameters())
        return [(name, value if dtype is None else value.to(dtype)) for name, value in found]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without what the tokenizer puts at the start of a prompt."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of a response without its end token."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def score(
        self, padded: Padded, entropy: bool = False, entropy_gradient: bool = False
    ) -> Current:
        """Log-probabilities of the response tokens, [sequence, token], and what else is asked for.

        Entropy is in nats at the same temperature, a number alone unless `entropy_gradient`; values
        are of the state before each token.
        """
        kept = padded.ids.shape[1] - padded.first + 1  # the token before a column predicts it
        with (
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            _input_of(self.model.get_output_embeddings()) as hidden,  # type: ignore[arg-type]
        ):
            output = self.model(input_ids=padded.ids, logits_to_keep=kept, use_cache=False)
        logits = output.logits[:, :-1].float()
        if self.temperature != 1:
            logits = logits / self.temperature
        total = logits.logsumexp(dim=-1)
        chosen = logits.gather(2, padded.ids[:, padded.first :, None])[:, :, 0] - total
        spread = None
        if entropy:
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                spread = padded.by_response(_entropy(logits, total))
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden[0][:, :-1].flatten(0, 1).float()).view(chosen.shape)
        return Current(
            logprobs=padded.by_response(chosen),
            entropy=spread,
            values=None if values is None else padded.by_response(values),
        )

    def frozen(self) -> "Policy":
        """A copy that is never trained: the base model of a KL penalty."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return Policy(model, self.tokenizer, self.temperature, self.dtype)


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module is given inside, one call after the other."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _entropy(logits: Tensor, total: Tensor) -> Tensor:
    logprobs = logits - total[:, :, None]
    return -(logprobs.exp() * logprobs).sum(dim=-1)


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
    """The configuration in a folder or on the hub, with the settings of `base`.

    Raises:
        ValueError: there are settings, and the model has no rotary embedding.
    """
    config = AutoConfig.from_pretrained(path)
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
