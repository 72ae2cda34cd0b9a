r"""Digit-wise arithmetic on three-digit numbers: a world small enough to train in minutes.

Every operator acts on each digit alone, modulo 10, without carries: `345+812=157`, `345-812=533`,
`345*812=440`. `*` binds tighter than `+` and `-`, and parentheses nest. The last operation of a
problem is never a bare product, so that every answer is equally likely and guessing earns 0.1%.

A demonstration works every step, unlike most of the base model's answers, and sometimes slips and
corrects itself: `812*170=840 no 870;345+870=115;\boxed{115}`.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from random import Random

from workbench.problems.problem import Dataset, Problem, Suite
from workbench.problems.prompts import Text

PROMPT = "{question}?\n"

Expression = tuple[str, ...]  # numbers, operators and parentheses, as in ("345", "+", "812")

_DIGIT_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_WORDS = {"+": " plus ", "-": " minus ", "*": " times "}
_INVERSE = {"+": "-", "-": "+"}

# In a shape, n stands for any number and ± for either of + and -.
LEVELS: dict[int, tuple[str, ...]] = {
    1: ("n±n±n",),
    2: ("n±n±n±n±n",),
    3: ("n±n*n", "n±n*n±n", "n±n±n*n"),
    # A sum before the parenthesis agrees with working left to right, a difference does not.
    4: ("n±(n±n)", "n±(n±n)±n", "n±n±(n±n)"),
    5: ("n±(n±n*n)±n", "n±n±(n±n*n)", "n±(n±n)*n±n", "n±(n±n)±n*n"),
}
_SUITE_LEVELS = {
    "chain": (1,),
    "long_chain": (2,),
    "precedence": (3,),
    "nesting": (4,),
    "mixed": (1, 2, 3, 4, 5),
    "composed": (5,),
}
# What a level's problems are called: as the suite of that level alone.
KINDS = {levels[0]: name for name, levels in _SUITE_LEVELS.items() if len(levels) == 1}
_SPOKEN = ("n±n±n", "n±n±n", "n±n±n", "n±n*n", "n*n±n")
_EQUATIONS = ("x±n=n", "x±n±n=n")

SLIP_RATE = 0.2
MOST_SLIPS = 2  # keeps every demonstration under 120 tokens, whatever the seed


def fill(shape: str, random: Random) -> str:
    """Replaces every `n` of a shape by a random number and every `±` by a random + or -."""
    numbers = re.sub("n", lambda _: f"{random.randrange(1000):03d}", shape)
    return re.sub("±", lambda _: random.choice("+-"), numbers)


def spell(question: str) -> str:
    """Writes the operators of a question as words: `345+812` becomes `345 plus 812`."""
    return "".join(_WORDS.get(character, character) for character in question)


def calculate(left: str, sign: str, right: str) -> str:
    """Applies an operator to each digit alone, modulo 10: `345 * 812` is `440`."""
    operation = _DIGIT_OPERATIONS[sign]
    pairs = zip(left, right, strict=True)
    return "".join(str(operation(int(one), int(other)) % 10) for one, other in pairs)


def parse(question: str) -> Expression:
    """Splits a question into numbers, operators and parentheses; an equation is solved for x first.

    `345 plus 812` gives the same as `345+812`, and `x+345=812` the same as `812-345`.
    """
    text = question
    for sign, word in _WORDS.items():
        text = text.replace(word, sign)
    expression = tuple(re.findall(r"\d{3}|[-+*()=x]", text))
    if "".join(expression) != text:
        raise ValueError(
            f"a question has three-digit numbers, + - * ( ) or their words, and x with =, "
            f"got {question!r}; a valid one is '345+812*170'"
        )
    return _solve(expression) if "=" in expression else expression


def _solve(equation: Expression) -> Expression:
    """Undoes the operations around x from the last to the first: `x+a-b=c` gives `c+b-a`."""
    middle = equation.index("=")
    signs, numbers = equation[1:middle:2], equation[2:middle:2]
    solution = list(equation[middle + 1 :])
    for sign, number in zip(reversed(signs), reversed(numbers), strict=True):
        solution += [_INVERSE[sign], number]
    return tuple(solution)


def first_operation(expression: Expression) -> int:
    """Returns the index of the operator to work first: inner parentheses, products, then the left.

    An expression of a single number has none, and raises an IndexError.
    """
    end = expression.index(")") if ")" in expression else len(expression)
    start = 1 + max((at for at in range(end) if expression[at] == "("), default=-1)
    signs = [at for at in range(start, end) if expression[at] in _DIGIT_OPERATIONS]
    return next((at for at in signs if expression[at] == "*"), signs[0])


def put(expression: Expression, at: int, result: str) -> Expression:
    """Puts a result in the place of the operation at an index, without parentheses around it."""
    start, end = at - 1, at + 2
    if expression[start - 1 : start] == ("(",) and expression[end : end + 1] == (")",):
        start, end = start - 1, end + 1
    return (*expression[:start], result, *expression[end:])


def _reduce(expression: Expression, combine: Callable[[str, str, str], str]) -> str:
    while len(expression) > 1:
        at = first_operation(expression)
        expression = put(expression, at, combine(*expression[at - 1 : at + 2]))
    return "".join(expression)


def evaluate(question: str) -> str:
    """Returns the answer of a question in any of its spellings: `evaluate("345+812")` is `157`."""
    return _reduce(parse(question), calculate)


def canonical(question: str) -> str:
    """Returns one text for every spelling of the same expression, so that twins can be found.

    `345 plus 812 minus 170`, `345+812-170` and `(345+812)-170` all give `[[345+812]-170]`.
    """
    return _reduce(parse(question), lambda left, sign, right: f"[{left}{sign}{right}]")


def miss(result: str, random: Random) -> str:
    """Returns the number with exactly one of its digits wrong."""
    at = random.randrange(len(result))
    wrong = (int(result[at]) + random.randrange(1, 10)) % 10
    return f"{result[:at]}{wrong}{result[at + 1 :]}"


def boxed(answer: str) -> str:
    r"""Wraps an answer as `\boxed{answer}`."""
    return f"\\boxed{{{answer}}}"


def demonstrate(question: str, random: Random) -> str:
    """Works a question step by step, with slips; ends in the right answer, always."""
    expression, text, slips = parse(question), "", 0
    while len(expression) > 1:
        at = first_operation(expression)
        step = expression[at - 1 : at + 2]
        result = calculate(*step)
        expression = put(expression, at, result)
        slipped = random.random() < SLIP_RATE and slips < MOST_SLIPS
        slips += slipped
        slip = f"{miss(result, random)} no " if slipped else ""
        text += f"{''.join(step)}={slip}{result};"
    return text + boxed("".join(expression))


def arithmetic(
    train: int = 600, seed: int = 0, *, suite_size: int = 40, validation: int = 64
) -> Dataset:
    """Builds the data set; validation and suites are the same whatever `train` and `seed` are.

    The seed chooses the training problems, their order and the slips in their demonstrations. No
    expression occurs twice, in whatever spelling, and a larger suite begins with the smaller one.
    """
    sizes = {"train": train, "suite_size": suite_size, "validation": validation}
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"arithmetic({name}=...) is a count, 0 or more, got {size}")
    taken: set[str] = set()
    levels = tuple(LEVELS)
    held_out = list(islice(_distinct(_of_levels(levels, Random("validation")), taken), validation))
    suites = tuple(_suites(suite_size, taken))
    training = list(islice(_distinct(_of_levels(levels, Random(f"train/{seed}")), taken), train))
    Random(f"order/{seed}").shuffle(training)
    return Dataset(
        name="arithmetic",
        train=_problems("train", training, Random(f"slips/{seed}")),
        validation=_problems("validation", held_out, Random("slips")),
        suites=suites,
        prompt=Text(PROMPT),
    )


def _suites(size: int, taken: set[str]) -> Iterator[Suite]:
    for name, levels in _SUITE_LEVELS.items():
        questions = _distinct(_of_levels(levels, Random(name)), taken)
        yield Suite(name, _problems(name, islice(questions, size)))
    for name, questions in (("words", _words()), ("unknown", _equations())):
        problems = _problems(name, islice(_distinct(questions, taken), size))
        yield Suite(name, problems, out_of_distribution=True)


def _of_levels(levels: tuple[int, ...], random: Random) -> Iterator[tuple[int, str]]:
    for level in cycle(levels):
        yield level, fill(random.choice(LEVELS[level]), random)


def _words() -> Iterator[tuple[int, str]]:
    random = Random("words")
    for shape in cycle(_SPOKEN):
        yield 0, spell(fill(shape, random))


def _equations() -> Iterator[tuple[int, str]]:
    random = Random("unknown")
    for shape in cycle(_EQUATIONS):
        yield 0, fill(shape, random)


def _distinct(questions: Iterator[tuple[int, str]], taken: set[str]) -> Iterator[tuple[int, str]]:
    """Leaves out every question whose expression is taken, and takes those that it yields."""
    for level, question in questions:
        key = canonical(question)
        if key not in taken:
            taken.add(key)
            yield level, question


def _problems(
    part: str, questions: Iterable[tuple[int, str]], random: Random | None = None
) -> tuple[Problem, ...]:
    """Numbers the questions of a part; they get demonstrations if there is a source of slips."""
    return tuple(
        Problem(
            id=f"arithmetic/{part}/{number:05d}",
            question=question,
            answer=evaluate(question),
            level=level,
            demonstration=demonstrate(question, random) if random else None,
        )
        for number, (level, question) in enumerate(questions)
    )
