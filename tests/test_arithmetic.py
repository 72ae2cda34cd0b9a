import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from random import Random

import pytest

from workbench.problems import Dataset, ExactMatch, Problem, Text, Verdict, arithmetic
from workbench.problems.arithmetic import (
    LEVELS,
    SLIP_RATE,
    calculate,
    canonical,
    demonstrate,
    evaluate,
    fill,
)
from workbench.problems.habit import Mixture, habit, primer

ANSWERS = {
    "345+812-170": "087",
    "345-812": "533",
    "345*812": "440",
    "345+812*170": "115",
    "345*812+170": "510",
    "345-(812+170)": "463",
    "(345+812)*170": "150",
    "345 plus 812 times 170": "115",
    "x+345=812": "577",
    "x-345+170=812": "087",
}

TWINS = [
    ("345+812-170", "345 plus 812 minus 170"),
    ("345+812-170", "(345+812)-170"),
    ("345+812*170", "345+(812*170)"),
]


class Digits:
    """Digit-wise numbers that let Python's own grammar decide what is worked first."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: "Digits") -> "Digits":
        return Digits(calculate(self.text, "+", other.text))

    def __sub__(self, other: "Digits") -> "Digits":
        return Digits(calculate(self.text, "-", other.text))

    def __mul__(self, other: "Digits") -> "Digits":
        return Digits(calculate(self.text, "*", other.text))


def python_answer(expression: str) -> str:
    return eval(re.sub(r"(\d{3})", r"Digits('\1')", expression)).text


def left_to_right_answer(expression: str) -> str:
    first, *rest = re.findall(r"\d{3}|[-+*]", expression)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        first = calculate(first, sign, number)
    return first


def every_problem(data: Dataset) -> list[Problem]:
    tests = [problem for suite in data.suites for problem in suite.problems]
    return [*data.train, *data.validation, *tests]


@pytest.mark.parametrize("question", ANSWERS)
def test_answers_worked_by_hand(question: str) -> None:
    assert evaluate(question) == ANSWERS[question]


@pytest.mark.parametrize("level", LEVELS)
def test_answers_agree_with_the_grammar_of_python(level: int) -> None:
    random = Random(level)
    for _ in range(300):
        question = fill(random.choice(LEVELS[level]), random)
        assert evaluate(question) == python_answer(question), question


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_spellings_of_one_expression_are_twins(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
    assert canonical(one) != canonical("345+(812-170)")


@pytest.mark.parametrize("question", ["34+812", "345/812", "345 + 812", "hello"])
def test_a_question_that_cannot_be_read_is_named(question: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(question))):
        evaluate(question)


def test_a_negative_count_is_named() -> None:
    with pytest.raises(ValueError, match="train"):
        arithmetic(train=-1)


@pytest.mark.parametrize(("train", "seed"), [(0, 0), (600, 1), (2000, 2)])
def test_what_is_held_out_depends_on_neither_the_seed_nor_the_training_size(
    train: int, seed: int
) -> None:
    expected, data = arithmetic(), arithmetic(train, seed)
    assert (data.suites, data.validation) == (expected.suites, expected.validation)


def test_the_seed_chooses_the_training_problems_and_nothing_else_does() -> None:
    assert arithmetic(seed=1) == arithmetic(seed=1)
    assert arithmetic(seed=1).train != arithmetic(seed=2).train


def test_a_larger_suite_begins_with_the_smaller_one() -> None:
    pairs = zip(arithmetic(suite_size=40).suites, arithmetic(suite_size=400).suites, strict=True)
    assert all(small.problems == large.problems[:40] for small, large in pairs)


def test_no_expression_and_no_id_occurs_twice() -> None:
    problems = every_problem(arithmetic(train=3000, suite_size=200))
    assert len({canonical(problem.question) for problem in problems}) == len(problems)
    assert len({problem.id for problem in problems}) == len(problems)


def test_suites_have_the_promised_sizes_and_levels() -> None:
    suites = {suite.name: suite for suite in arithmetic().suites}
    levels = {name: {problem.level for problem in suite.problems} for name, suite in suites.items()}
    assert levels == {
        "chain": {1},
        "long_chain": {2},
        "precedence": {3},
        "nesting": {4},
        "mixed": {1, 2, 3, 4, 5},
        "composed": {5},
        "words": {0},
        "unknown": {0},
    }
    assert {len(suite.problems) for suite in suites.values()} == {40}
    outside = {name for name, suite in suites.items() if suite.out_of_distribution}
    assert outside == {"words", "unknown"}


def test_training_has_equal_shares_of_the_levels_in_random_order() -> None:
    levels = [problem.level for problem in arithmetic(train=600).train]
    assert Counter(levels) == dict.fromkeys(range(1, 6), 120)
    assert levels[:50] != sorted(levels)[:50]
    assert len(set(levels[:10])) > 1


def test_no_answer_can_be_guessed() -> None:
    for suite in arithmetic(train=0, suite_size=8000).suites:
        counts = Counter(problem.answer for problem in suite.problems)
        (_, most), *_ = counts.most_common(1)
        assert most / 8000 < 0.005, suite.name


def test_half_of_the_nested_problems_agree_with_working_left_to_right() -> None:
    random = Random(0)
    questions = [fill(random.choice(LEVELS[4]), random) for _ in range(2000)]
    agreeing = sum(evaluate(text) == left_to_right_answer(text) for text in questions)
    assert 0.45 < agreeing / 2000 < 0.56


def test_demonstrations_are_right_short_and_work_every_step() -> None:
    data = arithmetic(train=3000)
    for problem in (*data.train, *data.validation):
        response = problem.demonstration
        assert response is not None
        assert data.verifier(response, problem.answer) is Verdict.CORRECT
        assert len(response) + 1 < 120
        operations = sum(problem.question.count(sign) for sign in "+-*")
        assert response.count(";") == operations
        for step, result in re.findall(r"(\d{3}[-+*]\d{3})=(?:\d{3} no )?(\d{3});", response):
            assert evaluate(step) == result


def test_demonstrations_slip_at_the_promised_rate_in_one_digit() -> None:
    random = Random(0)
    texts = [demonstrate(fill("n±n±n", random), random) for _ in range(2000)]
    slips = [slip for text in texts for slip in re.findall(r"=(\d{3}) no (\d{3})", text)]
    assert abs(len(slips) / 4000 - SLIP_RATE) < 0.03
    for wrong, right in slips:
        assert sum(one != other for one, other in zip(wrong, right, strict=True)) == 1


def test_the_world_does_not_depend_on_the_hash_seed() -> None:
    program = "from workbench.problems import arithmetic; print(arithmetic(100, 3))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_stream_never_shows_what_is_to_be_learned() -> None:
    data = arithmetic()
    held_out = {canonical(problem.question) for problem in every_problem(arithmetic(train=0))}
    for document in islice(habit(Mixture(), seed=0), 5000):
        question = document.prompt.removesuffix("?\n")
        symbols = question.replace(" times ", "*").replace(" plus ", "+").replace(" minus ", "-")
        assert not re.search(r"[+-]\d{3}\*|[-+*]\(", symbols), question
        assert " no " not in document.answer
        assert ":" not in document.answer
        assert canonical(question) not in held_out
    assert isinstance(data.prompt, Text)
    assert data.prompt("345+812") == "345+812?\n"


def test_the_stream_leaves_out_held_out_questions_that_it_would_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = next(habit(Mixture(), seed=0))
    key = canonical(first.prompt.removesuffix("?\n"))
    monkeypatch.setattr("workbench.problems.habit._held_out", lambda: frozenset({key}))
    assert next(habit(Mixture(), seed=0)) != first


def test_the_primer_goes_from_mostly_zeros_to_any_digits_and_is_always_right() -> None:
    documents = list(primer(4000, seed=0))
    questions = [document.prompt.removesuffix("?\n") for document in documents]
    zeros = [
        "".join(part).count("0") / len(re.findall(r"\d", "".join(part)))
        for part in (questions[:500], questions[-500:])
    ]
    assert zeros[0] > 0.6
    assert zeros[1] < 0.2
    for question, document in zip(questions, documents, strict=True):
        assert ExactMatch()(document.answer, evaluate(question)) is Verdict.CORRECT


@pytest.mark.parametrize(
    "shares", [{"direct": 1.5}, {"products": -0.1}, {"products": 0.9, "words": 0.5}], ids=str
)
def test_shares_that_are_no_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at most 1|0 to 1"):
        Mixture(**shares)
