"""Declared figures: what is drawn against what, as values that a study file lists.

A figure turns runs into panels, which are plain values, and says what it left out. How panels look
is settled in `panel` and `style` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from analysis.intervals import PROBLEMS, SEEDS, explain
from analysis.load import Runs, pick, share_of, suites_of
from analysis.metrics import STEP, axis_label, level_of, metric
from analysis.panel import Line, Panel
from workbench.identity import nearest
from workbench.passk import Estimate, FloatArray, mean_interval, mean_pass_at_k, pass_at_k
from workbench.schema import METRICS, VALIDATION_LEVEL
from workbench.study import Study, flatten


@dataclass(frozen=True)
class Panels:
    """What a figure shows of some runs.

    Attributes:
        panels: those that have anything to show.
        note: what stands under them.
        left_out: in sentences, what has nothing to show.
        metrics: what each panel is of, where that is a metric.
    """

    panels: tuple[Panel, ...]
    note: str = ""
    left_out: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """Anything that is drawn from a study's runs.

    Attributes:
        name: of the files.
        study: whose runs are shown.
    """

    name: str
    study: Study

    def check(self) -> None:
        """Raises ValueError where the study's data or evaluation cannot give the figure."""

    def panels(self, runs: Runs) -> Panels:
        """The panels of these runs."""
        raise NotImplementedError

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        """What each arm's colour stands for; the arm itself unless the figure says otherwise."""
        return {label: label for label in labels}


@dataclass(frozen=True)
class Figure(Drawing):
    """Metrics of training against the step, or against each other, one panel for each.

    Attributes:
        x: `step` or any metric, such as `budget/sampled_tokens`.
        y: one metric or several.
        color: `label` for one colour an arm, or a dotted field of the recipe, such as
            `optimizer.learning_rate`, for one colour a value.
        smooth: steps of the running mean that is taken of each line; 1 leaves it as it is.

    Raises:
        ValueError: a metric or field that there is none of, with the nearest.
    """

    x: str = STEP.key
    y: str | tuple[str, ...] = "reward/mean"
    color: str = "label"
    smooth: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", (self.y,) if isinstance(self.y, str) else tuple(self.y))
        if not self.y:
            raise ValueError("Figure.y needs at least one metric, such as 'reward/mean'")
        for key in (self.x, *self.y):
            metric(key)
        _check_smooth(self)
        if self.color != "label":
            fields = {name for recipe in self.study.recipes.values() for name in flatten(recipe)}
            if self.color not in fields:
                hint = nearest(self.color, ["label", *sorted(fields)])
                raise ValueError(f"Figure.color is {self.color!r}; {hint}")

    def panels(self, runs: Runs) -> Panels:
        assert isinstance(self.y, tuple)
        curves = [Curve(self.x, key, self.smooth) for key in self.y]
        return _of_history(runs, curves, self.keys(runs.labels))

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        if self.color == "label":
            return super().keys(labels)
        fields = {label: flatten(self.study.recipes[label]) for label in labels}
        return {label: fields[label].get(self.color, "none") for label in labels}


@dataclass(frozen=True)
class LearningCurves(Drawing):
    """Validation accuracy against the step: on all problems, then on each level's."""

    def panels(self, runs: Runs) -> Panels:
        overall = "validation/pass_at_1"
        levels = sorted(level for key in runs.history if (level := level_of(key)) is not None)
        titles = {overall: "All levels"}
        titles |= {VALIDATION_LEVEL.format(level=n): f"Level {n}" for n in levels}
        curves = [Curve(STEP.key, key) for key in titles]
        found = _of_history(runs, curves, self.keys(runs.labels))
        name = axis_label(METRICS[overall])
        panels = [
            replace(panel, title=titles[key], y_label=name)
            for key, panel in zip(found.metrics, found.panels, strict=True)
        ]
        return replace(found, panels=tuple(panels))


@dataclass(frozen=True)
class Dynamics(Drawing):
    """How training went at a glance; panels that no arm has the metric for are skipped.

    Attributes:
        smooth: steps of the running mean that is taken of each line, as the note says.
    """

    METRICS: ClassVar[tuple[str, ...]] = (
        "reward/mean",
        "policy/entropy",
        "length/all",
        "offline/questions",
        "optim/gradient_norm",
        "ratio/clip_fraction",
        "policy/kl_old",
        "policy/nll_demonstrations",
    )

    smooth: int = 5

    def __post_init__(self) -> None:
        _check_smooth(self)

    def panels(self, runs: Runs) -> Panels:
        curves = [Curve(STEP.key, key, self.smooth) for key in self.METRICS]
        return replace(_of_history(runs, curves, self.keys(runs.labels)), left_out=())


@dataclass(frozen=True)
class PassAtK(Drawing):
    """Unbiased Pass@k against k, one panel a suite, one line an arm, with t intervals.

    Attributes:
        suites: to show; empty takes all that the study is evaluated on.
        k: empty takes powers of two up to half the samples, as the paper's 1024 of 2048: at k = n
            a problem counts as 0 or 1 by a single draw of samples.
        over: what the band is over where an arm has several runs, `seeds` or `problems` (each
            run's Pass@k averaged first); an arm of one run always has it over problems.

    Raises:
        ValueError: k below 1, or an unknown `over`; on `check`, an unknown suite, or k above its
            samples.
    """

    suites: tuple[str, ...] = ()
    k: tuple[int, ...] = ()
    over: str = SEEDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "suites", tuple(self.suites))
        object.__setattr__(self, "k", tuple(sorted(set(self.k))))
        if self.k and self.k[0] < 1:
            raise ValueError(f"PassAtK.k is at least 1, got {self.k[0]}")
        if self.over not in (SEEDS, PROBLEMS):
            raise ValueError(f"PassAtK.over is {self.over!r}; {nearest(self.over, _UNITS)}")

    def check(self) -> None:
        suites = suites_of(self.study)
        suites.check(self.suites, f"PassAtK {self.name!r}")
        for suite in self.suites or suites.names:
            n = self.study.evaluation.samples_for(suite)
            if self.k and self.k[-1] > n:
                raise ValueError(
                    f"PassAtK {self.name!r} asks for k = {self.k[-1]} on {suite}, which has "
                    f"n = {n} samples a problem; use k of at most {n}, or evaluate more samples"
                )

    def panels(self, runs: Runs) -> Panels:
        panels, counts, left_out = [], set(), []
        for suite in self.suites or runs.suites.names:
            lines, units = self._lines(runs, suite)
            counts |= units
            if lines:
                title = suite if suite in runs.suites.inside else f"{suite} (OOD)"
                panels.append(
                    Panel(title, "k (samples a problem)", "Pass@k (%)", lines, doubling=True)
                )
            else:
                left_out.append(f"no run is evaluated on {suite}")
        notes = [*explain(counts, "Band"), *_missing(runs)]
        return Panels(tuple(panels), "\n".join(notes), tuple(left_out))

    def ks(self, suite: str) -> tuple[int, ...]:
        """The k that are drawn for a suite."""
        n = self.study.evaluation.samples_for(suite)
        return self.k or tuple(2**power for power in range(max(1, n // 2).bit_length()))

    def _lines(self, runs: Runs, suite: str) -> tuple[tuple[Line, ...], set[tuple[str, int]]]:
        """A line for each arm, and what each band is over: the unit and how many."""
        frame = pick(runs.evaluations, suite=suite)
        ks = np.array(self.ks(suite))
        lines, units = [], set()
        for label in runs.labels:
            mine = pick(frame, label=label)
            if mine.empty:
                continue
            over, found = _pass_at_k(mine, ks, self.over)
            if found.units > 1:
                units.add((over, found.units))
            band = (_percent(found.low), _percent(found.high)) if found.units > 1 else None
            lines.append(Line(label, label, ks.astype("float64"), 100 * found.mean, band))
        return tuple(lines), units


_UNITS = (SEEDS, PROBLEMS)


def _pass_at_k(frame: pd.DataFrame, ks: np.ndarray, over: str) -> tuple[str, Estimate]:
    """The mean over problems at every k of one arm on one suite, and what its interval is over."""
    runs = [run.sort_values("problem") for _, run in frame.groupby("seed", sort=True)]
    if len(runs) == 1:
        counts = runs[0]["samples"].to_numpy(), runs[0]["correct"].to_numpy()
        return PROBLEMS, mean_pass_at_k(*counts, ks)
    each = [pass_at_k(run["samples"].to_numpy(), run["correct"].to_numpy(), ks) for run in runs]
    if over == SEEDS:
        return SEEDS, mean_interval([values.mean(axis=0) for values in each])
    return PROBLEMS, mean_interval(np.mean(each, axis=0))


def _percent(share: FloatArray) -> FloatArray:
    """A share's interval in percent, cut to what a share can be."""
    return 100 * np.clip(share, 0.0, 1.0)


# --- training history -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One metric against another, as a running mean over some steps."""

    x: str
    y: str
    smooth: int = 1


def _check_smooth(owner: Figure | Dynamics) -> None:
    if owner.smooth < 1:
        name = type(owner).__name__
        raise ValueError(f"{name}.smooth is a number of steps, at least 1, got {owner.smooth}")


def _of_history(runs: Runs, curves: Sequence[Curve], keys: Mapping[str, str]) -> Panels:
    """A panel for each curve that any arm has values of; its title is the metric's name."""
    panels, shown, left_out = [], [], []
    for curve in curves:
        x, y = metric(curve.x), metric(curve.y)
        found = {label: _line(runs.history, label, curve, keys[label]) for label in runs.labels}
        lines = tuple(line for line in found.values() if line is not None)
        if lines:
            alone = len(curves) == 1
            title, y_label = ("", axis_label(y)) if alone else (y.label, y.unit)
            panels.append(Panel(title, axis_label(x), y_label, lines))
            shown.append(y.key)
        else:
            against = f" at more than one value of {x.key}" if x != STEP else ""
            left_out.append(f"no run has the metric {y.key}{against}")
    smooth = max((curve.smooth for curve in curves), default=1)
    notes = [*_lines_note(panels, smooth), *_missing(runs)]
    return Panels(tuple(panels), "\n".join(notes), tuple(left_out), tuple(shown))


def _line(frame: pd.DataFrame, label: str, curve: Curve, key: str) -> Line | None:
    """The mean over an arm's runs at every step, with each run; None if it has no curve.

    Against a metric that stays what it is (the tokens that SFT samples), there is none.
    """
    x, y = curve.x, curve.y
    if x not in frame or y not in frame:
        return None
    mine = pick(frame, dict.fromkeys(["seed", "step", x, y]), label=label).dropna()
    if mine.empty or (x != STEP.key and len(mine) > 1 and len(set(mine[x])) == 1):
        return None
    mean = pd.DataFrame(mine.groupby("step", as_index=False).mean())
    mean[y] = mean[y].rolling(curve.smooth, center=True, min_periods=1).mean()
    each = [run for _, run in mine.sort_values("step").groupby("seed")]
    points = [(np.array(run[x], "float64"), np.array(run[y], "float64")) for run in (mean, *each)]
    return Line(label, key, *points[0], runs=tuple(points[1:]))


def _lines_note(panels: Sequence[Panel], smooth: int) -> list[str]:
    """How many runs a line is the mean of, and how it is smoothed."""
    counts = sorted({len(line.runs) for panel in panels for line in panel.lines})
    if not counts:
        return []
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    running = f", running mean of {smooth} steps" if smooth > 1 else ""
    if counts[-1] > 1:
        return [f"Line: mean over seeds (n = {n}){running}. Faint: each seed."]
    return [f"Line: one seed{running}." + (" Faint: every step." if running else "")]


def _missing(runs: Runs) -> list[str]:
    total = len(runs.kept) + len(runs.missing)
    return [f"{share_of(len(runs.missing), total, 'runs')} missing."] if runs.missing else []
