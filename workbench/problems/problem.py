"""What a data set is: problems with gold answers, for training, for validation and for tests."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from workbench.problems.prompts import Prompt
from workbench.problems.verifier import ExactMatch, Verifier


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer; `id` is unique and the same in every process.

    `level` is a difficulty from 1 to 5 (0: unknown). `demonstration` is a response text, without an
    end token, that ends in a correct boxed answer.
    """

    id: str
    question: str
    answer: str
    level: int = 0
    demonstration: str | None = None


@dataclass(frozen=True)
class Suite:
    """A named set of test problems, in the training distribution or outside of it."""

    name: str
    problems: tuple[Problem, ...]
    out_of_distribution: bool = False


@dataclass(frozen=True)
class Origin:
    """What a part of a data set was read from, and what became of its rows.

    Attributes:
        part: `train`, `validation`, `demonstrations` or the name of a suite.
        source: the hub name, folder or file.
        revision: the commit on the hub or the SHA-256 of the file; None where there is neither.
        pinned: whether the recipe names that revision.
        rows: in the table.
        left_out: rows that are no problem of this part, counted by reason.
    """

    part: str
    source: str
    revision: str | None
    pinned: bool
    rows: int
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Problems to train on, to validate on and to test on, how they are asked and graded."""

    name: str
    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    suites: tuple[Suite, ...]
    prompt: Prompt
    verifier: Verifier = ExactMatch()
    origins: tuple[Origin, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[Problem, ...]]:
        """Every set of problems by its name, training first."""
        found = {"train": self.train, "validation": self.validation}
        return found | {suite.name: suite.problems for suite in self.suites}


def digest(problems: Iterable[Problem]) -> str:
    """A SHA-256 of the problems, in hex: the same texts in the same order, the same digest."""
    state = hashlib.sha256()
    for problem in problems:
        for text in (problem.id, problem.question, problem.answer, problem.demonstration or ""):
            state.update(text.encode(errors="surrogatepass") + b"\0")
    return state.hexdigest()
