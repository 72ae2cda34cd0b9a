r"""Grades a response by the content of its last `\boxed{...}`."""

from enum import Enum

_BOX = r"\boxed{"


class Verdict(Enum):
    """What a grader can say of one response."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE_ANSWER = "unparsable_answer"
    UNPARSABLE_GOLD = "unparsable_gold"
    TIMEOUT = "timeout"
    ERROR = "error"


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


def verify(response: str, gold: str) -> Verdict:
    """Says CORRECT if and only if the last boxed content is the gold answer, spaces at ends aside.

    The gold answer is the bare answer, without a box; an empty one is UNPARSABLE_GOLD.
    """
    expected = gold.strip()
    if not expected:
        return Verdict.UNPARSABLE_GOLD
    answer = extract_boxed(response)
    if answer is None or not answer.strip():
        return Verdict.UNPARSABLE_ANSWER
    return Verdict.CORRECT if answer.strip() == expected else Verdict.WRONG
