"""Bias and variance of gradient estimators, from the probes of a study: tables and figures.

Everything is computed from the moments that a probe recorded, from all questions and without each
group of them, so that every number has its jackknife interval, differences of two methods included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.figure import Drawing, Panels
from analysis.intervals import Interval
from analysis.load import Runs, pick
from analysis.output import Tabular
from analysis.panel import Line, Mark, Panel, Scatter
from analysis.sheet import Entry, Head, Sheet
from workbench import estimates as recorded
from workbench.estimates import EVERYONE, estimates, moments_of
from workbench.identity import nearest
from workbench.moments import STATISTICS, Measured, interval
from workbench.recipe import Probe
from workbench.records import Row
from workbench.study import Study, differing, flatten

OVERSHOOT = 1.0  # the scale-free error of no estimate at all


def probed(runs: Runs) -> pd.DataFrame:
    """Every recorded moment of the study's probes, of each cell: see `workbench.estimates`."""
    found = [
        recorded.probed(each.run, runs.study.probes).assign(
            label=each.cell.label, seed=each.cell.seed
        )
        for each in runs.kept
    ]
    if not found:
        columns = [*recorded.KEYS, *recorded.ABOUT, "method", "left_out", *recorded.SKETCHES]
        return pd.DataFrame(columns=["label", "seed", *columns])
    return pd.concat(found, ignore_index=True)


def difference(moments: pd.DataFrame, one: str, other: str, name: str) -> Measured:
    """A statistic of one method minus that of another on the same rollouts, paired.

    Args:
        moments: rows of one cell, probe, truth and band.
        one, other: methods.
        name: of `STATISTICS`.
    """
    statistic = STATISTICS[name]
    first, second = (statistic(moments_of(pick(moments, method=m))) for m in (one, other))
    apart = first - second
    return interval(apart[0], [apart[1:]])


# --- what a study declares ------------------------------------------------------------------------


def _labels(study: Study) -> list[str]:
    """Of all the methods that the study probes, in order."""
    return list(dict.fromkeys(m.label for probe in study.probes for m in probe.methods))


def _check(study: Study, owner: str, methods: Sequence[str], **wanted: float) -> None:
    """Raises ValueError for a probe, or a method, that the study does not have."""
    if not study.probes:
        raise ValueError(f"{owner} shows probes, but study {study.name!r} has none: Study(probes=)")
    for field, value in wanted.items():
        known = sorted({each for p in study.probes for each in _values(p, field)})
        if value not in known:
            raise ValueError(f"{owner}.{field} is {value:g}; {nearest(value, known)}")
    for method in methods:
        if method not in _labels(study):
            raise ValueError(f"{owner} names method {method!r}; {nearest(method, _labels(study))}")


def _values(probe: Probe, field: str) -> tuple[float, ...]:
    return probe.mu if field == "mu" else (getattr(probe, _FIELDS.get(field, field)),)


_FIELDS = {"probe_seed": "seed"}


@dataclass(frozen=True)
class Estimators(Tabular):
    """Every method at one probe, the least scale-free error first, with paired differences.

    Attributes:
        step, distance, mu, probe_seed: of the probe.
        baseline: the method that the others are compared with, component by component.
        columns: the statistics that are shown, of `workbench.moments.STATISTICS`.

    Raises:
        ValueError: on `check`, a probe, a method or a statistic that there is not.
    """

    step: int = 0
    distance: int = 0
    mu: float = 0.0
    probe_seed: int = 0
    baseline: str = "grpo"
    columns: Sequence[str] = ("relative_bias", "cosine", "noise_scale", "scale_free_error")

    @property
    def _probe(self) -> dict[str, Any]:
        names = ("step", "distance", "mu", "probe_seed")
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        _check(self.study, "Estimators", [self.baseline], **self._probe)
        for name in self.columns:
            if name not in STATISTICS:
                known = nearest(name, list(STATISTICS))
                raise ValueError(f"Estimators.columns names statistic {name!r}; {known}")

    def sheet(self, runs: Runs) -> Sheet:
        moments = pick(probed(runs), **EVERYONE, **self._probe)
        found = estimates(moments)
        if not found.empty:
            found = found.sort_values("scale_free_error", kind="stable", na_position="last")
        rows = [self._row(moments, row) for row in found.to_dict("records")]
        heads = (*_NAMED, *(Head(_TITLES[name], name) for name in self.columns), _APART)
        return Sheet(self.name, heads, tuple(map(tuple, rows)), self._notes(moments))

    def _row(self, moments: pd.DataFrame, found: Row) -> list[Entry]:
        method = str(found["method"])
        mine = pick(moments, label=found["label"], seed=found["seed"])
        apart = difference(mine, method, self.baseline, "scale_free_error")
        alone = method == self.baseline
        changed = Entry(_DASH if alone else self._changed(method))
        return [
            Entry(method, method),
            changed,
            *(_entry(found, name) for name in self.columns),
            Entry(_DASH) if alone else _signed(apart),
        ]

    def _changed(self, method: str) -> str:
        """What differs from the baseline, where that is one component."""
        known = {m.label: m for probe in self.study.probes for m in probe.methods}
        fields = differing(flatten(known[self.baseline]), flatten(known[method]))
        parts = {key for key in fields if key.startswith("rollouts.") and key.count(".") == 1}
        whole = {key for key in fields if "." not in key} - {"rollouts"}
        if len(parts) != 1 or whole:
            return ""
        (key,) = parts
        return f"{key.removeprefix('rollouts.')}: {fields[key][1]}"

    def _notes(self, moments: pd.DataFrame) -> tuple[str, ...]:
        if moments.empty:
            return ("No probe of it is finished.",)
        questions = max(moments["questions"])
        here, there = (max(moments[name]) for name in recorded.SKETCHES)
        return (
            f"Step {self.step}, {_distance(self.distance)}, {questions} questions with common "
            f"rollouts, truth: gradient of J with mu = {self.mu:g}; gradients in a sketch whose "
            f"squared lengths are off by {here:.1%}, those of the truth's sample by {there:.1%}.",
            "\N{PLUS-MINUS SIGN}: half the 95% jackknife interval over questions; <: an interval "
            "that reaches 0, by its upper end; a dash: not determined.",
            "Scale-free error: of one training step after the best rescaling; 0 is the true "
            "gradient, 1 no estimate at all. Its difference is paired with the baseline's. Noise "
            "scale: variance of that step over the squared length of its mean.",
        )


_DASH = "\N{EM DASH}"
_NAMED = (
    Head("Method", "method", text=True),
    Head("Changed from the baseline", "changed", text=True),
)
_APART = Head("Error, difference", "difference")
_TITLES = {
    "bias_squared": "Squared bias",
    "variance": "Variance",
    "mse": "MSE",
    "relative_bias": "Relative bias",
    "cosine": "Cosine",
    "directed_bias": "Squared relative bias",
    "directed_variance": "Variance at that scale",
    "scale_free_error": "Scale-free error",
    "scaled_bias": "Bias part",
    "scaled_variance": "Noise part",
    "noise_scale": "Noise scale",
}
_SIGNED = ("cosine", "scale_free_error")  # all others cannot be negative
_OF_THE_SCALE = ("bias_squared", "variance", "mse")  # of any size: these are no shares


def _entry(found: Row, name: str) -> Entry:
    value, low, high = (float(found[key]) for key in (name, f"{name}_low", f"{name}_high"))
    interval = Interval(value, low, high, 0, "questions")
    if not np.isfinite(low):
        return Entry(_DASH, interval)
    digits = ".3g" if name in _OF_THE_SCALE else ".2f"
    if name not in _SIGNED and low <= 0:
        return Entry(f"< {max(high, 0.0):{digits}}", interval)
    return Entry(f"{value:{digits}}", interval, f"{(high - low) / 2:{digits}}")


def _signed(apart: Measured) -> Entry:
    value, low, high = float(apart.value), float(apart.low), float(apart.high)
    interval = Interval(value, low, high, 0, "questions")
    if not np.isfinite(low):
        return Entry(_DASH, interval)
    return Entry(f"{value:+.2f}", interval, f"{(high - low) / 2:.2f}")


@dataclass(frozen=True)
class Reproduced(Tabular):
    """How many methods have the same moments under a second seed of the rollouts, by probe.

    The same: apart by no more than the interval of a difference of two independent estimates, which
    19 of 20 are if nothing but rollouts differs.

    Attributes:
        probe_seeds: the two.

    Raises:
        ValueError: on `check`, a probe that the study does not have.
    """

    probe_seeds: tuple[int, int] = (0, 1)

    def check(self) -> None:
        for seed in self.probe_seeds:
            _check(self.study, "Reproduced", [], probe_seed=seed)

    def sheet(self, runs: Runs) -> Sheet:
        found = estimates(pick(probed(runs), **EVERYONE))
        if found.empty:
            return Sheet(self.name, _AGAIN, (), ("No probe of it is finished.",))
        keys = ["label", "seed", "step", "distance", "mu"]
        one, other = (pick(found, probe_seed=seed) for seed in self.probe_seeds)
        pairs = one.merge(other, on=[*keys, "method"], suffixes=("", _OTHER))
        probes = sorted(set(zip(pairs["step"], pairs["distance"], pairs["mu"], strict=True)))
        rows = tuple(
            (
                Entry(f"Step {step}, {_distance(distance)}, mu = {mu:g}"),
                *_same(pick(pairs, step=step, distance=distance, mu=mu)),
            )
            for step, distance, mu in probes
        )
        return Sheet(self.name, _AGAIN, rows, (_AGAIN_NOTE,))


_OTHER = " of the other seed"
_COMPARED = ("bias_squared", "variance", "cosine", "scale_free_error")
_AGAIN = (
    Head("Probe", "probe", text=True),
    *(Head(_TITLES[name], name) for name in _COMPARED),
)
_AGAIN_NOTE = (
    "Methods that agree under both seeds of the rollouts, of those that have an interval under "
    "both: apart by at most the 95% interval of a difference of independent estimates."
)


def _same(pairs: pd.DataFrame) -> Iterator[Entry]:
    """For each statistic, how many pairs agree of how many that have intervals."""
    for name in _COMPARED:
        apart = (pairs[name] - pairs[name + _OTHER]).abs().to_numpy("float64")
        halves = [
            (pairs[f"{name}_high{end}"] - pairs[name + end]).to_numpy("float64")
            for end in ("", _OTHER)
        ]
        limit = np.hypot(*halves)
        known = np.isfinite(limit)
        same = int((apart[known] <= limit[known] + _ROUNDING).sum())
        yield Entry(f"{same} of {known.sum()}", same)


_ROUNDING = 1e-9


@dataclass(frozen=True)
class BiasVariance(Drawing):
    """Squared bias against variance, one panel a probe.

    Both at the scale that brings the estimator's mean nearest to the true gradient and as shares of
    its squared length, so that estimators of any scale are compared: an unbiased one is at 0. Along
    a dotted line their sum, the mean squared error, is constant. Methods with the same moments
    share a mark.

    Attributes:
        methods: labels of those that are shown; empty shows all.
        mu, probe_seed: of the probes.
    """

    methods: Sequence[str] = ()
    mu: float = 0.0
    probe_seed: int = 0

    def check(self) -> None:
        _check(self.study, "BiasVariance", self.methods, mu=self.mu, probe_seed=self.probe_seed)

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        shown = self.methods or _labels(self.study)
        return {label: label for label in shown}

    def panels(self, runs: Runs) -> Panels:
        every = probed(runs)
        moments = pick(every, **EVERYONE, mu=self.mu, probe_seed=self.probe_seed)
        moments = pick(moments, method=tuple(self.keys(())))
        panels, left_out = [], []
        for step, distance in sorted(set(zip(moments["step"], moments["distance"], strict=True))):
            mine = pick(moments, step=step, distance=distance)
            marks, lost = _marks(mine, list(self.keys(())))
            where = f"Step {step}, {_distance(distance)}"
            panels.append(Scatter(where, _BIAS, _NOISE, marks, _SUMS))
            left_out += [f"{where}: {each} is not determined" for each in lost]
        if not panels:
            return Panels((), left_out=("no probe of it is finished",))
        note = (
            "At each estimator's best scale, as shares of the true gradient's squared length.\n"
            "95% jackknife intervals over questions; an arrow: only an upper limit is known.\n"
            "Leftmost: no bias at all. Dotted: the same mean squared error."
        )
        return Panels(tuple(panels), note, tuple(left_out))


_BIAS, _NOISE = "Squared bias (share)", "Variance (share)"
_SUMS = (0.1, 0.3, 1.0, 3.0, 10.0)


def _distance(steps: int) -> str:
    return f"{steps} updates off policy" if steps else "on policy"


def _marks(moments: pd.DataFrame, order: Sequence[str]) -> tuple[tuple[Mark, ...], list[str]]:
    """A mark for each group of methods with the same moments, and the methods that have none."""
    found = estimates(moments).set_index("method")
    marks: dict[tuple[float, ...], Mark] = {}
    lost = []
    for method in order:
        if method not in found.index:
            continue
        row = found.loc[method]
        axes = [
            tuple(float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
            for name in ("directed_bias", "directed_variance")
        ]
        if not np.isfinite([end for axis in axes for end in axis]).all():
            lost.append(method)
        else:
            x, y = axes
            marks.setdefault(tuple(np.round([*x, *y], 5)), Mark(method, x, y))  # type: ignore[arg-type]
    return tuple(marks.values()), lost


@dataclass(frozen=True)
class ErrorBySolveRate(Drawing):
    """Scale-free error of one training step against the questions' solve rate.

    One panel a step of the run, one row of them for each truth. Where the first two methods cross
    is where a gate between them should switch; it is marked, and the note has its interval.

    Attributes:
        methods: labels; the crossing is of the first two.
        mu: weights of the demonstrations in the objectives whose gradients are the truths.
        distance, probe_seed: of the probes.
    """

    methods: Sequence[str] = ("sft", "grpo")
    mu: Sequence[float] = (0.0,)
    distance: int = 0
    probe_seed: int = 0

    def check(self) -> None:
        for mu in self.mu:
            probe = {"distance": self.distance, "mu": mu, "probe_seed": self.probe_seed}
            _check(self.study, "ErrorBySolveRate", self.methods, **probe)
        if len(self.methods) < 2:
            raise ValueError(f"ErrorBySolveRate.methods are two or more, got {self.methods}")

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        return {label: label for label in self.methods}

    def panels(self, runs: Runs) -> Panels:
        moments = pick(probed(runs), distance=self.distance, probe_seed=self.probe_seed)
        moments = pick(moments, method=tuple(self.methods))
        bands = pd.DataFrame(moments[moments["band_high"] - moments["band_low"] < 2.0])
        panels, notes = [], []
        for mu in self.mu:
            said = []
            for step in sorted(set(bands["step"])):
                mine = pick(bands, step=step, mu=mu)
                where = crossing(mine, self.methods[0], self.methods[1])
                said.append(f"step {step}: {_said(where)}")
                panels.append(self._panel(mine, f"Step {step}, mu = {mu:g}", float(where.value)))
            notes.append(f"mu = {mu:g}: {'; '.join(said)}")
        if not panels:
            return Panels((), left_out=("no probe of it is finished",))
        note = (
            f"Truth: gradient of J_mu, {_distance(self.distance)}. Bands: 95% jackknife intervals "
            "over questions.\n"
            f"Dotted: where {self.methods[0]} and {self.methods[1]} cross, with that interval.\n"
        )
        return Panels(tuple(panels), note + "\n".join(notes))

    def _panel(self, moments: pd.DataFrame, title: str, where: float) -> Panel:
        lines = tuple(self._line(moments, method) for method in self.methods)
        marked = () if np.isnan(where) else (where,)
        return Panel(
            title, "Solve rate", "Scale-free error", lines, y_range=(0.0, 1.25), marked=marked
        )

    def _line(self, moments: pd.DataFrame, method: str) -> Line:
        found = estimates(pick(moments, method=method)).sort_values("solve_rate")
        names = ("scale_free_error", "scale_free_error_low", "scale_free_error_high")
        x, y, low, high = (found[name].to_numpy("float64") for name in ("solve_rate", *names))
        return Line(method, method, x, y, (low, high))


def _said(where: Measured) -> str:
    if np.isnan(where.value):
        return "none"
    if np.isnan(where.low):
        return f"{where.value:.2f} (not without every group of questions)"
    return f"{where.value:.2f} ({where.low:.2f} to {where.high:.2f})"


def crossing(moments: pd.DataFrame, one: str, other: str) -> Measured:
    """The solve rate at which the errors of two methods are equal, between two bands; NaN: none.

    Linear between the bands' mean solve rates, and the lowest if there are several. Bands are of
    different questions, so that each adds its own part to the interval. There is none where the
    methods do not cross without some group of questions.
    """
    rates, apart = [], []
    for _, mine in moments.groupby("band_low", sort=True):
        errors = [moments_of(pick(mine, method=m)).scale_free_error for m in (one, other)]
        rates.append(float(mine["solve_rate"].iloc[0]))
        apart.append(errors[0] - errors[1])
    whole = [each[0] for each in apart]
    value = np.array(_crossing(rates, whole))
    if np.isnan(value):
        return Measured(value, value, value)
    without = [
        np.array([_crossing(rates, [*whole[:n], gap, *whole[n + 1 :]]) for gap in each[1:]])
        for n, each in enumerate(apart)
    ]
    return interval(value, without)


def _crossing(rates: Sequence[float], apart: Sequence[float]) -> float:
    points = [point for point in sorted(zip(rates, apart, strict=True)) if np.isfinite(point[1])]
    for (left, below), (right, above) in pairwise(points):
        if below * above < 0:
            return left + (right - left) * below / (below - above)
    return float("nan")
