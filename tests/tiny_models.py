"""Models of two random layers, of the architectures and tokenizer kinds of the paper's.

And tables with the columns of a published data set, a few rows each, in place of the hub's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from workbench import Corpus, Rows, replace
from workbench.problems import MathMatch, Verdict

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 32, the least that vLLM knows on a processor
    "num_key_value_heads": 1,
}
TEXT = "Question: What is 2 plus 3? Please reason step by step. The answer is \\boxed{5}."
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]
LLAMA_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def qwen(folder: Path) -> str:
    """A Qwen2.5-Math in small, tied embeddings and a byte-level tokenizer: its folder."""
    trained = json.loads(_bytes(QWEN_SPECIAL).to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=trained["vocab"], merges=merges, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_SPECIAL[1:]})
    config = Qwen2Config(
        **SIZES,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    return _save(folder, Qwen2ForCausalLM(config), tokenizer)


def llama(folder: Path) -> str:
    """A Llama 3.1 in small, with its scaled rotary embedding and its first token: its folder."""
    raw = _bytes(LLAMA_SPECIAL)
    first = raw.token_to_id(LLAMA_SPECIAL[0])
    raw.post_processor = processors.TemplateProcessing(
        single=f"{LLAMA_SPECIAL[0]} $A", special_tokens=[(LLAMA_SPECIAL[0], first)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=LLAMA_SPECIAL[0], eos_token=LLAMA_SPECIAL[1]
    )
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=131_072,
        rope_parameters=LLAMA_ROTARY,
        bos_token_id=first,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(folder, LlamaForCausalLM(config), tokenizer)


def _bytes(special: list[str]) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT], trainer)
    return raw


def _save(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- tables ---------------------------------------------------------------------------------------


class Lucky(MathMatch):
    """Right by luck too: random models never are by themselves, and much is about being right."""

    def __call__(self, response: str, gold: str) -> Verdict:
        said = super().__call__(response, gold)
        lucky = said is Verdict.UNPARSABLE_ANSWER and len(response) % 8 == 0
        return Verdict.CORRECT if lucky else said


def local(corpus: Corpus, folder: Path, rows: int = 12) -> Corpus:
    """The corpus with small files of the same columns in place of its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    suites = [
        replace(each, rows=_written(each.rows, folder / f"{each.name}.jsonl", 2))
        for each in corpus.suites
    ]
    training = _written(corpus.rows, folder / "train.jsonl", rows)
    small = {"rows": training, "suites": suites, "validation": 2, "train": None}
    return replace(corpus, **small, verifier=Lucky())


def _written(rows: Rows, path: Path, count: int) -> Rows:
    path.write_text("".join(json.dumps(_row(rows, n)) + "\n" for n in range(1, count + 1)))
    return replace(rows, source=str(path), revision=None, config=None, split="train")


def _row(rows: Rows, n: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column, value in _cells(rows, n):
        place, *path = column.split(".")
        at = row
        for deeper in path:
            at, place = at.setdefault(place, {}), deeper
        at[place] = value
    return row


def _cells(rows: Rows, n: int) -> Iterator[tuple[str, Any]]:
    question = f"What is {n} plus {n}?"
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": question}]
    yield rows.question, chat if rows.question == "prompt" else question
    texts = [str(2 * n), str(2 * n + 1), str(2 * n + 2), str(2 * n + 3)]
    if rows.labels is not None:
        yield rows.options[0], texts
        yield rows.labels, ["A", "B", "C", "D"]
        yield rows.answer, "A"
    elif rows.options:
        yield from zip(rows.options, texts, strict=True)
    else:
        solution = f"{n} and {n} make \\boxed{{{2 * n}}}"
        worked = rows.answer in (rows.demonstration, "solution")
        yield rows.answer, solution if worked else str(2 * n)
        if rows.demonstration not in (None, rows.answer):
            yield rows.demonstration, solution
    if rows.level is not None:
        yield rows.level, f"Level {n % 5 + 1}"
