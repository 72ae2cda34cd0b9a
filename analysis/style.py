"""How an arm looks: a fixed colour, line and marker for each known method, in every figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.mplstyle")

Dashes = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """Colour, line and marker: each alone tells arms apart, so that grey print does too."""

    color: str
    dashes: Dashes
    marker: str
    width: float = 1.2

    def line(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib's `plot`."""
        return {
            "color": self.color,
            "linestyle": self.dashes,
            "marker": self.marker,
            "linewidth": self.width,
            "markeredgecolor": "white",
        }


SOLID: Dashes = "-"
DASHED: Dashes = (0.0, (5.0, 1.8))
DOTTED: Dashes = (0.0, (1.2, 1.4))
DASH_DOT: Dashes = (0.0, (5.0, 1.6, 1.2, 1.6))
LONG: Dashes = (0.0, (9.0, 2.0))
DASH_DOT_DOT: Dashes = (0.0, (5.0, 1.5, 1.2, 1.5, 1.2, 1.5))

# Okabe and Ito's colours, told apart with any colour vision; their yellow is too pale for lines.
KNOWN = {
    "base": Look("#7f7f7f", DOTTED, "X"),
    "sft": Look("#56b4e9", DASHED, "s"),
    "grpo": Look("#0072b2", SOLID, "^"),
    "sft->grpo": Look("#009e73", DASH_DOT, "D"),
    "luffy": Look("#e69f00", LONG, "v"),
    "srft": Look("#cc79a7", DASH_DOT_DOT, "p"),
    "hpt": Look("#d55e00", SOLID, "o", width=1.8),
    "off/on": Look("#882255", DASHED, "<"),
    "mix/on": Look("#44aa99", DASH_DOT, ">"),
}
_ALSO = {"sft/on": "hpt"}  # the paper's name of it beside OFF/ON and Mix/ON

# For labels that are no method's name: Tol's muted colours, apart from those above in lightness.
_COLORS = ("#332288", "#999933", "#000000", "#88ccee", "#aa4499", "#117733", "#ddcc77", "#661100")
_DASHES = (SOLID, DASHED, DASH_DOT, DOTTED, LONG, DASH_DOT_DOT)
_MARKERS = ("o", "s", "^", "D", "v", "p", "X", "<", ">", "h", "*")


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label; the same set of labels gets the same looks, in whatever order.

    Known methods keep theirs beside any others, so that HPT is one colour in every figure.
    """
    every = list(dict.fromkeys(labels))
    others = sorted(label for label in every if _known(label) is None)
    cycle = {label: _other(number) for number, label in enumerate(others)}
    return {label: _known(label) or cycle[label] for label in every}


def plain(label: str) -> str:
    """A label without regard to its case, spaces and kind of arrow."""
    return label.lower().replace(" ", "").replace("→", "->")


def _known(label: str) -> Look | None:
    name = plain(label)
    return KNOWN.get(_ALSO.get(name, name))


def _other(number: int) -> Look:
    turn = number // len(_COLORS)  # shifts the lines when the colours begin again
    return Look(
        _COLORS[number % len(_COLORS)],
        _DASHES[(number + turn) % len(_DASHES)],
        _MARKERS[number % len(_MARKERS)],
    )
