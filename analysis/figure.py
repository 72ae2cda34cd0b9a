"""Declared figures: what is drawn against what, as values that a study file lists.

A figure turns runs into panels, which are plain values, and says what it left out. How panels look
is settled in `panel` and `style` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from analysis.intervals import FEW, SEEDS, explain, number_of_seeds
from analysis.load import Runs, level_title, pick, share_of
from analysis.metrics import STEP, axis_label, level_of, metric
from analysis.output import Output
from analysis.panel import Drawn, Line, Panel
from analysis.quantities import (
    UNBIASED,
    check_pass_at_k,
    curves,
    gate_decisions,
    pass_at_k,
    smoothed,
)
from analysis.scores import check_samples
from workbench.identity import nearest
from workbench.passk import FloatArray
from workbench.rules import Count
from workbench.schema import METRICS, VALIDATION_LEVEL
from workbench.study import flatten

# What rounding leaves of a number, as a share of it, where the old policy's log-probabilities were
# taken in another pass; and of what is 0, such as a KL.
_ROUNDING, _NOTHING = 1e-3, 1e-5


@dataclass(frozen=True)
class Panels:
    """What a figure shows of some runs.

    Attributes:
        panels: those that have anything to show.
        note: what stands under them.
        left_out: in sentences, what has nothing to show.
        metrics: what each panel is of, where that is a metric.
        columns: how many stand beside each other; None fills the rows.
    """

    panels: tuple[Drawn, ...]
    note: str = ""
    left_out: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    columns: int | None = None


@dataclass(frozen=True)
class Drawing(Output):
    """Anything that is drawn from a study's runs."""

    def panels(self, runs: Runs) -> Panels:
        """The panels of these runs."""
        raise NotImplementedError

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        """What each arm's colour stands for; the arm itself unless the figure says otherwise."""
        return {label: label for label in labels}


@dataclass(frozen=True)
class Figure(Drawing):
    """Metrics of training against the step, or against each other, one panel for each.

    Each seed is drawn faintly, and with five or more a line has its t interval as a band.

    Attributes:
        x: `step` or any metric, such as `budget/sampled_tokens`.
        y: one metric or several.
        color: `label` for one colour an arm, or a dotted field of the recipe, such as
            `optimizer.learning_rate`, for one colour a value.
        smooth: steps of the running mean that is taken of each line; 1 leaves it as it is.
        constants: values to compare with, by label, as lines from side to side, such as
            `{"LUFFY": 1 / 8}` beside an offline ratio; an arm's label takes the arm's look.

    Raises:
        ValueError: a metric or field that there is none of, with the nearest.
    """

    x: str = STEP.key
    y: str | tuple[str, ...] = "reward/mean"
    color: str = "label"
    smooth: Count = 1
    constants: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "y", (self.y,) if isinstance(self.y, str) else tuple(self.y))
        if not self.y:
            raise ValueError("Figure.y needs at least one metric, such as 'reward/mean'")
        for key in (self.x, *self.y):
            metric(key)
        if self.color != "label":
            fields = {name for recipe in self.study.recipes.values() for name in flatten(recipe)}
            if self.color not in fields:
                hint = nearest(self.color, ["label", *sorted(fields)])
                raise ValueError(f"Figure.color is {self.color!r}; {hint}")

    def panels(self, runs: Runs) -> Panels:
        assert isinstance(self.y, tuple)
        drawn = [Curve(self.x, key, self.smooth) for key in self.y]
        found = _of_history(runs, drawn, self.keys(runs.labels))
        if not self.constants:
            return found
        said = ", ".join(f"{label} {value:g}" for label, value in self.constants.items())
        panels = tuple(self._with_constants(panel) for panel in found.panels)
        return replace(found, panels=panels, note=f"{found.note}\nConstant: {said}.".strip())

    def _with_constants(self, panel: Drawn) -> Panel:
        """The panel with each constant as a line as wide as its others."""
        assert isinstance(panel, Panel)
        every = np.concatenate([line.x for line in panel.lines])
        ends = np.array([every.min(), every.max()])
        more = tuple(
            Line(label, label, ends, np.full(2, value)) for label, value in self.constants.items()
        )
        return replace(panel, lines=(*panel.lines, *more))

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        named = {label: label for label in (*labels, *self.constants)}
        if self.color == "label":
            return named
        fields = {label: flatten(self.study.recipes[label]) for label in labels}
        return named | {label: fields[label].get(self.color, "none") for label in labels}


@dataclass(frozen=True)
class LearningCurves(Drawing):
    """Validation accuracy against the step: on all problems, then on each level's."""

    def panels(self, runs: Runs) -> Panels:
        overall = "validation/pass_at_1"
        levels = sorted(level for key in runs.history if (level := level_of(key)) is not None)
        titles = {overall: "All levels"}
        titles |= {VALIDATION_LEVEL.format(level=n): level_title(self.study, n) for n in levels}
        drawn = [Curve(STEP.key, key) for key in titles]
        found = _of_history(runs, drawn, self.keys(runs.labels), level=True)
        name = axis_label(METRICS[overall])
        panels = [
            replace(panel, title=titles[key], y_label=name)
            for key, panel in zip(found.metrics, found.panels, strict=True)
        ]
        return replace(found, panels=tuple(panels))


@dataclass(frozen=True)
class Dynamics(Drawing):
    """How training went at a glance; panels that no arm has the metric for are skipped.

    Metrics of validation are of the same sampling for every method, also for one that samples
    nothing to train on.

    Attributes:
        smooth: steps of the running mean that is taken of each line, as the note says; of those
            that are measured at every step.
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
        "validation/entropy",
        "validation/length",
    )

    smooth: Count = 5

    def panels(self, runs: Runs) -> Panels:
        drawn = [
            Curve(STEP.key, key, 1 if key.startswith("validation/") else self.smooth)
            for key in self.METRICS
        ]
        return replace(_of_history(runs, drawn, self.keys(runs.labels)), left_out=())


@dataclass(frozen=True)
class PassAtK(Drawing):
    """Pass@k against k, one panel a suite, one line an arm, with intervals and each seed.

    Attributes:
        suites: to show; empty takes all that the study is evaluated on.
        k: empty takes powers of two up to half the samples, as the paper's 1024 of 2048: at k = n
            a problem counts as 0 or 1 by a single draw of samples.
        over: what the band is over where an arm has several runs, `seeds` or `problems` (each
            run's Pass@k averaged first); an arm of one run has it over problems instead of seeds.
            Or `samples`: the same runs answering the same problems again.
        estimator: `unbiased`, or `with_replacement` for the paper's, which is biased low.

    Raises:
        ValueError: k below 1, an unknown `over` or `estimator`, or a band over samples of the
            paper's; on `check`, an unknown suite, or k above its samples.
    """

    suites: tuple[str, ...] = ()
    k: tuple[Count, ...] = ()
    over: str = SEEDS
    estimator: str = UNBIASED

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "suites", tuple(self.suites))
        object.__setattr__(self, "k", tuple(sorted(set(self.k))))
        check_pass_at_k(self.over, self.estimator, "PassAtK")

    def check(self) -> None:
        check_samples(self.study, self.suites, max(self.k, default=1), f"PassAtK {self.name!r}")

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
        each = [len(line.runs) for panel in panels for line in panel.lines if line.runs]
        if each:
            notes.insert(0, f"Line: mean over seeds ({number_of_seeds(each)}). Faint: each seed.")
        if self.estimator != UNBIASED:
            notes.append("Drawn with replacement, as in the paper: biased low where k is near n.")
        return Panels(tuple(panels), "\n".join(notes), tuple(left_out))

    def ks(self, suite: str) -> tuple[int, ...]:
        """The k that are drawn for a suite."""
        n = self.study.evaluation.samples_for(suite)
        return self.k or tuple(2**power for power in range(max(1, n // 2).bit_length()))

    def _lines(self, runs: Runs, suite: str) -> tuple[tuple[Line, ...], set[tuple[str, int]]]:
        """A line for each arm, and what each band is over: the unit and how many."""
        counts, ks = pick(runs.evaluations, suite=suite), self.ks(suite)
        frame = pass_at_k(counts, ks, self.over, self.estimator)
        lines, units = [], set()
        for label in runs.labels:
            mine = pick(frame, label=label)
            if mine.empty:
                continue
            x, mean, low, high = (mine[n].to_numpy("float64") for n in ("k", "mean", "low", "high"))
            over, n = str(mine["over"].iloc[0]), int(mine["n"].iloc[0])
            if n > 1:
                units.add((over, n))
            band = (100 * low, 100 * high) if n > 1 else None
            # The same of each run, as though its seed were its arm.
            runs_of = pick(counts, label=label)
            each = pass_at_k(runs_of.assign(label=runs_of["seed"]), ks, estimator=self.estimator)
            seeds = [run["mean"].to_numpy("float64") for _, run in each.groupby("label")]
            faint = tuple((x, 100 * y) for y in seeds) if len(seeds) > 1 else ()
            lines.append(Line(label, label, x, 100 * mean, band, faint))
        return tuple(lines), units


@dataclass(frozen=True)
class GateDecisions(Drawing):
    """How much of its weight the gate gave to demonstrations, against the step, for each level.

    Attributes:
        smooth: steps of the running mean that is taken of each line.
    """

    smooth: Count = 5

    def panels(self, runs: Runs) -> Panels:
        gated = [label for label in runs.labels if _has_gate(flatten(self.study.recipes[label]))]
        if not gated:
            return Panels((), left_out=("no finished arm has a gate",))
        mine = runs.of(gated)
        history = gate_decisions(mine.questions)
        levels = sorted(int(key.rpartition("_")[2]) for key in history if key.startswith("gate/"))
        panels = []
        for n in levels:
            curve = Curve(STEP.key, f"gate/level_{n}", self.smooth)
            lines, title = _lines(history, mine.labels, curve, {}), level_title(self.study, n)
            panels.append(Panel(title, STEP.label, _GATED, lines, y_range=(-0.04, 1.04)))
        notes = [*_lines_note(panels, [self.smooth]), *_starts(mine, panels), *_missing(mine)]
        return Panels(tuple(panels), "\n".join(notes))


_GATED = "Weight on demonstrations (share)"


def _has_gate(fields: Mapping[str, str]) -> bool:
    return fields.get("method.gate", "Open()") != "Open()"


# --- training history -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One metric against another, as a running mean over some steps."""

    x: str
    y: str
    smooth: Count = 1


def _of_history(
    runs: Runs, drawn: Sequence[Curve], keys: Mapping[str, str], level: bool = False
) -> Panels:
    """A panel for each curve that any arm has values of; its title is the metric's name.

    Of several, those in which every arm is one number throughout become a note, unless they are
    wanted (`level`): on policy, where nothing is masked, a ratio is 1.
    """
    panels, shown, left_out, flat = [], [], [], {}
    for curve in drawn:
        x, y = metric(curve.x), metric(curve.y)
        lines = _lines(runs.history, runs.labels, curve, keys)
        if lines:
            alone = len(drawn) == 1
            title, y_label = ("", axis_label(y)) if alone else (y.label, y.unit)
            number = None if alone or level else _one_number(lines)
            if number is not None:
                flat[y.label] = number
                continue
            panels.append(Panel(title, axis_label(x), y_label, lines))
            shown.append(y.key)
        else:
            against = f" at more than one value of {x.key}" if x != STEP else ""
            left_out.append(f"no run has the metric {y.key}{against}")
    notes = [*_lines_note(panels, [curve.smooth for curve in drawn]), *_starts(runs, panels)]
    notes += _missing(runs)
    if flat:
        said = ", ".join(f"{name} {number:g}" for name, number in flat.items())
        if panels:
            notes.append(f"The same for all arms throughout: {said}.")
        else:  # or nothing would say why there is no figure
            left_out.append(f"the same for all arms throughout: {said}")
    return Panels(tuple(panels), "\n".join(notes), tuple(left_out), tuple(shown))


def _one_number(lines: Sequence[Line]) -> float | None:
    """The number that all runs of all lines are at, but for rounding; None where they differ."""
    drawn = [line.y for line in lines] + [y for line in lines for _, y in line.runs]
    every = np.concatenate(drawn)
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    size = max(abs(low), abs(high))
    if high - low > max(_ROUNDING * size, _NOTHING):
        return None
    return 0.0 if size <= _NOTHING else float(f"{high:.3g}")


def _lines(
    history: pd.DataFrame, labels: Sequence[str], curve: Curve, keys: Mapping[str, str]
) -> tuple[Line, ...]:
    """A line for each arm that has a curve: its mean at every step, each run, and maybe a band.

    Several runs are smoothed as their mean is; one is shown at every step beside its running mean.
    Against a metric that stays what it is (the tokens that SFT samples), an arm has none.
    """
    points = {n: smoothed(history, curve.x, curve.y, n) for n in (1, curve.smooth)}
    means = curves(history, curve.x, curve.y, curve.smooth)
    lines = []
    for label in labels:
        mean = pick(means, label=label)
        if mean.empty or (curve.x != STEP.key and len(mean) > 1 and len(set(mean["x"])) == 1):
            continue
        x, y, low, high = (mean[n].to_numpy("float64") for n in ("x", "mean", "low", "high"))
        several = max(mean["n"]) > 1
        mine = pick(points[curve.smooth if several else 1], label=label)
        runs = [_xy(run) for _, run in mine.groupby("seed", sort=True)]
        band = (low, high) if len(runs) >= FEW else None
        lines.append(Line(label, keys.get(label, label), x, y, band, tuple(runs), len(runs)))
    return tuple(lines)


def _xy(run: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    return run["x"].to_numpy("float64"), run["y"].to_numpy("float64")


def _lines_note(panels: Sequence[Panel], smooths: Sequence[int]) -> list[str]:
    """How many runs a line is the mean of, what its band is, and how it is smoothed."""
    lines = [line for panel in panels for line in panel.lines]
    counts = sorted({line.n for line in lines})
    if not counts:
        return []
    one, n = counts[-1] == 1, number_of_seeds(counts)
    note = f"Line: one seed ({n})." if one else f"Line: mean over seeds ({n}). Faint: each seed."
    if max(smooths) > 1:
        where = " where every step is measured" if min(smooths) < max(smooths) else ""
        running = f"Running means of {max(smooths)} steps{where}."
        note = f"{note} {running}{' Faint: every step.' if one else ''}"
    bands = {(SEEDS, line.n) for line in lines if line.band is not None}
    return [note, *explain(bands, "Band")]


def _starts(runs: Runs, panels: Sequence[Panel]) -> list[str]:
    return runs.starts(line.label for panel in panels for line in panel.lines)


def _missing(runs: Runs) -> list[str]:
    total = len(runs.kept) + len(runs.missing)
    return [f"{share_of(len(runs.missing), total, 'runs')} missing."] if runs.missing else []
