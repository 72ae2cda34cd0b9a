"""Problems from tables, as values: where the rows are, which columns mean what, what is tested."""

import re

from workbench.identity import Component
from workbench.problems.prompts import Chat, Text
from workbench.problems.verifier import MathMatch, Verifier
from workbench.rules import Count, Name, Whole, require


class Rows(Component):
    r"""Rows of a table, and which of its columns mean what.

    A column is a name, with dots into nested values: `reward_model.ground_truth`. A list of chat
    messages counts as the text of its last one. An answer may be a worked solution: its gold is
    the final answer (after `####`, or in the last box).

    Attributes:
        source: a name on the Hugging Face hub (`openai/gsm8k`), a folder laid out as one, or a file
            (.json, .jsonl, .csv or .parquet), relative to where the workbench is started.
        question, answer, demonstration, level, id: columns; None where the table has none.
        split, config: of a hub data set or folder; several configs are one after the other.
        revision: a commit of a hub data set, or the beginning of a file's SHA-256 (8 digits or
            more), which is then checked; None takes what is there, and `doctor` says what to pin.
        options: columns with the texts of a multiple choice, each a text or a list; they follow the
            question as `A) ...`, and the gold is the right one's letter.
        labels: the column with the options' own labels, if the answer is one of those; without it
            the answer is a letter or the text of an option.
        shuffled: put the options in an order that follows from the question's text.
        instruction: said after the question and its options.
        edits: regular expressions and what replaces them in demonstrations, in order.
    """

    source: str
    question: str = "problem"
    answer: str = "answer"
    demonstration: str | None = None
    level: str | None = None
    id: str | None = None
    split: str = "train"
    config: str | tuple[str, ...] | None = None
    revision: str | None = None
    options: tuple[str, ...] = ()
    labels: str | None = None
    shuffled: bool = False
    instruction: str = ""
    edits: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        rule = "a hub name, a folder or a file"
        require(bool(self.source), self, "source", rule, "such as 'openai/gsm8k'")
        for pattern, _ in self.edits:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"Rows.edits has {pattern!r}, which is no regular expression: "
                                 f"{error}") from error  # fmt: skip


class Benchmark(Component):
    """A test suite: rows under a name, in the training distribution or outside of it."""

    name: Name
    rows: Rows
    out_of_distribution: bool = False


class Corpus(Component):
    """Problems from the hub or from files: what is trained on, tested on, and how they are asked.

    Attributes:
        name: for people, and the start of every problem's id.
        rows: training problems.
        demonstrations: another table of them, joined by the question's text.
        validation: that many of the training problems, which are then held out, the same ones
            whatever `train` and `seed` are; or rows of their own.
        suites: what is tested.
        prompt: how questions are asked, in training and in tests.
        verifier: how responses are graded.
        longest: prompt tokens; longer training and validation problems are dropped and counted.
            Test problems never are: a score is over all of a benchmark.
        train: how many training questions to use; None takes all there are.
        seed: which training questions, and the order they are met in.
    """

    name: str
    rows: Rows
    demonstrations: Rows | None = None
    validation: Whole | Rows = 128
    suites: tuple[Benchmark, ...] = ()
    prompt: Text | Chat = Chat()
    verifier: Verifier = MathMatch()
    longest: Count | None = 1024
    train: Count | None = None
    seed: int = 0

    def check(self) -> None:
        if self.demonstrations is not None and self.demonstrations.demonstration is None:
            raise ValueError(
                "Corpus.demonstrations is a table without a demonstration column; "
                'name it: Rows(..., demonstration="solution")'
            )
        names = [suite.name for suite in self.suites]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"Corpus.suites has two named {twice!r}; names tell suites apart")
