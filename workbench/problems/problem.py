"""What a data set is: problems with gold answers, for training, for validation and for tests."""

from dataclasses import dataclass


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
class Dataset:
    """Problems to train on, to validate on and to test on; `prompt` has one `{question}` slot."""

    name: str
    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    suites: tuple[Suite, ...]
    prompt: str

    def __post_init__(self) -> None:
        """Refuses a prompt template without a slot for the question."""
        if "{question}" not in self.prompt:
            raise ValueError(
                f"Dataset.prompt needs a {{question}} slot, got {self.prompt!r}; "
                'the shortest valid prompt is "{question}"'
            )
