"""Whether test problems occur in the training data: shared runs of words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.problems.problem import Dataset, Problem

WORDS = 13  # in a row, as GPT-3's report counts an overlap (arXiv 2005.14165, appendix C)

Run = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Test problems of a suite that share a run of words with some training question.

    Attributes:
        suite: its name.
        problems: how many it has.
        shared: ids of those that share a run.
        example: the first shared run, or empty.
    """

    suite: str
    problems: int
    shared: tuple[str, ...]
    example: str = ""


def overlaps(data: Dataset, words: int = WORDS) -> tuple[Overlap, ...]:
    """The overlap of every suite, and of validation, with the questions trained on."""
    tests = {name: problems for name, problems in data.parts.items() if name != "train"}
    wanted = {run for problems in tests.values() for p in problems for run in runs(p, words)}
    found = wanted & _occurring(data.train, words, {len(run) for run in wanted})
    return tuple(_overlap(name, problems, words, found) for name, problems in tests.items())


def runs(problem: Problem, words: int) -> list[Run]:
    """Every run of that many words of the question, or all of its words if it has fewer.

    Words are letters and digits in lower case, and operators; spacing and markup do not count.
    """
    found = _words(problem)
    last = max(0, len(found) - words)
    return [tuple(found[at : at + words]) for at in range(last + 1)] if found else []


def _words(problem: Problem) -> list[str]:
    return re.findall(r"[^\W_]+|[-+*/^=<>]", problem.question.lower())


def _occurring(problems: Iterable[Problem], words: int, lengths: set[int]) -> set[Run]:
    """Runs of the training questions; one shorter than `words` counts as a whole question only."""
    found: set[Run] = set()
    for problem in problems:
        text = _words(problem)
        if len(text) >= words or len(text) in lengths:
            found.update(runs(problem, words))
    return found


def _overlap(name: str, problems: tuple[Problem, ...], words: int, found: set[Run]) -> Overlap:
    first = {p.id: next((run for run in runs(p, words) if run in found), None) for p in problems}
    shared = {name: run for name, run in first.items() if run is not None}
    example = " ".join(next(iter(shared.values()), ()))
    return Overlap(name, len(problems), tuple(shared), example)
