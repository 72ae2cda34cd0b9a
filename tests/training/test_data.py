"""What a run makes of its data: prompts as tokens, long ones dropped, all of it recorded."""

import hashlib
import json
from pathlib import Path

import pytest
import tiny_models
from transformers import AutoTokenizer

from workbench import Benchmark, Corpus, Data, Recipe, Rows, replace
from workbench.models import locate
from workbench.problems import Chat, ExactMatch, Text, loaders
from workbench.records import read_json
from workbench.resources import Resources
from workbench.schema import METRICS, File
from workbench.training.data import end_id, fitting, open_data, prompt_ids
from workbench.training.loop import train
from workbench.training.opening import open_trainer

UNGRADABLE = "verdict/ungradable"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(locate("arithmetic-1m"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """The small world written to a file, as anybody's problems would be."""
    problems = loaders.load(Data("arithmetic", train=40)).train
    rows = [
        {"problem": p.question, "answer": p.answer, "level": p.level, "text": p.demonstration}
        for p in problems
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Rows(str(path), demonstration="text", level="level")
    return Corpus(
        "written",
        table,
        validation=8,
        suites=(Benchmark("again", replace(table, demonstration=None)),),
        prompt=Text("{question}?\n"),
        verifier=ExactMatch(),
        longest=None,
    )


def test_a_plain_prompt_has_the_tokens_of_its_text(tokenizer) -> None:
    ids = prompt_ids(tokenizer, Text("{question}?\n"), "345+812")
    assert ids == tuple(tokenizer("345+812?\n")["input_ids"])


def test_a_chat_is_rendered_by_the_tokenizers_template(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"arithmetic-1m has no chat template.*Text"):
        prompt_ids(tokenizer, Chat(), "345+812")
    tokenizer.chat_template = TEMPLATE
    prompt = Chat("{question}?", system="add", start="so ")
    text = "system:add\nuser:345+812?\nassistant:so "
    assert prompt_ids(tokenizer, prompt, "345+812") == tuple(
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
# The tokenizer's own end, what ends a response, the prompt; by hand, what a demonstration ends in.
ENDS = {
    "the tokenizer's": ("<|im_end|>", ["<|endoftext|>", "<|im_end|>"], Text("{question}"), -1),
    "the first, whose number is lower": ("<|endoftext|>", ["<|endoftext|>", "<|im_end|>"],
                                         Text("{question}"), 0),
    "the turn's": ("<|endoftext|>", ["<|endoftext|>", "<|im_end|>"], Chat(), -1),
    "a turn's that ends no response": ("<|endoftext|>", ["<|endoftext|>"], Chat(), 0),
    "the only one": ("<|endoftext|>", ["<|im_end|>"], Text("{question}"), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_a_demonstration_ends_as_a_response_is_meant_to(case, tmp_path) -> None:
    own, ends, prompt, place = ENDS[case]
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.qwen(tmp_path))
    tokenizer.eos_token, tokenizer.chat_template = own, TURNS
    ids = tokenizer.convert_tokens_to_ids(ends)
    assert end_id(tokenizer, prompt, frozenset(ids)) == ids[place]


def test_a_start_token_is_there_once(tokenizer) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    tokenizer.add_special_tokens({"bos_token": "^"})
    ids = prompt_ids(tokenizer, Chat(), "345")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_long_training_problems_are_dropped_and_counted_and_tests_are_kept(
    tokenizer, corpus: Corpus
) -> None:
    whole = loaders.load(corpus)
    sizes = [len(prompt_ids(tokenizer, whole.prompt, p.question)) for p in whole.train]
    longest = sorted(sizes)[len(sizes) // 2]
    data = fitting(replace(corpus, longest=longest), tokenizer)
    assert len(data.train) == sum(size <= longest for size in sizes)
    left = 32 + 8 - len(data.train) - len(data.validation)
    assert data.origins[0].left_out == {
        loaders.HELD_OUT: 8,
        f"prompt over {longest} tokens": left,
    }
    assert data.suites == whole.suites
    with pytest.raises(ValueError, match="every training problem"):
        fitting(replace(corpus, longest=1), tokenizer)


def test_a_corpus_is_trained_on_graded_and_recorded(
    open_run, small: Recipe, corpus: Corpus
) -> None:
    recipe = replace(small, data=corpus, steps=2)
    run = open_run(recipe)
    trainer = open_trainer(run, Resources())
    train(trainer, run)
    recorded = read_json(run.path / File.DATA)
    assert recorded["parts"]["train"]["problems"] == 32
    assert recorded["parts"]["train"]["demonstrations"] == 32
    assert recorded["origins"][0]["revision"] is not None
    again = next(each for each in recorded["overlap"] if each["suite"] == "again")
    assert len(again["shared"]) >= 32
    row = run.rows()[-1]
    counted = {k: v for k, v in row.items() if k.startswith("verdict/") and k != UNGRADABLE}
    assert counted.keys() <= METRICS.keys()
    assert sum(counted.values()) == recipe.questions * recipe.rollouts
    assert counted["verdict/correct"] == row["reward/mean"] * recipe.questions * recipe.rollouts


def test_runs_of_one_study_have_the_same_revision_of_a_table_that_is_not_pinned(
    open_run, small: Recipe, corpus: Corpus, tokenizer
) -> None:
    recipe = replace(small, data=corpus)
    first = open_run(recipe)
    open_data(first, tokenizer)
    open_data(open_run(recipe, 1), tokenizer)
    path = Path(corpus.rows.source)
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    loaders.load.cache_clear()
    with pytest.raises(ValueError, match=rf"is at revision .*{first.path}.*Rows.revision"):
        open_data(open_run(replace(recipe, steps=9), 2), tokenizer)
    pinned = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = replace(corpus.rows, revision=pinned)
    suites = [
        replace(each, rows=replace(each.rows, revision=pinned))
        for each in corpus.suites
        if each.rows.source == corpus.rows.source
    ]
    meant = replace(corpus, rows=rows, suites=suites)
    open_data(open_run(replace(recipe, data=meant), 2), tokenizer)


def test_a_run_goes_on_with_the_data_that_it_was_begun_with(
    open_run, small: Recipe, corpus: Corpus, tokenizer
) -> None:
    run = open_run(replace(small, data=corpus))
    first = open_data(run, tokenizer)
    assert open_data(run, tokenizer) == first
    path = Path(corpus.rows.source)
    lines = path.read_text().splitlines()
    changed = json.dumps({**json.loads(lines[0]), "answer": "000"})
    path.write_text("\n".join([changed, *lines[1:]]))
    loaders.load.cache_clear()
    with pytest.raises(ValueError, match=r"changed since it was begun.*again"):
        open_data(run, tokenizer)
