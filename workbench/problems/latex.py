r"""Reads LaTeX as latex2sympy does, several times as fast; the only file that knows its grammar.

latex2sympy parses with ANTLR. Wherever the grammar has several ways to go on, ANTLR follows all of
them until one is left, often to the end of the text, and of several it takes the first. Here the
next token, or what tokens there are at all, rule ways out where they can, and the first that is
left is taken at once. A text that can be read so has the reading that ANTLR gives it; one that
cannot is read again by ANTLR alone.
"""

import re
from functools import cache
from typing import Any

from antlr4 import CommonTokenStream, ParserRuleContext, Token
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.antlr_parser import PSParser as Grammar
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy  # what latex2sympy makes for each text
from sympy import Float, Integer

_DECIMAL = re.compile(r"\d*\.\d+")
UNKNOWN = 0  # no way: they are numbered from 1


def read(latex: str, is_real: bool) -> Any:
    """The expression, set, relation or matrix, as SymPy has it.

    Raises:
        Exception: it cannot be read; latex2sympy raises bare ones.
    """
    try:
        return _Quick(is_real=is_real).parse(latex)
    except Exception:
        return _Latex2Sympy(is_real=is_real).parse(latex)


class _Quick(_Latex2Sympy):
    """Fails rather than gives another reading than latex2sympy."""

    def create_parser(self, latex_str: str) -> Any:
        parser: Any = super().create_parser(latex_str)
        parser._input.fill()
        parser._interp = _Ahead(
            parser, parser.atn, parser.decisionsToDFA, parser.sharedContextCache
        )
        parser._interp.predictionMode = PredictionMode.SLL  # less context; enough, or it fails
        return parser

    def parse_number(self, text: str) -> Any:
        """A number as SymPy reads it, which makes a program of the text and runs it."""
        plain = text.replace(",", "")
        if plain.isdecimal():
            return Integer(plain)
        return Float(plain) if _DECIMAL.fullmatch(plain) else super().parse_number(text)


class _Ahead(ParserATNSimulator):
    """Says which way to go on, by the tokens if they tell and as ANTLR does if they do not."""

    def adaptivePredict(self, input: Any, decision: int, outerContext: ParserRuleContext) -> int:
        ways = _ways(decision, input.LA(1))
        if len(ways) == 1:
            return ways[0]
        told = _TOLD.get(Grammar.ruleNames[self.atn.decisionToState[decision].ruleIndex])
        way = told(input, ways) if told else UNKNOWN
        return way or super().adaptivePredict(input, decision, outerContext)


@cache
def _ways(decision: int, token: int) -> tuple[int, ...]:
    """The ways that can begin with the token, or with whatever follows the rule."""
    ways = enumerate(Grammar.atn.decisionToState[decision].transitions, 1)
    begins = [(way, Grammar.atn.nextTokens(each.target)) for way, each in ways]
    return tuple(way for way, tokens in begins if token in tokens or Token.EPSILON in tokens)


# --- what tokens tell -----------------------------------------------------------------------------

_LOWERED, _RAISED = Grammar.UNDERSCORE, Grammar.CARET
_EQUALS = {Grammar.ASSIGNMENT, Grammar.IN}
_RELATIONS = _EQUALS | {
    Grammar.EQUAL, Grammar.APPROX, Grammar.UNEQUAL, Grammar.NOTIN,
    Grammar.LT, Grammar.LTE, Grammar.GT, Grammar.GTE,
}  # fmt: skip
_OF_SETS = {
    Grammar.UNION, Grammar.INTERSECTION, Grammar.SET_MINUS, Grammar.SUBSET, Grammar.SUPSET,
}  # fmt: skip
_BOTH_ENDS = {Grammar.BAR, Grammar.VERT, Grammar.NORM, Grammar.DIFFERENTIAL}  # |x|, and dx of a sum


def _index(tokens: CommonTokenStream, ways: tuple[int, ...]) -> int:
    """Of a symbol: `^ _`, `_ ^`, `_`, `^` or nothing follows; what comes after the first tells."""
    first, last = tokens.LA(1), _end_of_group(tokens, 2)
    then = tokens.LA(last + 1)
    if last == 2 and then in (_LOWERED, _RAISED):
        return UNKNOWN  # which may be of the symbol, or of its index
    if first == _RAISED:
        return 1 if then == _LOWERED else 4
    return 2 if then == _RAISED else 3


def _end_of_group(tokens: CommonTokenStream, start: int) -> int:
    """Where what begins there ends: a token, or all between braces."""
    depth, place = 0, start
    while (token := tokens.LA(place)) != Token.EOF:
        depth += (token == Grammar.L_BRACE) - (token == Grammar.R_BRACE)
        if depth <= 0:
            break
        place += 1
    return place


def _element(tokens: CommonTokenStream, ways: tuple[int, ...]) -> int:
    r"""With `\pm`, a set, or an expression."""
    return 3 if ways == (1, 3) and Grammar.PLUS_MINUS not in _kinds(tokens) else UNKNOWN


def _whole(tokens: CommonTokenStream, ways: tuple[int, ...]) -> int:
    """A symbol equal to elements, elements, or an operation on sets."""
    kinds = _kinds(tokens)
    if any(kind in _OF_SETS for kind in kinds):
        return UNKNOWN
    relations = [place for place, kind in enumerate(kinds, 1) if kind in _RELATIONS]
    if not relations:
        return 2
    return 1 if relations == [2] and kinds[1] in _EQUALS else UNKNOWN


def _kinds(tokens: CommonTokenStream) -> list[int]:
    return [token.type for token in tokens.tokens if token.channel == Token.DEFAULT_CHANNEL]


def _factor(tokens: CommonTokenStream, ways: tuple[int, ...]) -> int:
    """One more factor that needs no sign of multiplication, or none."""
    return UNKNOWN if tokens.LA(1) in _BOTH_ENDS else 1


_TOLD = {
    "atom_expr": _index,
    "element": _element,
    "element_no_relation": _element,
    "math": _whole,
    "unary": _factor,
}
