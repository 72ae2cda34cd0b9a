"""Declared differences drawn: a row each, with every seed as a point beside its intervals."""

from math import isnan
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure as Page

from analysis.declared import Declared
from analysis.intervals import number_of_seeds
from analysis.load import Runs
from analysis.style import looks
from workbench.passk import LEVEL

_WIDTH, _ROW, _FRAME = 5.6, 0.36, 1.05  # inches
_LABEL = 60  # characters of a line under the axis


def forest(declared: Declared, runs: Runs) -> Page | None:
    """Draws the differences, in the order of the table; None where none of them has common runs.

    A mean is filled where Holm's p is at most alpha.
    """
    frame = declared.frame(runs)
    shown = pd.DataFrame(frame[frame["n"] > 0])
    if shown.empty:
        return None
    page = Page(figsize=(_WIDTH, _FRAME + _ROW * len(shown)), layout="constrained")
    ax = page.subplots()
    styles = looks(declared.study.recipes)
    for y, row in enumerate(shown.to_dict("records")):
        color = styles[row["arm"]].color
        over_seeds, over_problems = row["difference"], row["problems"]
        if not isnan(over_problems.low):
            ends = (over_problems.low, over_problems.high)
            ax.plot(ends, (y - 0.25,) * 2, color="#777777", linewidth=0.8, marker="|", zorder=2)
        if not isnan(over_seeds.low):
            ends = (over_seeds.low, over_seeds.high)
            ax.plot(ends, (y, y), color=color, linewidth=2.2, zorder=3)
        inside = color if row["holm_p"] <= declared.alpha else "white"
        marked = {"markerfacecolor": inside, "markeredgecolor": color, "markeredgewidth": 1.1}
        ax.plot(over_seeds.mean, y, "D", markersize=5, zorder=5, **marked)
        seeds = list(row["each"].values())
        ax.plot(seeds, [y + 0.3] * len(seeds), "o", color=color, markersize=2.8, zorder=4)
    ax.axvline(0, color="#333333", linewidth=0.6, zorder=1)
    names = [declared.name_of(row) for row in shown.to_dict("records")]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(fill(declared.axis, _LABEL))
    page.supxlabel(_note(declared, shown), fontsize="small", color="#444444")
    return page


def _note(declared: Declared, shown: pd.DataFrame) -> str:
    n = number_of_seeds(map(int, shown["n"]))
    lines = [
        f"Points: each seed. Thick: {LEVEL:.0%} t interval over seeds ({n}).",
        f"Filled: Holm p at most {declared.alpha:g} over {declared.counted}.",
    ]
    if any(not isnan(each.low) for each in shown["problems"]):
        lines[1:1] = [f"Thin: {LEVEL:.0%} bootstrap interval over problems, for these runs."]
    return "\n".join(lines)
