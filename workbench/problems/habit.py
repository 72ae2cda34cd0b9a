r"""What the base model reads: an endless stream of answers with a left-to-right habit.

It shows the digit facts of + - and *, and answers that are direct (`\boxed{155}`) or worked without
restating (`345+812=157;157-170=087;\boxed{087}`). A `*` occurs only where working left to right
agrees with precedence, and parentheses only at the left: what is to be learned later, precedence
and nesting at the right, never occurs. Neither does any question of the validation set or a suite.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from workbench.identity import conform
from workbench.problems.arithmetic import (
    LEVELS,
    PROMPT,
    arithmetic,
    boxed,
    calculate,
    canonical,
    demonstrate,
    evaluate,
    fill,
    first_operation,
    miss,
    parse,
    put,
    spell,
)
from workbench.rules import Share, Within, hold

# More of these than any study evaluates: a larger suite begins with the smaller one.
_HELD_OUT = 1000

_PRODUCTS = ("n*n", "n*n", "n*n", "n*n±n", "n*n±n±n")
_PARENTHESES = ("(n±n)", "(n±n)", "(n±n)±n", "(n±n)*n", "(n±n)±n±n", "(n±n±n)±n")
_WORDS = ("n±n", "n*n", "n±n±n", "n*n±n")
_EQUATIONS = ("x±n=n",)
_PRIMER = ("n±n", "n±n", "n±n", "n*n", "n±n±n", "n*n±n", "n±n±n±n", "n±n±n±n±n")
_FIRST_ZEROS = 0.7


@dataclass(frozen=True)
class Document:
    """One question and answer of the stream; only the answer is learned."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Mixture:
    """Shares of what the stream shows; `chains` takes what the other four kinds leave.

    Chains have 1 to 5 operations. A share `direct` of the answers has no steps; of the chains,
    `long_worked` are worked at 3 to 5 operations and the rest at 1 or 2. At 3 or more steps each
    result is wrong, and carried on, at the rate `wrong_steps`.
    """

    products: Share = 0.09
    parentheses: Share = 0.06
    words: Share = 0.07
    equations: Share = 0.04
    direct: Share = 0.38
    long_worked: Share = 0.30
    wrong_steps: Share = 0.20

    def __post_init__(self) -> None:
        """Refuses shares outside 0 to 1, and kinds or answers that add up to more than 1."""
        conform(self)
        if self.chains < 0:
            raise ValueError(
                f"the kinds other than chains have shares of at most 1 in all, "
                f"got {1 - self.chains}; take {-self.chains} away"
            )
        rest = "a share of the answers that are not direct,"
        hold(self, "long_worked", Within(at_most=round(1 - self.direct, 9), what=rest))

    @property
    def chains(self) -> float:
        """The share of plain chains of + and -."""
        return 1.0 - self.products - self.parentheses - self.words - self.equations


def habit(mixture: Mixture, seed: int) -> Iterator[Document]:
    """Yields documents for ever, the same ones for the same mixture and seed."""
    random = Random(f"habit/{seed}")
    held_out = _held_out()
    while True:
        question, worked = _question(mixture, random)
        if canonical(question) not in held_out:
            answer = _worked(question, mixture, random) if worked else boxed(evaluate(question))
            yield Document(PROMPT.format(question=question), answer)


@dataclass(frozen=True)
class Glimpses:
    """Shares of the second stream: the habit still, and now and then what it lacks.

    A share `rare` of the documents is, in equal parts, a precedence question (level 3), a nesting
    question (level 4) or a chain whose worked answer slips and corrects itself. Of the precedence
    questions a share `precedence` is worked in the right order, of the nesting questions a share
    `nesting`; a share `direct` of either has no steps; all others are worked from left to right,
    to a wrong answer in most cases. Level 5, both at once, never occurs.
    """

    rare: Share = 0.35
    precedence: Share = 0.45
    nesting: Share = 0.35
    direct: Share = 0.25

    def __post_init__(self) -> None:
        """Refuses shares outside 0 to 1, and answers that add up to more than 1."""
        conform(self)
        rest = "a share of the answers that are not worked in the right order,"
        most = round(1 - max(self.precedence, self.nesting), 9)
        hold(self, "direct", Within(at_most=most, what=rest))


def glimpses(mixture: Mixture, rare: Glimpses, seed: int) -> Iterator[Document]:
    """Yields the habit's documents for ever, with rare ones of what it lacks between them."""
    random = Random(f"glimpses/{seed}")
    usual = habit(mixture, seed + 1)  # other documents than the first stream's
    held_out = _held_out()
    while True:
        if random.random() >= rare.rare:
            yield next(usual)
            continue
        question, answer = _glimpse(rare, random)
        if canonical(question) not in held_out:
            yield Document(PROMPT.format(question=question), answer)


def _glimpse(rare: Glimpses, random: Random) -> tuple[str, str]:
    kind = random.choice(("precedence", "nesting", "slips"))
    if kind == "slips":
        chain = fill("n" + "±n" * random.randint(2, 5), random)
        return chain, demonstrate(chain, random)
    question = fill(random.choice(LEVELS[3 if kind == "precedence" else 4]), random)
    draw = random.random()
    if draw < getattr(rare, kind):
        return question, _answer(question, 0.0, random)
    if draw < getattr(rare, kind) + rare.direct:
        return question, boxed(evaluate(question))
    return question, _left_to_right(question)


def _left_to_right(question: str) -> str:
    """Works a question in reading order, blind to precedence and parentheses."""
    expression = tuple(token for token in parse(question) if token not in "()")
    text = ""
    while len(expression) > 1:
        step = expression[:3]
        result = calculate(*step)
        text += f"{''.join(step)}={result};"
        expression = (result, *expression[3:])
    return text + boxed("".join(expression))


def primer(documents: int, seed: int) -> Iterator[Document]:
    """Yields documents with one to four worked steps, whose digits are mostly 0 at first.

    A sum with 0 copies a digit. Sums of any digits are learned from there, and hardly at all from
    nothing: knowing one of two digits says nothing about their sum modulo 10. The share of digits
    set to 0 falls evenly to none.
    """
    random = Random(f"primer/{seed}")
    held_out = _held_out()
    for number in range(documents):
        zeros = _FIRST_ZEROS * (1 - number / documents)
        numbers = fill(random.choice(_PRIMER), random)
        question = "".join(
            "0" if character.isdigit() and random.random() < zeros else character
            for character in numbers
        )
        if canonical(question) not in held_out:
            answer = _answer(question, 0.0, random)
            yield Document(PROMPT.format(question=question), answer)


def _held_out() -> frozenset[str]:
    data = arithmetic(train=0, suite_size=_HELD_OUT, validation=_HELD_OUT)
    suites = (problem for suite in data.suites for problem in suite.problems)
    return frozenset(canonical(problem.question) for problem in (*data.validation, *suites))


def _question(mixture: Mixture, random: Random) -> tuple[str, bool]:
    """Draws a question, and whether its answer is worked."""
    kinds = {
        _PRODUCTS: mixture.products,
        _PARENTHESES: mixture.parentheses,
        _WORDS: mixture.words,
        _EQUATIONS: mixture.equations,
        None: mixture.chains,
    }
    (shapes,) = random.choices(list(kinds), list(kinds.values()))
    if shapes is None:
        return _chain(mixture, random)
    question = fill(random.choice(shapes), random)
    worked = random.random() >= mixture.direct
    return (spell(question) if shapes is _WORDS else question), worked


def _chain(mixture: Mixture, random: Random) -> tuple[str, bool]:
    draw = random.random()
    if draw < mixture.direct:
        shortest, longest = 1, 5
    elif draw < mixture.direct + mixture.long_worked:
        shortest, longest = 3, 5
    else:
        shortest, longest = 1, 2
    operations = random.randint(shortest, longest)
    return fill("n" + "±n" * operations, random), draw >= mixture.direct


def _worked(question: str, mixture: Mixture, random: Random) -> str:
    steps = sum(token in "+-*" for token in parse(question))
    return _answer(question, mixture.wrong_steps if steps >= 3 else 0.0, random)


def _answer(question: str, error_rate: float, random: Random) -> str:
    """Works every step without restating; wrong results are carried on."""
    expression = parse(question)
    text = ""
    while len(expression) > 1:
        at = first_operation(expression)
        step = expression[at - 1 : at + 2]
        result = calculate(*step)
        if random.random() < error_rate:
            result = miss(result, random)
        text += f"{''.join(step)}={result};"
        expression = put(expression, at, result)
    return text + boxed("".join(expression))
