import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.cli import main
from workbench.models import SHIPPED, shipped
from workbench.problems import arithmetic
from workbench.problems.habit import Mixture
from workbench.rollout.decoders import is_small_llama
from workbench.training.model_card import SuiteAccuracy, compare, read_record, write_record
from workbench.training.pretrain import (
    CHARACTERS,
    FAMILIES,
    Architecture,
    Batch,
    Pretraining,
    batches,
    build_model,
    build_tokenizer,
    measure,
    pretrain,
    stages,
)

TINY = Pretraining(
    tokens=40 * 8 * 112,
    rare_tokens=0,
    rows=8,
    row_length=112,
    learning_rate=1e-2,
    primer=0,
    architecture=Architecture(layers=1, width=32, heads=2, hidden=64),
)
EASY = replace(TINY, tokens=60 * 8 * 112, primer=20_000)


def stream(recipe: Pretraining, stage: int = 0) -> Iterator[Batch]:
    return batches(stages(recipe)[stage].documents, recipe, build_tokenizer())


def test_a_tiny_pretraining_halves_the_loss_of_a_uniform_guess_and_repeats_exactly(
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, int]] = []
    once = pretrain(EASY, tmp_path / "once", lambda step, steps, _: seen.append((step, steps)))
    pretrain(EASY, tmp_path / "again")
    uniform = math.log(len(build_tokenizer()))
    assert once.last_loss < 0.5 * uniform
    assert seen[-1] == (60, 60)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "again")]
    assert weights[0] == weights[1]


def test_a_saved_tokenizer_gives_every_text_back(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    data = arithmetic(train=50)
    texts = [problem.demonstration or "" for problem in data.train]
    for text in (CHARACTERS, "345 plus 812, x = 1.", *texts):
        encoded = tokenizer.encode(text)
        assert len(encoded) == len(text)
        assert tokenizer.decode(encoded) == text
        assert (
            tokenizer.decode([*encoded, tokenizer.eos_token_id], skip_special_tokens=True) == text
        )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_packing_learns_whole_answers_and_nothing_else() -> None:
    tokenizer = build_tokenizer()
    batch = next(stream(TINY))
    learned = batch.labels >= 0
    assert torch.equal(batch.labels[learned], batch.tokens[learned])
    for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
        answers = tokenizer.decode(labels[labels >= 0]).split("<end>")[:-1]
        prompts = tokenizer.decode(tokens).replace("<pad>", "").split("<end>")[:-1]
        assert answers == [text.split("\n")[1] for text in prompts]


def test_a_packed_document_is_read_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(TINY.architecture, tokenizer).eval()
    batch = next(stream(TINY))
    tokens, positions = batch.tokens[:1], batch.positions[:1]
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    same = (documents := (positions == 0).cumsum(dim=1))[:, :, None] == documents[:, None, :]
    packed = model(
        input_ids=tokens, position_ids=positions, attention_mask=same.tril()[:, None]
    ).logits
    start, end = starts[1], starts[2]
    alone = model(input_ids=tokens[:, start:end]).logits
    torch.testing.assert_close(packed[:, start:end], alone, atol=1e-5, rtol=1e-4)


def test_the_stream_of_batches_is_the_same_for_the_same_seed() -> None:
    def tokens(recipe: Pretraining, stage: int) -> torch.Tensor:
        return torch.stack([batch.tokens for batch in islice(stream(recipe, stage), 3)])

    other = Mixture(words=0.2)
    for stage, field in enumerate(("mixture", "rare_mixture")):
        first = tokens(TINY, stage)
        assert torch.equal(first, tokens(TINY, stage))
        assert not torch.equal(first, tokens(replace(TINY, seed=1), stage))
        assert not torch.equal(first, tokens(replace(TINY, **{field: other}), stage))
    assert not torch.equal(tokens(TINY, 0), tokens(TINY, 1))


def test_impossible_recipes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"at least rows . row_length = 768, got 10; the nearest is 768"
    ):
        Pretraining(tokens=10, rows=8, row_length=96)
    with pytest.raises(ValueError, match=r"one of qwen2, llama, got 'lama'; did you mean llama\?"):
        Architecture(family="lama")
    with pytest.raises(ValueError, match="got 30; the nearest is 32"):
        Architecture(width=30, heads=4)
    with pytest.raises(ValueError, match="row_length must hold every document, got 8"):
        next(stream(replace(TINY, row_length=8)))


def test_a_record_of_accuracy_survives_writing(tmp_path: Path) -> None:
    accuracy = {"chain": SuiteAccuracy(1, 4, (0, 4, 2), 0.5, 20.0)}
    write_record(accuracy, tmp_path)
    assert read_record(tmp_path) == accuracy
    assert (accuracy["chain"].pass_at_1, accuracy["chain"].pass_at_samples) == (0.5, 2 / 3)


def test_a_comparison_tells_chance_from_a_change() -> None:
    recorded = SuiteAccuracy(1, 64, tuple(range(10, 50)), 0.5, 20.0)
    wobbling = tuple(count + (-1) ** count * 3 for count in recorded.correct)
    worse = tuple(count - 8 - count % 3 for count in recorded.correct)
    assert compare("chain", recorded, replace(recorded, correct=wobbling)).same
    assert not compare("chain", recorded, replace(recorded, correct=worse)).same
    assert compare("chain", recorded, recorded).same


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_is_small_and_loads_as_any_model_does(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED / name)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / name)
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode(CHARACTERS)) == CHARACTERS
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert is_small_llama(model)
    assert (SHIPPED / name / "model.safetensors").stat().st_size < 5_000_000
    lines = (SHIPPED / name / "pretraining.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_is_as_accurate_as_its_card_says(name: str) -> None:
    record = read_record(SHIPPED / name)
    measured = measure(SHIPPED / name, samples=4, seed=5)
    card = (SHIPPED / name / "README.md").read_text()
    for suite, recorded in record.items():
        comparison = compare(suite, recorded, measured[suite])
        assert comparison.same, str(comparison)
        assert f"| {suite} | {recorded.level or '-'} | {recorded.pass_at_1:.1%} " in card


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pretrained_by_the_command_and_has_a_card(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study.py"
    tiny = replace(TINY, tokens=3 * 8 * 112)
    recipe = replace(tiny, architecture=replace(TINY.architecture, family=family))
    study.write_text(
        "from workbench.training.pretrain import *\n"
        "from workbench.problems.habit import *\n"
        f"models = {{'tiny': {recipe!r}}}\n"
    )
    monkeypatch.setattr("workbench.training.pretrain._MOST_TOKENS", 2)
    assert main(["pretrain", str(study), "--model", "tiny", "--out", str(tmp_path / "it")]) == 0
    assert "no tiny is shipped" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "it")
    assert model.config.model_type == family
    assert is_small_llama(model)
    card = (tmp_path / "it" / "README.md").read_text()
    assert card.startswith(f"# tiny\n\nA base model with {model.num_parameters():,} parameters")
    assert main(["pretrain", str(study), "--model", "small"]) == 2
    assert "choose one of: tiny" in capsys.readouterr().err
