"""Table 4: problems that one arm solves and another does not, by difficulty level."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import pandas as pd

from analysis.intervals import SEEDS, Interval, explain_all, of_share, over_seeds
from analysis.load import Runs, pick, suites_of
from analysis.output import Tabular
from analysis.published import PAPER, TABLES, reported
from analysis.quantities import exclusive_solves
from analysis.sheet import Entry, Head, Sheet
from analysis.style import plain
from workbench.passk import LEVEL

NOTHING = "–"
REPORTED = "table4_exclusive_solves"
_COUNTS = ("ours_only", "baseline_only")


@dataclass(frozen=True)
class Exclusive(Tabular):
    """Exclusive solves of one arm against others, counts and percent of each level's problems.

    A problem is solved where at least a share of its samples is correct; only seeds that both arms
    have are compared, and several are averaged.

    Attributes:
        ours: the arm whose exclusive solves are counted.
        baselines: the arms that it is compared with; empty takes all others.
        suites: whose problems count; empty takes all in-distribution suites.
        at_least: share of a problem's samples that must be correct.
        reported: whether the paper's counts stand beside.

    Raises:
        ValueError: an arm or a suite that there is none of, or a share outside (0, 1].
    """

    ours: str = "HPT"
    baselines: Sequence[str] = ("GRPO", "LUFFY")
    suites: Sequence[str] = ()
    at_least: float = 0.5
    reported: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.known_arm(self.ours, "ours")
        others = [label for label in self.study.recipes if label != self.ours]
        object.__setattr__(self, "baselines", tuple(self.baselines or others))
        object.__setattr__(self, "suites", tuple(self.suites))
        for arm in self.baselines:
            self.known_arm(arm, "baselines")
        if not 0 < self.at_least <= 1:
            raise ValueError(
                f"Exclusive.at_least is a share of samples above 0 and at most 1, "
                f"got {self.at_least}"
            )

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.ours, *self.baselines)

    def check(self) -> None:
        suites_of(self.study).check(self.suites, f"Exclusive {self.name!r}")

    def sheet(self, runs: Runs) -> Sheet:
        suites = self.suites or runs.suites.inside
        frame = pick(runs.evaluations, suite=tuple(suites))
        rows = []
        for baseline in self.baselines:
            found = exclusive_solves(frame, self.ours, baseline, self.at_least)
            rows += self._rows(baseline, found)
        values = [entry.value for row in rows for entry in row]
        counts = [each for each in values if isinstance(each, Interval) and each.over == SEEDS]
        notes = (
            f"Solved: at least {self.at_least:.0%} of a problem's samples correct; problems of "
            f"{', '.join(suites)}. Percent of the level's problems.",
            *explain_all(counts, "±"),
            f"[ ]: Wilson's {LEVEL:.0%} interval of the percent, over problems, for these runs.",
            *([_reported_note()] if self.reported else []),
            *runs.notes,
        )
        return Sheet(self.name, self._heads(), tuple(rows), notes)

    def _heads(self) -> tuple[Head, ...]:
        columns = [
            Head("Baseline", "baseline", text=True),
            Head("Level", "level"),
            Head("Problems", "problems"),
        ]
        titles = {"ours_only": f"{self.ours} only", "baseline_only": "Baseline only"}
        kinds = {"": ""} | ({"_reported": f", {PAPER}"} if self.reported else {})
        for suffix, said in kinds.items():
            for key, title in titles.items():
                columns.append(Head(f"{title}{said}", f"{key}{suffix}"))
                columns.append(Head(f"%{said}", f"{key}_percent{suffix}"))
        return tuple(columns)

    def _rows(self, baseline: str, counts: pd.DataFrame) -> list[tuple[Entry, ...]]:
        """A row a level, and one for them all; none where the arms have no seed in common."""
        levels = sorted(set(counts["level"]))
        rows = [self._row(baseline, str(n), pick(counts, level=n)) for n in levels]
        if len(levels) > 1:
            summed = counts.groupby("seed", as_index=False)[["problems", *_COUNTS]].sum()
            rows.append(self._row(baseline, "all", pd.DataFrame(summed)))
        return rows

    def _row(self, baseline: str, level: str, counts: pd.DataFrame) -> tuple[Entry, ...]:
        problems = int(counts["problems"].iloc[0])
        entries = [Entry(baseline, baseline), Entry(level, level), Entry(str(problems), problems)]
        for key in _COUNTS:
            found = over_seeds([float(count) for count in counts[key]])
            digits = 0 if len(counts) == 1 else 1
            spread = "" if isnan(found.half) else f"{found.half:.1f}"
            entries += [Entry(f"{found.mean:.{digits}f}", found, spread), _percent(found, problems)]
        return (*entries, *(_reported(baseline, level) if self.reported else ()))


def _percent(count: Interval, problems: int) -> Entry:
    """The percent of the problems, with an interval that has a width at a count of 0 too."""
    share = of_share(count.mean / problems, problems)
    percent = Interval(100 * share.mean, 100 * share.low, 100 * share.high, problems, share.over)
    return Entry(f"{percent.mean:.1f} [{percent.low:.1f}, {percent.high:.1f}]", percent)


def _reported(baseline: str, level: str) -> list[Entry]:
    """The paper's counts of the same level against the same baseline."""
    rows = [
        row
        for row in reported(REPORTED).to_dict("records")
        if plain(row["baseline"]) == plain(baseline) and level in (str(row["level"]), "all")
    ]
    if not rows:
        return [Entry(NOTHING)] * 4
    problems = sum(row["problems"] for row in rows)
    entries = []
    for key in ("hpt_only", "baseline_only"):
        count = float(sum(row[key] for row in rows))
        percent = 100 * count / problems
        entries += [Entry(f"{count:.0f}", count), Entry(f"{percent:.1f}", percent)]
    return entries


def _reported_note() -> str:
    return f"Reported (paper): arXiv 2509.04419, {TABLES[REPORTED]}; not measured here."
