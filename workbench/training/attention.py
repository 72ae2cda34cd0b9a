"""Attention over sequences laid end to end, for any model that takes its attention from outside."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from workbench.training.layout import Rows

NAME = "rows"
# Tokens up to which attention in bfloat16 is faster on a processor by plain matrix products: four
# times for 76 tokens and heads of 32, 1.2 times for 512; half as fast for 1,024.
SHORT = 512
# Families in which tokens meet in attention alone, by rotary positions, and which hand it all that
# the model's forward is given; another is read in padded lines until the test has it too.
FAMILIES = (
    "cohere",
    "ernie4_5",
    "gemma",
    "glm",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """torch's attention of the rows; of the lines, as ever, where there are none.

    Queries, keys and values are [line, head, column, width], and the result is
    [line, column, head, width].
    """
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    calls = zip(*(rows.split(each[0].transpose(0, 1)) for each in (query, key, value)), strict=True)
    found = [
        _call(module, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **settings)
        for q, k, v in calls
    ]
    return rows.join(found)[None], None


def _call(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **settings: Any
) -> Tensor:
    mixed = query.device.type == "cpu" and value.dtype == torch.bfloat16
    if not mixed or query.shape[2] > SHORT:
        return sdpa_attention_forward(module, query, key, value, None, **settings)[0]
    # By the function that torch's attention takes when it is told to, which tells all threads. It
    # computes in float32 whatever it is given.
    with torch.autocast("cpu", enabled=False):
        found, _ = torch.ops.aten._scaled_dot_product_attention_math(
            query.float(),
            key.float(),
            value.float(),
            is_causal=True,
            scale=settings["scaling"],
            enable_gqa=True,
        )
    return found.transpose(1, 2).to(value.dtype)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def read_rows(model: PreTrainedModel) -> bool:
    """Lets a model read sequences end to end, where it can: whether it does.

    It can where its family is a known one and every layer sees all of the past.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    whole = kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None
    if config.model_type in FAMILIES and whole:
        model.set_attn_implementation(NAME)
        return True
    return False
