r"""Verdicts: what is read as the answer, what counts as equal, and what is not even tried."""

import json
import os
import random
import string
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from sympy import srepr

from workbench.problems import (
    ExactMatch,
    MathMatch,
    Verdict,
    extract_boxed,
    latex,
    mathematics,
    verify,
)
from workbench.problems.verifier import LONGEST, choice, final_answer

BENCHMARKS = Path(__file__).parents[1] / "../shared/data/benchmarks"
CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG

BOXES = {
    r"\boxed{155}": "155",
    r"345+812=157;\boxed{157}": "157",
    r"\boxed{1} no \boxed{2}": "2",
    r"\boxed{\boxed{3}}": "3",
    r"\boxed{\frac{1}{2}} done": r"\frac{1}{2}",
    r"\boxed{}": "",
    r"\boxed{155": None,
    r"\boxed{1} then \boxed{2": None,
    "155": None,
    "": None,
}

EXACT = [
    (r"\boxed{155}", "155", CORRECT),
    (r"\boxed{ 155 }", "155\n", CORRECT),
    (r"\boxed{155} no \boxed{156}", "155", WRONG),
    (r"\boxed{15}", "155", WRONG),
    (r"\boxed{87}", "087", WRONG),
    (r"\boxed{ }", "155", Verdict.UNPARSABLE_ANSWER),
    ("155", "155", Verdict.UNPARSABLE_ANSWER),
    ("The answer is 155", "155", Verdict.UNPARSABLE_ANSWER),
    (r"\boxed{155", "155", Verdict.UNPARSABLE_ANSWER),
    (r"\boxed{155}", " ", Verdict.UNPARSABLE_GOLD),
]

FINAL = {
    r"The answer is 3, so \boxed{4}": "4",
    r"The answer is 3, so \boxed{4": None,
    "<think>5</think><answer> 6 </answer>": "6",
    "6*12=72\n#### 72": "72",
    "#### 1\n#### 72\n": "72",
    "The answer is 5. I hope it is correct.": "5",
    "So the final answer is: **$\\frac{1}{2}$**.": r"$\frac{1}{2}$",
    "Answer: 3.5": "3.5",
    "The answer is 3.\nNo, the answer is 4.": "4",
    "nothing of the kind: 7": None,
    "": None,
}

SAME = [
    ("1/2", "0.5"),
    (r"-\frac{3}{4}", "-6/8"),
    ("3/4", r"\frac34"),
    ("0.75", r"\frac{3}{4}"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}{3}", "0.333333"),
    ("5/2", "2 1/2"),
    ("5/2", r"2\frac{1}{2}"),
    ("1000", "1,000"),
    (r"\$32,\!348", "32348"),
    ("10000", r"10{,}000"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("10^{33}", "1e33"),
    ("-1./3", "-1/3"),
    ("9", "9.0"),
    ("9", r"9\text{ cm}"),
    ("9", r"\sqrt{81}"),
    ("9", "x = 9"),
    ("x = 9", "9.0"),
    ("1/3", "w = 0.333333"),
    ("x+1", "y = 1 + x"),
    ("(x+1)^2", "f(x) = x^2+2x+1"),
    ("y = 1 + x", "x+1"),
    ("y = 2x", "w = y = 2x"),
    (r"\text{east}", r"w = \text{east}"),
    (r"90^\circ", "90"),
    (r"\frac{\pi}{2}", "pi/2"),
    (r"\sqrt{2}", "1.414214"),
    ("x^2+2x+1", "(x+1)^2"),
    ("p - q", "-q + p"),
    ("1,-2", "-2, 1"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("[-2,7]", r"-2 \le x \le 7"),
    ("10\\%", "10%"),
    ("2+3i", "3i+2"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}-1\\2\end{bmatrix}"),
    ("C", "(C)"),
    ("C", r"\text{C}"),
    ("C", "C) Planetary days will become shorter."),
]

DIFFERENT = [
    ("3", "1, 2, 3"),
    ("5", r"5 \text{ or } 7"),
    ("7", r"5 \text{ or } 7"),
    ("5", "5; 7"),
    ("9", r"8 \text{ and } 9"),
    ("C", "A or C"),
    ("C", "A) B) C) D)"),
    ("C", "ABCD"),
    ("C", "B"),
    ("(2,3)", "(3,2)"),
    ("p-q", "q-p"),
    (r"\text{east}", r"\text{seat}"),
    ("east", "seat"),
    ("1000000", "1000001"),
    ("1/3", "0.33"),
    (r"\sqrt{2}", "1.41"),
    ("6.63e-34", "0"),
    ("1e-20", "5e-20"),
    ("10^{-20}", r"2 \cdot 10^{-20}"),
    ("12", "1.2"),
    ("x = 5", "y = 5"),
    ("x = 5", "w = y = 5"),
    ("C", "w = C"),
    ("5", "x = 6"),
    ("x+1", "y = x+2"),
    ("1e-20", "x = 5e-20"),
    ("3/4", r"\frac{4}{3}"),
    ("3/4", r"-\frac{3}{4}"),
    ("1/3", r"\frac{333333}{1000000}"),
    ("x+1", "x-1"),
    (r"2\sin x", r"\sin 2x"),
    ("50", "5%"),
]

UNREAD = [
    ("12", "1 2"),
    ("3", "1 2"),
    ("18", r"9 \quad 9"),
    ("2", "9^{9^{9^{9}}}"),
    ("2", "10^{10^{10}}"),
    ("2", "9!!!!!!"),
    ("2", r"\binom{10^9}{10^8}"),
    ("2", "x^" * 60 + "x"),
    ("2", "x_" * 60 + "1"),
    ("2", "{" * 300 + "2" + "}" * 300),
    ("2", "(" * 300 + "2" + ")" * 300),
    ("2", r"\frac{1}{1+" * 20 + "2" + "}" * 20),
    ("2", "(x+y+z)^{200}"),
    ("2", r"\prod_{n=1}^{10^9} n"),
    ("2", r"\sum_{n=1}^{10^9} 2^n"),
    ("2", "1+" * LONGEST + "1"),
    ("2", "9" * 5000),
]


@pytest.mark.parametrize("response", BOXES, ids=repr)
def test_the_last_box_is_read_with_balanced_braces(response: str) -> None:
    assert extract_boxed(response) == BOXES[response]


@pytest.mark.parametrize(("response", "gold", "verdict"), EXACT, ids=repr)
def test_an_exact_verdict_follows_from_the_last_box(
    response: str, gold: str, verdict: Verdict
) -> None:
    assert ExactMatch()(response, gold) is verdict


@pytest.mark.parametrize("response", FINAL, ids=repr)
def test_the_final_answer_is_read_in_the_documented_order(response: str) -> None:
    assert final_answer(response) == FINAL[response]


@pytest.mark.parametrize(("gold", "answer"), SAME, ids=repr)
def test_forms_of_one_value_are_the_same(gold: str, answer: str) -> None:
    assert verify(rf"so \boxed{{{answer}}}.", gold) is CORRECT


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT, ids=repr)
def test_other_values_and_lists_of_candidates_are_wrong(gold: str, answer: str) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold) is WRONG


@pytest.mark.parametrize(("gold", "answer"), UNREAD, ids=lambda text: text[:24])
@pytest.mark.timeout(60)
def test_what_cannot_be_read_or_would_take_for_ever_is_not_tried(gold: str, answer: str) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold) is Verdict.UNPARSABLE_ANSWER


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", [r"\boxed{", "{", "answer is ", "####", "<answer>", "1 ", "\n"])
def test_megabytes_of_text_are_read_once(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    assert verify(text, "2") is not CORRECT
    assert verify(rf"{text}\boxed{{2}}", "2") is CORRECT


@pytest.mark.parametrize(
    ("response", "gold", "verdict"),
    [
        (r"\boxed{5}", "np.arcsin(10/13)", Verdict.UNPARSABLE_GOLD),
        (r"\boxed{5}", " ", Verdict.UNPARSABLE_GOLD),
        (r"\boxed{1/0}", "0", Verdict.ERROR),
        ("no answer", "0", Verdict.UNPARSABLE_ANSWER),
        (r"\boxed{3} and \boxed{4}", "3", WRONG),
    ],
)
def test_every_verdict_has_its_cause(response: str, gold: str, verdict: Verdict) -> None:
    assert MathMatch()(response, gold) is verdict


@pytest.mark.parametrize(
    ("text", "letter"),
    [("C", "C"), ("(B)", "B"), ("D.", "D"), ("A: so", "A"), ("A) x or B", None), ("Cat", None),
     ("c", None), ("", None)],
)  # fmt: skip
def test_a_choice_is_one_letter(text: str, letter: str | None) -> None:
    assert choice(text) == letter


def test_verdicts_are_written_in_snake_case() -> None:
    for verdict in Verdict:
        assert verdict.value == verdict.name.lower()


def test_grading_is_possible_in_a_thread_and_imports_its_packages_late() -> None:
    program = (
        "import sys, threading\n"
        "from workbench.problems import verify\n"
        "assert 'sympy' not in sys.modules\n"
        "said = []\n"
        "grade = lambda: said.append(verify(r'\\boxed{\\frac{2}{4}}', '1/2').value)\n"
        "thread = threading.Thread(target=grade); thread.start(); thread.join()\n"
        "print(said)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.stdout, done.stderr) == ("['correct']\n", "")


# --- the real benchmarks --------------------------------------------------------------------------


def golds(name: str) -> list[str]:
    lines = (BENCHMARKS / f"{name}.jsonl").read_text().splitlines()
    return [str(json.loads(line)["answer"]) for line in lines]


NAMES = ["aime24", "aime25", "amc23", "math500", "minerva", "olympiad", "arc_c"]
real = pytest.mark.skipif(not BENCHMARKS.exists(), reason="needs ../shared/data")


@real
@pytest.mark.parametrize("name", NAMES)
def test_every_gold_verifies_against_itself(name: str) -> None:
    wrong = [g for g in golds(name) if verify(rf"\boxed{{{g}}}", g) is not CORRECT]
    assert wrong == []


FORMS = {
    "in dollars": lambda gold: f"${gold.strip('$')}$",
    "spread out": lambda gold: gold.replace("=", " = ").replace("+", " + ").replace(",", ", "),
    "display": lambda gold: gold.replace("\\frac", "\\dfrac").replace("(", "\\left("),
    "full stop": lambda gold: f"{gold}.",
}


@real
@pytest.mark.parametrize("form", FORMS)
def test_golds_of_the_benchmarks_are_known_in_other_forms(form: str) -> None:
    every = [gold for name in NAMES for gold in golds(name)]
    drawn = random.Random(form).sample(every, 300)
    verdicts = [verify(rf"\boxed{{{FORMS[form](gold)}}}", gold) for gold in drawn]
    assert verdicts.count(CORRECT) / len(drawn) >= 0.98


@real
def test_a_gold_that_is_given_a_name_is_known() -> None:
    every = {gold for name in NAMES for gold in golds(name) if not choice(gold)}
    assert len(every) > 1000
    assert [gold for gold in every if verify(rf"\boxed{{w = {gold}}}", gold) is not CORRECT] == []


@real
def test_a_gold_is_not_the_answer_to_another_problem() -> None:
    every = sorted({gold for name in NAMES[:-1] for gold in golds(name) if len(gold) < 12})
    drawn = random.Random(0).sample(every, 60)
    pairs = pairwise(drawn)
    correct = [
        (one, other) for one, other in pairs if verify(rf"\boxed{{{one}}}", other) is CORRECT
    ]
    assert correct == []


WRITTEN = [
    "n^{2}+1", r"\frac{1}{4p^2}", "x^3+3x-6", r"(\frac{t^{2}}{2}-t) e^{-t}", r"\{1, 2, 3\}",
    r"[0, 1) \cup (2, \infty)", r"x = \frac{-1 \pm \sqrt{5}}{2}", "f(n)=n^{2}", r"12\%",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\sqrt[3]{2} + \log_2 5", "}x", "w = 3",
    "1,-2,x", "1,333", "1,333,2", "(1,2)", "(3)", "x=y=3", "x=1,2", "x=1,y=2", "1,,2", "x=", "x_1y",
    r"2\sin x, \cos 2x", r"\sqrt2, 3", r"2 \cdot 3 \times 4", "a/bc", "-x^-2", "dx", "(x", "x)",
    "x^{2}_{3}", "x_{1}^{2} y_1^2", "x^a_b^2", "x^2_3", "x_{a+1}_{2}", "a^{b^{c}}_d + 1", "1;2,3",
    "x^{2}^{3}", r"1 \pm 2, 3", r"(1 \pm x, 2)", r"w = \pm 3", r"x \in (1,2) \cup \{3\}", "1;2",
    r"x \notin \{1\}", r"1 \le x < 5", r"x \approx 3.5", "x = y + 1 = 2", "(x,y) = (1,2)", "[1, 2)",
    "a = 1; b = 2", r"\{x, y\} = 3", r"|x|y|z|", r"\|x\| 2", "(x+1)[y]", "f(x)g(y)", "f(1,2)",
    r"\int x dx", r"007, .50, 1.", r"x_{\text{max}}^2", r"50\% + 1", r"e^{-t} e_1^2", r"\mathbb{R}",
    r"\sin^2 x_1", r"\frac{1}{2}^{3}", r"2^3_4", r"\bar{x}_{1}^{2}", "x'", "f^{-1}(x)", "x^(2)",
    *(f"{letter}=3" for letter in "deEinNOSx"),
]  # fmt: skip


def read(texts: list[str]) -> list[str]:
    return [srepr(mathematics._parse.__wrapped__(text)) for text in texts]


def check_quick(texts: list[str]) -> None:
    quick = read(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latex, "_Quick", _Latex2Sympy)
        assert quick == read(texts)


@pytest.mark.parametrize("texts", [WRITTEN, pytest.param(None, marks=real)], ids=["some", "golds"])
def test_what_is_read_quickly_is_what_is_read_with_all_of_the_context(texts) -> None:
    """ANTLR promises it of grammars that name no context; this one is read as it was written."""
    if texts is None:
        every = sorted({mathematics.tidy(g) for name in NAMES[3:6] for g in golds(name)})
        texts = random.Random(0).sample(every, 60)
        texts += [f"w = {text}" for text in texts[:15]]
    check_quick(texts)


NUMBERS = st.one_of(
    st.integers(-999, 9999).map(str),
    st.decimals(-99, 99, places=3).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda n: f"{n[0]}/{n[1]}"),
)
EXPRESSIONS = st.recursive(
    st.one_of(st.integers(0, 99).map(str), st.sampled_from(["x", "y", "n", "e", "\\pi", "0.5"])),
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(["+", "-", "*", "/", " ", ",", "=", "\\cdot ", "\\pm ", "\\cup "]),
            inner,
        ).map("".join),
        st.tuples(inner, inner).map(lambda of: f"\\frac{{{of[0]}}}{{{of[1]}}}"),
        st.tuples(inner, inner).map(lambda of: f"({of[0]})^{{{of[1]}}}"),
        st.tuples(inner, st.sampled_from("^_"), inner).map(lambda of: "{}{}{{{}}}".format(*of)),
        st.tuples(st.sampled_from("(["), inner, inner, st.sampled_from(")]")).map(
            lambda of: "{}{},{}{}".format(*of)
        ),
        inner.map(lambda of: f"\\sqrt{{{of}}}"),
        inner.map(lambda of: f"-\\sin({of})"),
    ),
    max_leaves=3,
)


@settings(max_examples=15, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3).map(",".join))
def test_what_anyone_writes_is_read_quickly_as_with_all_of_the_context(text: str) -> None:
    check_quick([text, f"w={text}"])


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from(string.ascii_letters))
def test_a_letter_before_a_number_changes_no_verdict(answer: str, gold: str, letter: str) -> None:
    for one, other in ((answer, gold), (answer, answer)):
        plain = mathematics.compare(one, other)
        assert mathematics.compare(f"{letter} = {one}", other) is plain
        assert mathematics._compare_parsed(f"{letter} = {one}", other) is plain
