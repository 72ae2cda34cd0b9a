"""Rows of a table become problems: columns looked up, golds extracted, options lettered."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Any

from workbench.identity import nearest
from workbench.problems.corpus import Rows
from workbench.problems.problem import Problem
from workbench.problems.verifier import final_answer

Row = Mapping[str, Any]

NO_QUESTION, NO_ANSWER = "no question", "no gold answer"


@dataclass(frozen=True)
class Read:
    """The problems of a table and, by reason, how many rows are none."""

    problems: tuple[Problem, ...]
    left_out: dict[str, int]


def read(rows: Sequence[Row], columns: Rows, prefix: str) -> Read:
    """Every row that has a question and a gold, as a problem with an id that begins with `prefix`.

    Raises:
        ValueError: a column that the table does not have, with the nearest one that it has.
    """
    check_columns(rows, columns)
    problems, left_out = [], Counter[str]()
    for number, row in enumerate(rows):
        question, answer = _asked(row, columns)
        if not question or not answer:
            left_out[NO_ANSWER if question else NO_QUESTION] += 1
            continue
        name = f"{number:05d}" if columns.id is None else text_of(value_of(row, columns.id))
        problem = Problem(
            id=f"{prefix}/{name}",
            question=question,
            answer=answer,
            level=_level(row, columns),
            demonstration=_demonstration(row, columns),
        )
        problems.append(problem)
    _check_ids(problems, columns)
    return Read(tuple(problems), dict(left_out))


def demonstrations(rows: Sequence[Row], columns: Rows) -> dict[str, str]:
    """Demonstrations by the key of their question; of several for one question, the first.

    Raises:
        ValueError: a column that the table does not have.
    """
    check_columns(rows, columns, ("question", "demonstration"))
    found: dict[str, str] = {}
    for row in rows:
        question = _instructed(text_of(value_of(row, columns.question)), columns)
        text = _demonstration(row, columns)
        if question and text:
            found.setdefault(key_of(question), text)
    return found


def key_of(question: str) -> str:
    """The same for a question whatever its spaces."""
    return " ".join(question.split())


# --- columns --------------------------------------------------------------------------------------

_COLUMNS = ("question", "answer", "demonstration", "level", "id", "labels", "options")


def check_columns(rows: Sequence[Row], columns: Rows, needed: Iterable[str] = _COLUMNS) -> None:
    """Raises ValueError for a column that the first row lacks, or for a table without rows."""
    if not rows:
        raise ValueError(f"{columns.source} ({columns.split}) has no rows")
    for name in needed:
        wanted = getattr(columns, name)
        for column in (wanted,) if isinstance(wanted, str) else wanted or ():
            if not has_column(rows[0], column):
                raise ValueError(
                    f"{columns.source} has no column {column!r} for Rows.{name}; "
                    f"{nearest(column, _names(rows[0]))}"
                )


def has_column(row: Row, column: str) -> bool:
    """Whether the row has the column, dots leading into nested values."""
    head, dot, rest = column.partition(".")
    if column in row or not dot:
        return column in row
    inner = row.get(head)
    return isinstance(inner, Mapping) and has_column(inner, rest)


def value_of(row: Row, column: str) -> Any:
    """The value in a column; None where a later row lacks what the first one has."""
    head, dot, rest = column.partition(".")
    if column in row or not dot:
        return row.get(column)
    inner = row.get(head)
    return value_of(inner, rest) if isinstance(inner, Mapping) else None


def _names(row: Row) -> list[str]:
    nested = [f"{k}.{each}" for k, v in row.items() if isinstance(v, Mapping) for each in _names(v)]
    return [*row, *nested]


def text_of(value: Any) -> str:
    """A cell as text: of a chat its last message, of a list its items with commas between."""
    if value is None or value == []:
        return ""
    if isinstance(value, list | tuple):
        if all(isinstance(each, Mapping) and "content" in each for each in value):
            return text_of(value[-1]["content"])
        return ", ".join(text_of(each) for each in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


# --- what a row says ------------------------------------------------------------------------------


def _asked(row: Row, columns: Rows) -> tuple[str, str]:
    """The question as it is asked, and its gold."""
    question, answer = (text_of(value_of(row, c)) for c in (columns.question, columns.answer))
    if question and columns.options:
        question, answer = _choice(row, columns, question, answer)
    else:
        answer = gold_of(answer)
    return _instructed(question, columns), answer


def _instructed(question: str, columns: Rows) -> str:
    return f"{question}\n\n{columns.instruction}" if columns.instruction and question else question


def gold_of(answer: str) -> str:
    r"""The final answer of a worked solution; a bare answer is its own gold.

    `6*12=72\n#### 72` gives `72`, `so \boxed{72}` gives `72`, and a box that never closes nothing.
    """
    is_solution = "####" in answer or r"\boxed{" in answer
    return (final_answer(answer) or "") if is_solution else answer


def _choice(row: Row, columns: Rows, question: str, answer: str) -> tuple[str, str]:
    """The question with its lettered options, and the letter of the right one (empty if none)."""
    values = [value_of(row, column) for column in columns.options]
    texts = [text_of(each) for v in values for each in (v if isinstance(v, list) else [v])]
    labels = list(ascii_uppercase[: len(texts)])
    if columns.labels is not None:
        labels = [text_of(each) for each in value_of(row, columns.labels) or []]
    right = next((known.index(answer) for known in (labels, texts) if answer in known), None)
    order = list(range(len(texts)))
    if columns.shuffled:
        Random(question).shuffle(order)
    lettered = zip(ascii_uppercase, order, strict=False)
    listed = "\n".join(f"{letter}) {texts[at]}" for letter, at in lettered)
    return f"{question}\n\n{listed}", "" if right is None else ascii_uppercase[order.index(right)]


def _demonstration(row: Row, columns: Rows) -> str | None:
    if columns.demonstration is None:
        return None
    text = text_of(value_of(row, columns.demonstration))
    for pattern, replacement in columns.edits:
        text = re.sub(pattern, replacement, text)
    return text or None


def _level(row: Row, columns: Rows) -> int:
    digits = re.search(r"\d+", text_of(value_of(row, columns.level)) if columns.level else "")
    return int(digits[0]) if digits else 0


def _check_ids(problems: Sequence[Problem], columns: Rows) -> None:
    twice = [name for name, count in Counter(p.id for p in problems).items() if count > 1]
    if twice:
        raise ValueError(
            f"{columns.source} has {len(twice)} ids twice in column {columns.id!r}, such as "
            f"{twice[0]!r}; ids tell problems apart: leave Rows.id out to number the rows"
        )
