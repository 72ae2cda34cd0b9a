"""Panels of lines or of grids as plain values, and the one way in which they become a page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Page
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.metrics import compact
from analysis.style import STYLE, Look
from workbench.durable import new_file
from workbench.passk import FloatArray

FORMATS = ("pdf", "svg", "png")

# Inches: a page is at most as wide as a text block; (page width, panel height) by columns.
_SIZES = {1: (4.0, 2.3), 2: (5.6, 1.9), 3: (6.9, 1.75), 4: (6.9, 1.5)}
_LEGEND_ROW, _NOTE_ROW, _SCALE = 0.165, 0.13, 0.56  # the last is a colour scale's height
_HEAT_HEIGHT = 2.4
_Y_LABEL = 30  # characters that fit beside a panel
_TITLE = 32  # and above one
_HANDLE, _CHARACTER = 0.62, 0.065  # widths in a legend: a line with its gaps, and one letter
_SMALL_CHARACTER = 0.05  # and a letter's of the note

_DENSE = 30  # points from which a line is thinner and has few markers
_FEW_RUNS = 3  # up to which a run's own line is as wide as it may be

_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


@dataclass(frozen=True)
class Line:
    """The mean of an arm, with its band and the runs that it is the mean of.

    Attributes:
        label: the arm.
        key: what the colour stands for and the legend names; the arm unless told otherwise.
        x, y: of the mean.
        band: lower and upper ends of the interval.
        runs: x and y of each run, drawn faintly.
        n: how many runs it is the mean of; 0 if it is none's.
    """

    label: str
    key: str
    x: FloatArray
    y: FloatArray
    band: tuple[FloatArray, FloatArray] | None = None
    runs: tuple[tuple[FloatArray, FloatArray], ...] = ()
    n: int = 0


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes.

    Attributes:
        doubling: x in powers of two.
        marked: values of x with a dotted line of their own.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    doubling: bool = False
    y_range: tuple[float, float] | None = None
    marked: tuple[float, ...] = ()


@dataclass(frozen=True)
class Heat:
    """Numbers as colours, one cell each, on a scale that all panels of a page share.

    Attributes:
        values: [row, column], drawn from the top; NaN is an empty cell.
        cell: what a number is, with its unit.
        ends: of the scale.
        colors: a matplotlib colour map, or colours from the lowest number to the highest.
    """

    title: str
    x_label: str
    y_label: str
    values: FloatArray
    cell: str
    ends: tuple[float, float] = (0.0, 1.0)
    colors: str | tuple[str, ...] = "cividis"

    @property
    def scale(self) -> ScalarMappable:
        """How a number becomes a colour."""
        if isinstance(self.colors, str):
            colors: Colormap = matplotlib.colormaps[self.colors]
        else:
            colors = LinearSegmentedColormap.from_list("ends", self.colors)
        return ScalarMappable(Normalize(*self.ends), colors)


@dataclass(frozen=True)
class Mark:
    """A point with its intervals.

    Attributes:
        key: what its look stands for and the legend names.
        x, y: value, and lower and upper end; a value that is only bounded has a lower end of 0 or
            less and is drawn as an arrow from the upper one.
    """

    key: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


@dataclass(frozen=True)
class Scatter:
    """Marks on two logarithmic axes of one unit.

    Attributes:
        sums: lines along which x + y is constant.
    """

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    sums: tuple[float, ...] = ()


Drawn = Panel | Heat | Scatter


def draw(
    panels: Sequence[Drawn],
    looks: Mapping[str, Look],
    note: str = "",
    columns: int | None = None,
) -> Page:
    """Draws the panels row by row, then one legend or scale and the note for them all."""
    columns = columns or _columns(len(panels))
    rows = ceil(len(panels) / columns)
    width, height = _SIZES[min(columns, max(_SIZES))]
    heats = [panel for panel in panels if isinstance(panel, Heat)]
    legend = _legend(panels, looks, width)
    note = "\n".join(fill(line, int(width / _SMALL_CHARACTER)) for line in note.splitlines())
    scattered = any(isinstance(panel, Scatter) for panel in panels)
    height = _HEAT_HEIGHT if heats or scattered else height
    above = _SCALE if heats else legend.height
    below = above + _NOTE_ROW * len(note.splitlines()) + 0.06
    page = Page(figsize=(width, rows * height + below), layout="constrained")
    parts = page.subfigures(2, 1, squeeze=False, height_ratios=[rows * height, below])
    upper, lower = parts.ravel()
    axes = upper.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        if isinstance(panel, Heat):
            _draw_heat(ax, panel)
        elif isinstance(panel, Scatter):
            _draw_scatter(ax, panel, looks)
        else:
            _draw_panel(ax, panel, looks)
    for ax in axes[len(panels) :]:
        ax.remove()
    _label_once(upper, list(axes[: len(panels)]))
    if heats:
        _draw_scale(lower, heats[0], below)
    else:
        handles = legend.handles
        lower.legend(handles=handles, loc="upper center", ncols=legend.columns, borderaxespad=0.1)
    at = 1 - above / below
    lower.text(0.5, at, note, ha="center", va="top", fontsize="small", color="#444444")
    return page


@dataclass(frozen=True)
class Legend:
    """Entries for the lines of a page, in columns, and the height in inches that they take."""

    handles: tuple[Line2D, ...]
    columns: int
    height: float


def _legend(panels: Sequence[Drawn], looks: Mapping[str, Look], width: float) -> Legend:
    shown = {line.key for p in panels if isinstance(p, Panel) for line in p.lines}
    shown |= {mark.key for p in panels if isinstance(p, Scatter) for mark in p.marks}
    keys = [key for key in looks if key in shown]
    labels = [fill(key, int((width - _HANDLE) / _CHARACTER)) for key in keys]
    columns = _legend_columns(labels, width)
    rows = (sum(text.count("\n") + 1 for text in column) for column in _split(labels, columns))
    alone = {"linestyle": "none"} if any(isinstance(p, Scatter) for p in panels) else {}
    handles = (
        Line2D([], [], label=label, **{**looks[key].line(), **alone})
        for key, label in zip(keys, labels, strict=True)
    )
    return Legend(tuple(handles), columns, 0.06 + _LEGEND_ROW * max(rows, default=0))


def save(page: Page, folder: Path, name: str) -> list[Path]:
    """Writes the page as PDF, SVG and PNG, without dates: the same data give the same bytes."""
    page.draw_without_rendering()  # settles the layout, once for all formats
    page.set_layout_engine("none")
    for ax in page.axes:
        # The solver's last bits follow from where objects lie in memory; a PDF would show them.
        left, bottom, width, height = (round(float(x), 6) for x in ax.get_position().bounds)
        ax.set_position((left, bottom, width, height))
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS, strict=True):
        drawn = BytesIO()
        page.savefig(drawn, format=kind, metadata=_UNDATED[kind])
        data = drawn.getvalue()
        with new_file(path, point="figures") as handle:
            handle.write(_with_numbered_clips(data) if kind == "svg" else data)
    return paths


def _with_numbered_clips(svg: bytes) -> bytes:
    """The drawing with its clips named in order.

    Matplotlib names them by a hash of their place to the last bit, which differs from one layout of
    the same page to the next; what is written of it, to the sixth decimal, does not.
    """
    names = re.findall(rb'<clipPath id="(\w+)">', svg)
    numbers = {name: b"clip%d" % number for number, name in enumerate(names, start=1)}
    return re.sub(rb"\bp[0-9a-f]{10}\b", lambda found: numbers.get(found[0], found[0]), svg)


@contextmanager
def styled() -> Iterator[None]:
    """The package's own look, whatever matplotlib is set to outside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc_file(STYLE, use_default_template=False)
        yield


def _columns(panels: int) -> int:
    """Rows as full as can be: four panels are 2 by 2, eight are 4 by 2."""
    return {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 7: 4, 8: 4, 9: 3}.get(panels, 4)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """How many columns of entries fit, by the longest of each, spread evenly over the rows."""
    for columns in range(len(labels), 1, -1):
        longest = (max(map(_length, column)) for column in _split(labels, columns))
        if sum(_HANDLE + _CHARACTER * length for length in longest) < width:
            return ceil(len(labels) / ceil(len(labels) / columns))
    return 1


def _split(labels: Sequence[str], columns: int) -> list[Sequence[str]]:
    """A legend's columns, filled as matplotlib fills them: the first ones get one more."""
    rows, more = divmod(len(labels), columns)
    starts = [at * rows + min(at, more) for at in range(columns + 1)]
    return [labels[start:end] for start, end in pairwise(starts)]


def _length(label: str) -> int:
    return max(map(len, label.splitlines()))


def _draw_panel(ax: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    for number, line in enumerate(panel.lines):
        _draw_line(ax, line, looks[line.key], number)
        if line.band is not None:
            # Fainter where there are many, which would add up to grey.
            alpha = min(0.11, 0.9 / len(panel.lines))
            color = looks[line.key].color
            # Where all runs agree there is no interval, and the band closes.
            low, high = (np.where(np.isnan(end), line.y, end) for end in line.band)
            ax.fill_between(line.x, low, high, color=color, alpha=alpha, linewidth=0, zorder=2)
    for x in panel.marked:
        ax.axvline(x, color="#333333", linewidth=0.8, linestyle=":", zorder=1)
    ax.set_title(fill(panel.title, _TITLE))
    ax.set_xlabel(panel.x_label)
    fits = len(panel.y_label) <= _Y_LABEL
    ax.set_ylabel(panel.y_label if fits else panel.y_label.replace(" (", "\n("))
    if panel.y_range is not None:
        ax.set_ylim(panel.y_range)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_tick))
    if panel.doubling:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _draw_heat(ax: Axes, heat: Heat) -> None:
    rows, columns = heat.values.shape
    scale = heat.scale
    ax.set_facecolor("#e8e8e8")  # of empty cells
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    ax.imshow(
        np.ma.masked_invalid(heat.values),
        cmap=scale.get_cmap(),
        vmin=heat.ends[0],
        vmax=heat.ends[1],
        aspect="auto",
        interpolation="none",
        extent=extent,
    )
    ax.grid(visible=False)
    ax.set_title(heat.title)
    ax.set_xlabel(heat.x_label)
    ax.set_ylabel(heat.y_label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    ax.set_yticks([])


def _draw_scatter(ax: Axes, panel: Scatter, looks: Mapping[str, Look]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    for mark in _off_zero(panel.marks):
        look, (x, y) = looks[mark.key], _shown_at(mark)
        options: dict[str, Any] = {}
        for axis, limit, (value, low, high) in (("x", "xuplims", mark.x), ("y", "uplims", mark.y)):
            options[limit] = low <= 0
            below, above = (0.35 * high, 0.0) if low <= 0 else (value - low, high - value)
            options[f"{axis}err"] = [[below], [above]]
        ax.errorbar(
            x,
            y,
            **options,
            color=look.color,
            marker=look.marker,
            markeredgecolor="white",
            linewidth=0.6,
            capsize=1.5,
            zorder=3,
        )
    ax.autoscale_view()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in panel.sums:
        x = np.geomspace(min(left, total / 1e3), total * (1 - 1e-6), 400)
        ax.plot(x, total - x, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=1)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())  # they would run into one another
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)


def _off_zero(marks: Sequence[Mark]) -> Iterator[Mark]:
    """The marks with what is zero, which no logarithmic axis has, bounded below all others."""
    floors = []
    for places in zip(*((mark.x, mark.y) for mark in marks), strict=True):
        ends = [high if low <= 0 else value for value, low, high in places]
        floors.append(0.3 * min([end for end in ends if end > _ZERO], default=1.0))
    for mark in marks:
        x, y = (
            place if place[2] > _ZERO else (0.0, 0.0, floor)
            for place, floor in zip((mark.x, mark.y), floors, strict=True)
        )
        yield Mark(mark.key, x, y)


_ZERO = 1e-9  # what rounding leaves of it


def _shown_at(mark: Mark) -> tuple[float, float]:
    """Where a mark stands: at its value, or at the upper end of what is only bounded."""
    x, y = (high if low <= 0 else value for value, low, high in (mark.x, mark.y))
    return x, y


def _draw_scale(page: SubFigure, heat: Heat, height: float) -> None:
    """The colours from end to end, with what a cell is above them."""
    ax = page.add_axes((0.3, 1 - 0.3 / height, 0.4, 0.09 / height))
    bar = page.colorbar(heat.scale, cax=ax, orientation="horizontal")
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
    ax.set_title(heat.cell, fontsize="small", fontweight="normal", pad=2)
    ax.tick_params(labelsize="small")
    ax.xaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _: object) -> str:
    return compact(value).replace("-", "\N{MINUS SIGN}")


def _draw_line(ax: Axes, line: Line, look: Look, number: int) -> None:
    """The mean over its runs, which are thinner where they are many; HPT's wider line is on top."""
    width = 0.6 * sqrt(min(1.0, _FEW_RUNS / max(1, len(line.runs))))
    for x, y in line.runs:
        ax.plot(x, y, color=look.color, alpha=0.22, linewidth=width, zorder=2.5)
    style = look.line()
    if len(line.x) > _DENSE:
        style["linewidth"] *= 0.8
    order = 3 + look.width
    ax.plot(line.x, line.y, **style, markevery=_marked(len(line.x), number), zorder=order)


def _marked(points: int, number: int) -> list[int]:
    """Few markers a line, shifted from arm to arm so that they do not cover each other."""
    if points <= _DENSE // 2:
        return list(range(points))
    gap = points / 5
    return [int(at) for at in np.arange(gap * (0.1 + 0.14 * (number % 7)), points, gap)]


def _label_once(page: SubFigure, axes: Sequence[Axes]) -> None:
    """Names an axis once for the page where several panels all have that name."""
    if len(axes) > 1 and len({ax.get_xlabel() for ax in axes}) == 1:
        page.supxlabel(axes[0].get_xlabel(), fontsize="medium")
        for ax in axes:
            ax.set_xlabel("")
    if len(axes) > 1 and len({ax.get_ylabel() for ax in axes}) == 1:
        page.supylabel(axes[0].get_ylabel(), fontsize="medium")
        for ax in axes:
            ax.set_ylabel("")
