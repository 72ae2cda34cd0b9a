"""A run's data: problems as prompts of tokens, those that are too long dropped, all recorded."""

import logging
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.problems import Chat, Corpus, Dataset, Problem, Prompt
from workbench.problems.contamination import overlaps
from workbench.problems.loaders import load
from workbench.problems.problem import Origin, digest
from workbench.recipe import Data
from workbench.records import Run, read_json, write_json
from workbench.schema import File

log = logging.getLogger(__name__)

ANSWER = "answer"  # of an assistant, to see what a chat template has after it


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: str
) -> tuple[int, ...]:
    """Token ids of a question as it is asked, with what the tokenizer puts before every text.

    Raises:
        ValueError: a `Chat` for a tokenizer without a chat template.
    """
    if isinstance(prompt, Chat):
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template for {prompt}; "
                "give the text itself, as Text(...) or one of workbench.problems.prompts"
            )
        text = tokenizer.apply_chat_template(
            prompt(question), add_generation_prompt=True, tokenize=False
        )
        return tuple(tokenizer(f"{text}{prompt.start}", add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
    return tuple(tokenizer(prompt(question), add_special_tokens=True)["input_ids"])  # type: ignore[arg-type]


def end_id(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ends: Collection[int]) -> int:
    """The token that a demonstration ends in: of those that end a response, the one that is meant.

    That is what the chat template ends an answer with, for a `Chat`; else the tokenizer's own end;
    else, where neither ends a response, the first that does.
    """
    wanted: list[Any] = [tokenizer.eos_token_id]
    if isinstance(prompt, Chat):
        turns = [*prompt("question"), {"role": "assistant", "content": ANSWER}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        after = tokenizer(text.rpartition(ANSWER)[2], add_special_tokens=False)["input_ids"]
        wanted = [*after, *wanted]
    return next((token for token in wanted if token in ends), min(ends))


def open_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The data of a run as the model can read it; recorded in `data.json` the first time.

    Raises:
        ValueError: what is loaded is not what the run was begun with; or a table without a pinned
            revision is not the one that another run of the tracking folder was begun with.
    """
    recipe = run.recipe()
    data = fitting(recipe.data, tokenizer)
    now, path = description(data), run.path / File.DATA
    if path.exists():
        _check_unchanged(now, read_json(path), run)
    else:
        _check_others(now, run)
        write_json(path, {**now, "overlap": [asdict(each) for each in overlaps(data)]})
    return data


def fitting(source: Data | Corpus, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The data without training and validation problems whose prompt is longer than allowed.

    Test problems stay, whatever their length: a score is over all of a suite.
    """
    data = load(source)
    longest = source.longest if isinstance(source, Corpus) else None
    if longest is None:
        return data
    kept = {
        part: tuple(p for p in problems if fits(tokenizer, data.prompt, p, longest))
        for part, problems in (("train", data.train), ("validation", data.validation))
    }
    dropped = sum(map(len, (data.train, data.validation))) - sum(map(len, kept.values()))
    if dropped:
        log.info("%s: %d problems have prompts of over %d tokens", data.name, dropped, longest)
    if not kept["train"]:
        raise ValueError(
            f"every training problem of {data.name!r} has a prompt of more than {longest} tokens; "
            "use a larger Corpus.longest"
        )
    return replace(data, **kept, origins=_counted(data, kept, longest))


def fits(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, problem: Problem, longest: int
) -> bool:
    """Whether the problem's prompt has at most that many tokens."""
    return len(prompt_ids(tokenizer, prompt, problem.question)) <= longest


def _counted(
    data: Dataset, kept: dict[str, tuple[Problem, ...]], longest: int
) -> tuple[Origin, ...]:
    """The origins with the dropped problems among what is left out, held-out ones in `train`'s."""
    reason = f"prompt over {longest} tokens"
    parts = {origin.part for origin in data.origins}
    counts = {part: len(data.parts[part]) - len(problems) for part, problems in kept.items()}
    if "validation" not in parts:
        counts["train"] += counts.pop("validation")
    return tuple(
        replace(each, left_out={**each.left_out, reason: counts[each.part]})
        if counts.get(each.part)
        else each
        for each in data.origins
    )


def description(data: Dataset) -> dict[str, Any]:
    """What a data set is, as plain values: sizes and digests by part, and where they are from."""
    parts = {
        name: {
            "problems": len(problems),
            "demonstrations": sum(p.demonstration is not None for p in problems),
            "sha256": digest(problems),
        }
        for name, problems in data.parts.items()
    }
    return {"name": data.name, "parts": parts, "origins": [asdict(o) for o in data.origins]}


def _check_unchanged(now: dict[str, Any], recorded: dict[str, Any], run: Run) -> None:
    parts = recorded["parts"]
    changed = [name for name, part in now["parts"].items() if parts.get(name) != part]
    if changed:
        raise ValueError(
            f"the data of {run.path} changed since it was begun ({', '.join(changed)}): "
            f"{parts.get(changed[0])} then, {now['parts'][changed[0]]} now; restore it, or name "
            "what is there now in Rows.revision, which makes it another run"
        )


def _check_others(now: dict[str, Any], run: Run) -> None:
    """The first run with a table that is not pinned says which revision the others have."""
    floating = {
        (origin["part"], origin["source"]): origin["revision"]
        for origin in now["origins"]
        if origin["revision"] is not None and not origin["pinned"]
    }
    for path in sorted(run.path.parents[1].glob(f"*/seed-*/{File.DATA}")) if floating else ():
        other = read_json(path)
        for origin in other["origins"] if other["name"] == now["name"] else ():
            found = floating.get((origin["part"], origin["source"]), origin["revision"])
            if found != origin["revision"] and not origin["pinned"]:
                raise ValueError(
                    f"{origin['source']} is at revision {found} now, and {path.parent} was begun "
                    f"with {origin['revision']}: runs of the same data would not compare; name one "
                    "of them in Rows.revision, which makes it other data"
                )
