r"""Grades a response: reads its final answer, then compares that with the gold.

What counts as the final answer, in this order:

1. the content of the last `\boxed{...}`; one that never closes is no answer, whatever is before it;
2. the content of the last `<answer>...</answer>`;
3. what follows the last `####` on its line;
4. what follows the last "answer is" or "answer:" up to the end of its sentence.

A verifier is a pure function without a clock: algebra on what a model wrote can take for ever, so
whoever grades untrusted responses calls it where it can be stopped.
"""

import re
from enum import Enum
from typing import ClassVar

from workbench.identity import Component

_BOX = r"\boxed{"
LONGEST = 1000  # characters of an answer that is still read; the benchmarks' golds have at most 210
_TAIL = 4000  # characters at the end of a response in which an answer without a box is looked for


class Verdict(Enum):
    """What a grader can say of one response."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE_ANSWER = "unparsable_answer"
    UNPARSABLE_GOLD = "unparsable_gold"
    TIMEOUT = "timeout"
    ERROR = "error"


class Verifier(Component):
    """Says what a response is worth against the gold answer; chosen by the data.

    `interprets` is False for one that only compares texts: nothing that a model writes can make it
    hang or crash, so that it needs no process of its own. `examples`, responses with golds, are
    graded where it starts, before any others, for what has to be loaded only once.
    """

    interprets: ClassVar[bool] = True
    examples: ClassVar[tuple[tuple[str, str], ...]] = ((r"\boxed{x + y}", "y + x"),)

    def __call__(self, response: str, gold: str) -> Verdict:
        """The verdict; the same for the same texts in every process."""
        raise NotImplementedError


class ExactMatch(Verifier):
    r"""CORRECT if and only if the last `\boxed{...}` holds the gold, spaces at its ends aside.

    A gold is the bare answer, without a box; an empty one is UNPARSABLE_GOLD.
    """

    interprets: ClassVar[bool] = False

    def __call__(self, response: str, gold: str) -> Verdict:
        expected, answer = gold.strip(), extract_boxed(response)
        if not expected:
            return Verdict.UNPARSABLE_GOLD
        if answer is None or not answer.strip():
            return Verdict.UNPARSABLE_ANSWER
        return Verdict.CORRECT if answer.strip() == expected else Verdict.WRONG


class MathMatch(Verifier):
    """CORRECT if the final answer means what the gold means, whatever form either has.

    A gold of one capital letter is the letter of a choice, and only that letter alone, or with its
    option's text, is correct. Words are compared as words, everything else by its value: numbers to
    6 decimals (3 digits below 0.001) if either is a decimal and exactly otherwise, the rest by
    Math-Verify.
    An answer that lists several values is one set of them, and no answer to a gold with one value.
    """

    # The parser makes tables of what it has met, which takes ten times as long as to look there.
    examples = (
        *Verifier.examples,
        (r"\boxed{w = x^{2} + \frac{x}{2} e^{-x_1}}", r"\sin(2 x) + 1"),
        (r"\boxed{(1,-2),(x, \frac{1}{2})}", r"[0, 1) \cup (2, \infty)"),
    )

    def __call__(self, response: str, gold: str) -> Verdict:
        from workbench.problems import mathematics

        answer = final_answer(response)
        if not gold.strip():
            return Verdict.UNPARSABLE_GOLD
        if answer is None or not answer.strip() or len(answer) > LONGEST:
            return Verdict.UNPARSABLE_ANSWER
        letter = choice(gold)
        if letter is not None:
            return Verdict.CORRECT if choice(answer) == letter else Verdict.WRONG
        return mathematics.compare(answer, gold)


def verify(response: str, gold: str) -> Verdict:
    """Grades a response to a mathematical or multiple choice question; see `MathMatch`.

    In the caller's process and without a limit of time: for responses that are trusted, a few at a
    time. `isolation.graders` grade many with a limit for each, in processes of their own.
    """
    return MathMatch()(response, gold)


def extract_boxed(response: str) -> str | None:
    r"""Returns the content of the last `\boxed{...}`, or None if it never closes or is absent.

    Braces inside the box are balanced: `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`.
    """
    start = response.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for position in range(start, len(response)):
        depth += {"{": 1, "}": -1}.get(response[position], 0)
        if depth == 0:
            return response[start:position]
    return None


_WITHOUT_A_BOX = (
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE),
    re.compile(r"####[ \t]*([^\n]+)"),
    re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)[\s*]*([^\n]+?)(?=\.?\**\s*(?:\n|$)|\.\s)", re.I),
)


def final_answer(text: str) -> str | None:
    """The final answer of a response or of a worked solution, or None if it gives none."""
    if _BOX in text:
        return extract_boxed(text)
    tail = text[-_TAIL:]
    for pattern in _WITHOUT_A_BOX:
        found = pattern.findall(tail)
        if found:
            return found[-1].strip().strip("*")
    return None


_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Z])(?:\)|\.|:|$)(.*)", re.DOTALL)


def choice(answer: str) -> str | None:
    """The letter of a choice: of `C`, `(C)`, `C.` or `C) its text`; None where there is not one."""
    plain = _WRAPPED.sub(r"\1", answer).strip(" \n$*")
    found = _LETTER.fullmatch(plain)
    if found is None:
        return None
    another = re.search(r"\b[A-Z](?:\)|\.|:)|\b(?:or|and)\s+\(?[A-Z]\b", found[2])
    return None if another else found[1]
