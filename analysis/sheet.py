"""A finished table: cells with their emphasis, written as Markdown, LaTeX, CSV or HTML."""

import csv
import io
from dataclasses import dataclass
from html import escape
from math import isnan

from analysis.intervals import Interval


@dataclass(frozen=True)
class Entry:
    """One cell: what is read, whether it is the best of its column, and the plain number."""

    text: str
    value: float | Interval | str | None = None
    spread: str = ""
    best: bool = False

    @property
    def plain(self) -> str:
        """The cell without emphasis, as the terminal shows it."""
        return f"{self.text} ± {self.spread}" if self.spread else self.text


@dataclass(frozen=True)
class Head:
    """A column.

    Attributes:
        title: what is read.
        key: what CSV calls it.
        group: that its title stands under.
        text: whether it holds words, which begin at the left, and not numbers.
    """

    title: str
    key: str
    group: str = ""
    text: bool = False


@dataclass(frozen=True)
class Sheet:
    """Rows of entries under heads, with the notes that a reader needs."""

    name: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """A pipe table with the best of each column in bold, and the notes under it."""
        titles = [_markdown(head.title) for head in self.heads]
        lines = [_pipe(titles), _pipe(["---" if left else "---:" for left in self._left])]
        lines += [_pipe([_markdown_entry(entry) for entry in row]) for row in self.rows]
        notes = [f"- {_markdown(note)}" for note in self.notes]
        return "\n".join([*lines, "", *notes]) + "\n"

    def latex(self) -> str:
        """A `tabular` of booktabs and graphicx, with the best in bold and the notes as comments."""
        titles = " & ".join(_latex(head.title) for head in self.heads)
        body = [" & ".join(_latex_entry(entry) for entry in row) + r" \\" for row in self.rows]
        lines = [
            r"% \usepackage{booktabs,graphicx}",
            *(f"% {note}" for note in self.notes),
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in self._left)}}}",
            r"\toprule",
            *self._latex_groups(),
            rf"{titles} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """A `table` with the best of each column in bold, and the notes as a list under it."""
        sides = ["text" if left else "number" for left in self._left]
        titles = "".join(
            f'<th class="{side}" scope="col">{escape(head.title)}</th>'
            for side, head in zip(sides, self.heads, strict=True)
        )
        groups = "".join(
            f'<th class="group" colspan="{last - first + 1}" scope="colgroup">{escape(group)}</th>'
            if group
            else f'<td colspan="{last - first + 1}"></td>'
            for group, first, last in self._groups()
        )
        body = "\n".join(
            "<tr>" + "".join(map(_html_entry, row, sides)) + "</tr>" for row in self.rows
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            '<div class="wide"><table>\n<thead>'
            + (f"<tr>{groups}</tr>" if any(head.group for head in self.heads) else "")
            + f"<tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
            + f'<ul class="notes">{notes}</ul>\n'
        )

    def csv(self) -> str:
        """Plain numbers: an interval is three columns, its ends empty where there is none."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        spans = [any(isinstance(row[at].value, Interval) for row in self.rows) for at in self._at]
        keys = [
            [head.key, f"{head.key}_low", f"{head.key}_high"] if spans[at] else [head.key]
            for at, head in enumerate(self.heads)
        ]
        writer.writerow([key for each in keys for key in each])
        for row in self.rows:
            cells = [_numbers(entry, spans[at]) for at, entry in enumerate(row)]
            writer.writerow([cell for each in cells for cell in each])
        return out.getvalue()

    @property
    def _left(self) -> list[bool]:
        """Which columns begin at the left: the first, and those of words."""
        return [at == 0 or head.text for at, head in enumerate(self.heads)]

    @property
    def _at(self) -> range:
        return range(len(self.heads))

    def _groups(self) -> list[tuple[str, int, int]]:
        """Neighbouring heads of one group: its title, its first and its last column from 1."""
        spans: list[tuple[str, int, int]] = []
        for at, head in enumerate(self.heads, start=1):
            if spans and spans[-1][0] == head.group:
                spans[-1] = (head.group, spans[-1][1], at)
            else:
                spans.append((head.group, at, at))
        return spans

    def _latex_groups(self) -> list[str]:
        """A row of group titles over ruled spans; none where no head has a group."""
        spans = self._groups()
        if not any(group for group, _, _ in spans):
            return []
        titles = [
            rf"\multicolumn{{{last - first + 1}}}{{c}}{{{_latex(group)}}}"
            if group
            else "&".join([""] * (last - first + 1))
            for group, first, last in spans
        ]
        rules = [rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in spans if group]
        return [" & ".join(titles) + r" \\", "".join(rules)]


def _pipe(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|*_`<>[]" else c for c in text)


def _markdown_entry(entry: Entry) -> str:
    text = f"**{_markdown(entry.text)}**" if entry.best else _markdown(entry.text)
    return f"{text} ± {entry.spread}" if entry.spread else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    **{
        greek: rf"$\{name}$"
        for greek, name in zip("αβγπ", ("alpha", "beta", "gamma", "pi"), strict=True)
    },
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(text: str) -> str:
    parts = text.replace("→", "->").split("->")
    return r"$\rightarrow$".join("".join(_LATEX.get(c, c) for c in part) for part in parts)


def _latex_entry(entry: Entry) -> str:
    text = rf"\textbf{{{_latex(entry.text)}}}" if entry.best else _latex(entry.text)
    return rf"{text}$_{{\pm {entry.spread}}}$" if entry.spread else text


def _html_entry(entry: Entry, side: str) -> str:
    text = escape(entry.text).replace("(", "(<wbr>")  # where a long value may be broken
    text = f"<strong>{text}</strong>" if entry.best else text
    spread = f'<span class="spread"> ± {escape(entry.spread)}</span>' if entry.spread else ""
    return f'<td class="{side}">{text}{spread}</td>'


def _numbers(entry: Entry, spans: bool) -> list[str]:
    """The plain numbers of a cell, three of them in a column of intervals."""
    value = entry.value
    if isinstance(value, Interval):
        return [_number(each) for each in (value.mean, value.low, value.high)]
    only = value if isinstance(value, str) else _number(value)
    return [only, "", ""] if spans else [only]


def _number(value: float | None) -> str:
    return "" if value is None or isnan(value) else f"{value:.10g}"
