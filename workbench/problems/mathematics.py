r"""Compares two mathematical answers; the only file that imports Math-Verify.

Cheap comparisons come first (the same text, two plain numbers, words), parsing and algebra last.
Math-Verify's own timeouts are switched off: they are signals, which work in a main thread only and
score everything wrong elsewhere (huggingface/trl#5281). Here the input bounds the work: an answer
that is nested too deeply, or that stands for too large a number, is not read at all. That stops
what is known to take for ever, not everything that may: see `verifier`.
"""

import logging
import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
from math_verify.grader import (
    is_assignment_relation,
    is_equation,
    should_treat_as_complex,
    take_last_relation,
)
from math_verify.grader import verify as equivalent
from sympy import Basic, Expr, Float, Limit, Pow, Rational, UnevaluatedExpr
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.functions.combinatorial.factorials import CombinatorialFunction

from workbench.problems.latex import read
from workbench.problems.verifier import Verdict

logging.getLogger("math_verify.grader").setLevel(logging.ERROR)  # it warns of absent timeouts

DEEPEST = 6  # brackets inside brackets: the parser's time doubles with each
MOST_DIGITS = 20_000  # of a power that is worked out
LARGEST_FACTORIAL = 5_000
LARGEST_EXPONENT = 5_000  # of a variable
LARGEST_EXPONENT_OF_A_SUM = 32  # algebra may multiply it out

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)


def compare(answer: str, gold: str) -> Verdict:
    """Whether two bare answers mean the same."""
    left, right = tidy(answer), tidy(gold)
    if not right:
        return Verdict.UNPARSABLE_GOLD
    if not left:
        return Verdict.UNPARSABLE_ANSWER
    if _squeezed(right) in (_squeezed(left), _squeezed(_NAMED.sub("", left))):
        return Verdict.CORRECT
    if _is_words(right):
        same = _squeezed(left).lower() == _squeezed(right).lower()
        return Verdict.CORRECT if same else Verdict.WRONG
    left, right = _without_letter(left, right), _without_letter(right, left)
    numbers = _number(left), _number(right)
    if numbers[0] is not None and numbers[1] is not None:
        exact = _is_whole(left) and _is_whole(right)
        return _verdict(_close(numbers[0], numbers[1], exact))
    return _compare_parsed(left, right)


@lru_cache(maxsize=65536)
def _compare_parsed(answer: str, gold: str) -> Verdict:
    expected = _parse(gold)
    if expected is None:
        return Verdict.UNPARSABLE_GOLD
    given = _parse(answer)
    if given is None:
        return Verdict.UNPARSABLE_ANSWER
    given, expected = _values(given, expected)
    try:
        if _is_number(given) and _is_number(expected):
            return _verdict(_same_number(given, expected))
        if _differ_somewhere(given, expected):
            return Verdict.WRONG
        return _verdict(
            equivalent(
                expected,
                given,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
    except Exception:  # of any kind, deep in algebra on what a model wrote: a verdict of its own
        return Verdict.ERROR


def _values(given: Any, expected: Any) -> tuple[Any, Any]:
    """Both; where one alone is an equation, its right side, which is what Math-Verify compares."""
    if is_equation(given) and not is_equation(expected):
        return take_last_relation(given).rhs, expected
    if is_assignment_relation(expected) and not is_equation(given):
        return given, take_last_relation(expected).rhs
    return given, expected


def _verdict(same: bool) -> Verdict:
    return Verdict.CORRECT if same else Verdict.WRONG


# --- texts ----------------------------------------------------------------------------------------

_REWRITTEN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$|(?<!\\)\\[()\[\]]|\\displaystyle|\\boxed(?=\{)", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
        (r"(?<=\d)(?:\\,|,?\\!|\{,\}|\s)+(?=\d{3}(?!\d))", ""),  # 1\,000, 1,\!000 and 10{,}000
        (r"(?<!\\)\\[,;!: ]|~", " "),
        (r"(?<=\d)\.(?!\d)", ""),  # 3. and -1./3
        (r"(\d+(?:\.\d+)?)[eE]([-+]?\d+)\b", r"\1\\times 10^{\2}"),  # 4.5e33
        (r"(10\^\{)\+(\d+\})", r"\1\2"),
        (r"(?<![\d.^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 2 1/2
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi"),
        (r"(?<![a-zA-Z\\])sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\s+", " "),
    )
)
_TWO_NUMBERS = re.compile(r"(?<![\d.^_])\d[\d.]*(?:\s|\\q?quad)+\d")


def tidy(text: str) -> str:
    """The answer without what carries no meaning; empty if it is two numbers side by side.

    The parser would add those up, as it does with the parts of a mixed number.
    """
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.strip(" *").rstrip(" .,;:")
    return "" if _TWO_NUMBERS.search(text) else text


def _squeezed(text: str) -> str:
    """The text without spaces and without font commands around words."""
    text = re.sub(
        r"\\(?:text|textbf|mathrm|mathbf|rm|mbox|operatorname)\s*\{([^{}]*)\}", r"\1", text
    )
    return text.replace(" ", "")


def _is_words(text: str) -> bool:
    """Whether it is a word or words: parsed, they are products of letters, equal to anagrams."""
    marked = re.fullmatch(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}\d]{2,}\}", text)
    return marked is not None or re.fullmatch(r"[A-Za-z]{4,}(?:[ '-][A-Za-z]+)*", text) is not None


# --- numbers --------------------------------------------------------------------------------------

_DECIMAL = re.compile(
    r"(?P<sign>[-+]?)(?P<digits>\d{1,3}(?:,\d{3})+|\d{1,40})?(?P<decimals>\.\d{1,40})?"
    r"(?:\\times 10\^\{(?P<power>-?\d{1,3})\})?"
)
_RATIO = re.compile(r"(?P<sign>-?)(?:\\frac ?\{(-?\d{1,40})\}\{(\d{1,40})\}|(\d{1,40})/(\d{1,40}))")


def _number(text: str) -> Fraction | None:
    r"""The value of `-1,234.5`, `4.5\times 10^{33}`, `3/4` or `\frac{3}{4}`; None for others.

    Most answers are of these forms, and reading them here is a thousand times faster than parsing.
    """
    ratio = _RATIO.fullmatch(text)
    if ratio is not None:
        above, below = (int(part) for part in ratio.groups()[1:] if part is not None)
        value = Fraction(above, below) if below else None
        return -value if value is not None and ratio["sign"] else value
    found = _DECIMAL.fullmatch(text)
    if found is None or not (found["digits"] or found["decimals"]):
        return None
    digits = (found["digits"] or "0").replace(",", "")
    value = Fraction(f"{digits}{found['decimals'] or ''}") * Fraction(10) ** int(
        found["power"] or 0
    )
    return -value if found["sign"] == "-" else value


_NAMED = re.compile(r"^[A-Za-z] ?=")  # w = 3, and w = f(n) = 2n, are what is named
_ASSIGNMENT = re.compile(r"([A-Za-z]) ?= ?([^=]+)")


def _without_letter(text: str, other: str) -> str:
    """The number of `x = 3` beside an answer that is no equation; any other text as it is."""
    found = _ASSIGNMENT.fullmatch(text)
    alone = found is not None and "=" not in other and found[1] not in "ei"  # which are numbers
    return found[2] if found is not None and alone and _number(found[2]) is not None else text


def _is_whole(text: str) -> bool:
    return "." not in text and "times" not in text


def _close(one: Fraction, other: Fraction, exact: bool) -> bool:
    return abs(one - other) <= (0 if exact else _rounding(max(abs(one), abs(other))))


def _rounding(size: Fraction) -> Fraction:
    """How far a decimal may be off: 6 decimals, as in Math-Verify, and 3 digits below 0.001."""
    return Fraction(1, 10**6) * min(Fraction(1), 1000 * size)


def _is_number(value: Any) -> bool:
    """Whether it is a plain number; a percentage, kept unevaluated, is left to Math-Verify."""
    return isinstance(value, Basic) and bool(
        getattr(value, "is_number", False) and not value.has(UnevaluatedExpr)
    )


def _same_number(one: Any, other: Any) -> bool:
    """Numbers by value, to 30 digits; Math-Verify drops differences below 1e-15 as zero."""
    values = [_parts(each) for each in (one, other)]
    size = max(abs(part) for parts in values for part in parts)
    decimal = one.has(Float) or other.has(Float)
    allowed = _rounding(size) if decimal else size * Fraction(1, 10**15)
    return all(abs(a - b) <= allowed for a, b in zip(*values, strict=True))


def _parts(value: Any) -> tuple[Fraction, Fraction]:
    """Real and imaginary part to 30 digits.

    Raises:
        TypeError, ValueError: it has no value, as `1/0`.
    """
    real, imaginary = value.evalf(30).as_real_imag()
    return Fraction(str(Float(real, 30))), Fraction(str(Float(imaginary, 30)))


def _differ_somewhere(one: Any, other: Any) -> bool:
    """Whether two expressions have different values at some point: a cheap proof that they differ.

    Algebra, which would find no proof that they are equal, takes a hundred times as long.
    """
    if not all(isinstance(each, Expr) and not each.has(UnevaluatedExpr) for each in (one, other)):
        return False
    values = [_at_a_point(each) for each in (one, other)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return not _same_number(*values)


def _at_a_point(value: Expr) -> Any:
    """Its value where each variable has a number of its own, between 1 and 2, told by its name."""
    point = {
        symbol: Rational(997 + int.from_bytes(str(symbol).encode(), "big") % 991, 997)
        for symbol in value.free_symbols
    }
    return value.subs(list(point.items())).evalf(30)


# --- parsing --------------------------------------------------------------------------------------


_CHAIN = re.compile(r"(?:[\^_]\s*\w\s*){3}")  # x^x^x^x


@lru_cache(maxsize=65536)
def _parse(text: str) -> Any:
    """The expression, or None if it cannot be read; golds come up again and again."""
    if _depth(text) > DEEPEST or _CHAIN.search(text):
        return None
    try:
        latex = normalize_latex(text, config=_NORMALIZATION)
        found = read(latex, is_real=not should_treat_as_complex(latex))
        return None if found is None or _is_too_large(found) else found
    except Exception:  # the parser raises bare Exceptions
        return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_too_large(value: Any) -> bool:
    """Whether working it out could take too long: sums, integrals, huge powers and factorials."""
    if not isinstance(value, Basic):
        return False
    if value.atoms(ExprWithLimits, Limit):
        return True
    powers = sorted(value.atoms(Pow, CombinatorialFunction), key=lambda each: each.count_ops())
    return any(_is_large(each) for each in powers)  # inner ones first: the outer ones build on them


def _is_large(value: Any) -> bool:
    if not isinstance(value, Pow):
        return any(a.is_number and abs(float(a.evalf(5))) > LARGEST_FACTORIAL for a in value.args)
    base, exponent = value.args
    if not exponent.is_number:
        return exponent.has(Pow)
    size = abs(float(exponent.evalf(5)))
    if not base.is_number:
        return size > (LARGEST_EXPONENT if base.is_Symbol else LARGEST_EXPONENT_OF_A_SUM)
    return size * abs(math.log10(abs(complex(base.evalf(5))) or 1.0)) > MOST_DIGITS
