"""Pretrains base models of the small arithmetic world, measures them and checks rebuilt ones."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from workbench.identity import conform
from workbench.problems import ExactMatch, Problem, Suite, Verdict, arithmetic
from workbench.problems.arithmetic import PROMPT
from workbench.problems.habit import Document, Glimpses, Mixture, glimpses, habit, primer
from workbench.rules import Amount, Count, OneOf, Positive, Share, Whole, require
from workbench.training.model_card import (
    Comparison,
    Pretrained,
    SuiteAccuracy,
    card,
    compare,
    read_record,
    write_record,
)

FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz+-*()=?:;\\{}., \n"
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"  # the tokens 0, 1 and 2
_PAD_ID, _END_ID = 0, 1

_MOST_TOKENS = 120  # of a response
_RESPONSES_AT_ONCE = 640

_IGNORED = -100  # the label that the model's loss leaves out
_LOG_EVERY = 50
_SAVE_EVERY = 500


@dataclass(frozen=True)
class Architecture:
    """The size of a model with tied embeddings and as many key heads as query heads."""

    layers: Count = 4
    width: Count = 128
    heads: Count = 4
    hidden: Count = 512
    positions: Count = 512
    initial_deviation: Positive = 0.08  # of weights, about 1 / sqrt(width)
    family: Annotated[str, OneOf(tuple(FAMILIES))] = "qwen2"

    def __post_init__(self) -> None:
        """Refuses an unknown family, and a width that the heads cannot share equally."""
        conform(self)
        unit = 2 * self.heads
        closest = max(1, round(self.width / unit)) * unit
        rule = f"a multiple of 2 * heads = {unit}"
        require(self.width % unit == 0, self, "width", rule, f"the nearest is {closest}")


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides what a base model becomes; the same value gives the same weights."""

    seed: Whole = 0
    tokens: Count = 3_840_000
    rows: Count = 4
    row_length: Count = 128
    learning_rate: Amount = 2e-3
    warmup: Share = 0.02
    weight_decay: Amount = 0.01
    gradient_norm: Positive = 1.0
    primer: Whole = 20_000  # documents before the mixture
    mixture: Mixture = field(default_factory=Mixture)
    rare: Glimpses = field(default_factory=Glimpses)
    rare_mixture: Mixture = field(default_factory=Mixture)  # the habit around the glimpses
    rare_tokens: Whole = 2_304_000  # of the second stream, with the schedule begun anew
    rare_learning_rate: Amount = 1.5e-3
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self) -> None:
        """Refuses fewer tokens than one step reads."""
        conform(self)
        step = self.rows * self.row_length
        rule = f"at least rows * row_length = {step}"
        require(self.tokens >= step, self, "tokens", rule, f"the nearest is {step}")

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps on either stream, as many as read no more than its tokens."""
        size = self.rows * self.row_length
        return self.tokens // size, self.rare_tokens // size


@dataclass(frozen=True)
class Batch:
    """Packed rows, all of shape `row token`; a token attends only inside its own document."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor


def build_tokenizer() -> Qwen2Tokenizer:
    """Makes every character one token; decoding gives the text back without added spaces.

    AutoTokenizer opens the tokenizer of any Qwen2 model as a Qwen2Tokenizer, whatever was saved, so
    this is one: byte-level pieces without a single merge. It drops characters that it lacks.
    """
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [byte_level.pre_tokenize_str(character)[0][0] for character in CHARACTERS]
    vocabulary = {piece: number for number, piece in enumerate([PAD, END, UNKNOWN, *pieces])}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(size: Architecture, tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """Makes an untrained model from the global random state."""
    make_config, make_model = FAMILIES[size.family]
    config = make_config(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        initializer_range=size.initial_deviation,
        pad_token_id=_PAD_ID,
        eos_token_id=_END_ID,
        bos_token_id=None,
    )
    return make_model(config)


@dataclass(frozen=True)
class Stage:
    """A stream of documents, and how many steps at which peak learning rate are trained on it."""

    documents: Iterator[Document]
    steps: int
    learning_rate: float


def stages(recipe: Pretraining) -> tuple[Stage, Stage]:
    """The habit after its primer, and then a habit with glimpses of what the first one lacks."""
    first, second = recipe.steps
    easy = primer(recipe.primer, recipe.seed)
    usual = habit(recipe.mixture, recipe.seed)
    rare = glimpses(recipe.rare_mixture, recipe.rare, recipe.seed)
    return (
        Stage(chain(easy, usual), first, recipe.learning_rate),
        Stage(rare, second, recipe.rare_learning_rate),
    )


def pretrain(
    recipe: Pretraining, out: Path, progress: Callable[[int, int, float], None] | None = None
) -> Pretrained:
    """Trains a model from nothing and saves it with its tokenizer and `pretraining.jsonl` to `out`.

    `progress` is called after every step with the step, the number of steps and the loss.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(recipe.architecture, tokenizer).train()
    losses: list[float] = []
    total = sum(recipe.steps)
    for stage in stages(recipe):
        for loss in train_stage(model, tokenizer, stage, recipe):
            losses.append(loss)
            if len(losses) % _SAVE_EVERY == 0:
                _save(model, tokenizer, losses, out)
            if progress:
                progress(len(losses), total, loss)
    _save(model, tokenizer, losses, out)
    return Pretrained(
        parameters=model.num_parameters(),
        steps=total,
        tokens=total * recipe.rows * recipe.row_length,
        seconds=time.monotonic() - started,
        first_loss=_mean(losses[:_LOG_EVERY]),
        last_loss=_mean(losses[-_LOG_EVERY:]),
        libraries=_libraries(),
    )


def train_stage(
    model: PreTrainedModel, tokenizer: Qwen2Tokenizer, stage: Stage, recipe: Pretraining
) -> Iterator[float]:
    """Trains on one stream with an optimizer of its own, yielding the loss of every step."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, weight_decay=recipe.weight_decay
    )
    for step, batch in zip(
        range(stage.steps), batches(stage.documents, recipe, tokenizer), strict=False
    ):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage.steps, recipe.warmup)
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def batches(
    documents: Iterator[Document], recipe: Pretraining, tokenizer: Qwen2Tokenizer
) -> Iterator[Batch]:
    """Packs a stream of documents into rows for ever; a document is never cut.

    A document goes to the first row with room, and the one with none begins the next batch.
    """
    rows: list[list[Document]] = [[] for _ in range(recipe.rows)]
    room = [recipe.row_length] * recipe.rows
    for document in documents:
        length = len(document.prompt) + len(document.answer) + 1
        if length > recipe.row_length:
            raise ValueError(
                f"Pretraining.row_length must hold every document, got {recipe.row_length}; "
                f"this document needs {length}"
            )
        if length > max(room):
            yield _pack(rows, recipe.row_length, tokenizer)
            rows = [[] for _ in range(recipe.rows)]
            room = [recipe.row_length] * recipe.rows
        row = next(row for row in range(recipe.rows) if room[row] >= length)
        rows[row].append(document)
        room[row] -= length


def _pack(rows: list[list[Document]], length: int, tokenizer: Qwen2Tokenizer) -> Batch:
    tokens = torch.full((len(rows), length), _PAD_ID)
    labels = torch.full((len(rows), length), _IGNORED)
    # Padding at the end of a row counts on as one more document: its own positions start at 0.
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    for row, documents in enumerate(rows):
        start = 0
        for document in documents:
            prompt = tokenizer.encode(document.prompt)
            answer = [*tokenizer.encode(document.answer), _END_ID]
            learned, stop = start + len(prompt), start + len(prompt) + len(answer)
            tokens[row, start:stop] = torch.tensor(prompt + answer)
            labels[row, learned:stop] = torch.tensor(answer)
            positions[row, start:stop] = torch.arange(stop - start)
            start = stop
        positions[row, start:] = torch.arange(length - start)
    return Batch(tokens, labels, positions)


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Returns the mean negative log likelihood of the answer tokens of a batch."""
    documents = (batch.positions == 0).cumsum(dim=1)
    same = documents[:, :, None] == documents[:, None, :]
    output = model(
        input_ids=batch.tokens,
        labels=batch.labels,
        position_ids=batch.positions,
        attention_mask=same.tril()[:, None],
        use_cache=False,
    )
    return output.loss


def _rate(step: int, steps: int, warmup: float) -> float:
    """Rises over the warm-up and then falls along half a cosine to 0."""
    share = (step + 1) / (steps + 1)
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def _save(
    model: PreTrainedModel, tokenizer: Qwen2Tokenizer, losses: list[float], out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    chunks = range(_LOG_EVERY, len(losses) + 1, _LOG_EVERY)
    lines = [{"step": at, "loss": round(_mean(losses[at - _LOG_EVERY : at]), 4)} for at in chunks]
    (out / "pretraining.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _libraries() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def measure(model_dir: Path, samples: int = 64, seed: int = 0) -> dict[str, SuiteAccuracy]:
    """Samples every problem of every suite at temperature 1 and counts the correct responses."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return {
        suite.name: _measure_suite(model, tokenizer, suite, samples)
        for suite in arithmetic(train=0).suites
    }


def check(model_dir: Path, recorded: Path, seed: int = 1) -> list[Comparison]:
    """Measures a model and compares every suite with the accuracy recorded beside another one.

    A model is the same as the recorded one if every comparison is.
    """
    record = read_record(recorded)
    measured = measure(model_dir, next(iter(record.values())).samples, seed)
    return [compare(suite, record[suite], measured[suite]) for suite in record]


def _measure_suite(model: Any, tokenizer: Any, suite: Suite, samples: int) -> SuiteAccuracy:
    at_once = max(1, _RESPONSES_AT_ONCE // samples)
    answered: list[tuple[Problem, list[str]]] = []
    for start in range(0, len(suite.problems), at_once):
        problems = suite.problems[start : start + at_once]
        answered += zip(problems, _sample(model, tokenizer, problems, samples), strict=True)
    responses = [response for _, group in answered for response in group]
    levels = {problem.level for problem in suite.problems}
    return SuiteAccuracy(
        level=levels.pop() if len(levels) == 1 else 0,
        samples=samples,
        correct=tuple(
            sum(ExactMatch()(response, problem.answer) is Verdict.CORRECT for response in group)
            for problem, group in answered
        ),
        worked=_mean([float(";" in response) for response in responses]),
        length=_mean([len(response) + 1.0 for response in responses]),
    )


@torch.inference_mode()
def _sample(
    model: Any,
    tokenizer: Any,
    problems: tuple[Problem, ...],
    samples: int,
) -> list[list[str]]:
    """Returns for every problem its sampled responses, without the end token."""
    prompts = [PROMPT.format(question=problem.question) for problem in problems]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        num_return_sequences=samples,
        max_new_tokens=_MOST_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    responses = output[:, encoded.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def rebuild(recipe: Pretraining, out: Path, name: str, samples: int = 64) -> Pretrained:
    """Pretrains and measures a model, and writes `accuracy.json` and a model card beside it."""
    torch.set_num_threads(1)  # as the records were made: sums over threads differ in the last bits
    result = pretrain(recipe, out)
    accuracy = measure(out, samples)
    write_record(accuracy, out)
    (out / "README.md").write_text(card(name, recipe, result, accuracy))
    return result
