"""Bias and variance of gradient estimators, from the probes of a study: tables and figures.

Everything is computed from the moments that a probe recorded, from all replicates and without each
of them, so that every number has its jackknife interval, differences of two methods included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from pyarrow.parquet import read_schema

from analysis.figure import Drawing, Panels
from analysis.intervals import Interval
from analysis.load import Runs, pick
from analysis.output import Tabular
from analysis.panel import Line, Mark, Panel, Scatter
from analysis.sheet import Entry, Head, Sheet
from workbench.identity import nearest
from workbench.moments import Array, Measured, Moments, jackknife
from workbench.recipe import Probe
from workbench.records import Row
from workbench.study import Study, differing, flatten

KEYS = ["label", "seed", "probe_seed", "step", "distance", "mu", "band_low", "band_high"]
ABOUT = ["solve_rate", "questions"]
STATISTICS: dict[str, Callable[[Moments], Array]] = {
    "bias_squared": lambda m: m.bias_squared,
    "variance": lambda m: m.variance,
    "mse": lambda m: m.mse,
    "relative_bias": lambda m: m.relative_bias,
    "cosine": lambda m: m.cosine,
    "scale_free_error": lambda m: m.scale_free_error,
    "scaled_bias": lambda m: m.scaled_bias,
    "scaled_variance": lambda m: m.scaled_variance,
    "noise_scale": lambda m: m.noise_scale,
}
OVERSHOOT = 1.0  # the scale-free error of no estimate at all


def probed(runs: Runs) -> pd.DataFrame:
    """Every recorded moment of the study's probes, as it was measured.

    One row for each cell, probe, method, truth (`mu`), band of solve rates and left-out replicate
    (-1: none), with `inner`, `square`, `truth_square`, `variance` and `within`; `sketch_error` is
    the relative error of a squared length in the probe's sketch, as it was measured.
    """
    found = []
    for each in runs.kept:
        for probe in runs.study.probes:
            path = each.run.probe_path(probe)
            if path.exists():
                error = float(read_schema(path).metadata[b"sketch_error"])
                key = {"label": each.cell.label, "seed": each.cell.seed, "probe_seed": probe.seed}
                found.append(pd.read_parquet(path).assign(**key, sketch_error=error))
    columns = [*KEYS, *ABOUT, "method", "left_out", *_PARTS, "sketch_error"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


_PARTS = ("inner", "square", "truth_square", "variance", "within")


def estimates(moments: pd.DataFrame) -> pd.DataFrame:
    """Every statistic with its interval: `name`, `name_low`, `name_high` for each method.

    Args:
        moments: what `probed` returns, or some of its rows.

    Returns:
        One row for each cell, probe, truth, band and method.
    """
    rows = []
    for _, mine in moments.groupby([*KEYS, "method"], sort=True):
        row = {name: mine[name].iloc[0] for name in [*KEYS, "method", *ABOUT]}
        for name, statistic in STATISTICS.items():
            found = jackknife(statistic, moments_of(mine))
            row |= {name: float(found.value)}
            row |= {f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
        rows.append(row)
    return pd.DataFrame(rows)


def moments_of(rows: pd.DataFrame) -> Moments:
    """One method's moments as `jackknife` takes them: all replicates first."""
    ordered = rows.sort_values("left_out")
    return Moments(*(ordered[name].to_numpy("float64") for name in _PARTS[:4]))


def difference(moments: pd.DataFrame, one: str, other: str, name: str) -> Measured:
    """A statistic of one method minus that of another on the same replicates, paired.

    Args:
        moments: rows of one cell, probe, truth and band.
        one, other: methods.
        name: of `STATISTICS`.
    """
    statistic = STATISTICS[name]
    first, second = (statistic(moments_of(pick(moments, method=m))) for m in (one, other))
    apart = first - second
    # Only the last axis is used: the difference stands where the moments of one method do.
    return jackknife(lambda m: m.inner, Moments(apart, apart, apart, apart))


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


def _of_everyone(moments: pd.DataFrame) -> pd.DataFrame:
    """The rows of the band that holds all questions."""
    return pick(moments, band_low=-1.0, band_high=1.0)


@dataclass(frozen=True)
class Estimators(Tabular):
    """Every method at one probe, the least scale-free error first, with paired differences.

    Attributes:
        step, distance, mu, probe_seed: of the probe.
        baseline: the method that the others are compared with, component by component.

    Raises:
        ValueError: on `check`, a probe or method that the study does not have.
    """

    step: int = 0
    distance: int = 0
    mu: float = 0.0
    probe_seed: int = 0
    baseline: str = "grpo"

    @property
    def _probe(self) -> dict[str, Any]:
        names = ("step", "distance", "mu", "probe_seed")
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        _check(self.study, "Estimators", [self.baseline], **self._probe)

    def sheet(self, runs: Runs) -> Sheet:
        moments = pick(_of_everyone(probed(runs)), **self._probe)
        rows = [self._row(moments, found) for found in estimates(moments).to_dict("records")]
        ordered = sorted(rows, key=lambda row: _order(row[_ERROR]))
        best = ordered[0][_ERROR].text if ordered else ""
        marked = [
            tuple(replace(e, best=at == _ERROR and e.text == best) for at, e in enumerate(row))
            for row in ordered
        ]
        return Sheet(self.name, _HEADS, tuple(marked), self._notes(moments))

    def _row(self, moments: pd.DataFrame, found: Row) -> list[Entry]:
        method = str(found["method"])
        mine = pick(moments, label=found["label"], seed=found["seed"])
        apart = difference(mine, method, self.baseline, "scale_free_error")
        alone = method == self.baseline
        changed = Entry("\N{EM DASH}" if alone else self._changed(method))
        return [
            Entry(method, method),
            changed,
            *(_entry(found, name) for name in _SHOWN),
            Entry("\N{EM DASH}") if alone else _signed(apart),
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
        replicates = len(set(moments["left_out"])) - 1
        questions = max(moments["questions"])
        off = f"{self.distance} optimizer steps off policy" if self.distance else "on policy"
        return (
            f"Step {self.step}, {off}, {questions} questions, {replicates} replicates on common "
            f"rollouts, truth: gradient of J with mu = {self.mu:g}; gradients in a sketch whose "
            f"squared lengths are off by {max(moments['sketch_error']):.1%}.",
            "\N{PLUS-MINUS SIGN}: half the 95% jackknife interval over replicates, for these "
            "questions; <: an interval that reaches 0, by its upper end; a dash: not determined.",
            "Scale-free error: of one training step after the best rescaling; 0 is the true "
            "gradient, 1 no estimate at all. Bias and noise are its two parts.",
        )


_HEADS = (
    Head("Method", "method", text=True),
    Head("Changed from the baseline", "changed", text=True),
    Head("Relative bias", "relative_bias"),
    Head("Cosine", "cosine"),
    Head("Bias part", "scaled_bias"),
    Head("Noise part", "scaled_variance"),
    Head("Scale-free error", "scale_free_error"),
    Head("Difference", "difference"),
)
_SHOWN = ("relative_bias", "cosine", "scaled_bias", "scaled_variance", "scale_free_error")
_LENGTHS = ("relative_bias", "scaled_bias", "scaled_variance")  # cannot be negative
_ERROR = 2 + _SHOWN.index("scale_free_error")


def _entry(found: Row, name: str) -> Entry:
    value, low, high = (float(found[key]) for key in (name, f"{name}_low", f"{name}_high"))
    interval = Interval(value, low, high, 0, "replicates")
    if not np.isfinite(low):
        return Entry("\N{EM DASH}", interval)
    if name in _LENGTHS and low <= 0:
        return Entry(f"< {max(high, 0.0):.2f}", interval)
    return Entry(f"{value:.2f}", interval, f"{(high - low) / 2:.2f}")


def _signed(apart: Measured) -> Entry:
    value, low, high = float(apart.value), float(apart.low), float(apart.high)
    interval = Interval(value, low, high, 0, "replicates")
    if not np.isfinite(low):
        return Entry("\N{EM DASH}", interval)
    return Entry(f"{value:+.2f}", interval, f"{(high - low) / 2:.2f}")


def _order(entry: Entry) -> float:
    assert isinstance(entry.value, Interval)
    return entry.value.mean if np.isfinite(entry.value.mean) else np.inf


@dataclass(frozen=True)
class BiasVariance(Drawing):
    """Bias against variance, each at the estimator's best scale, one panel a probe.

    Both are shares of the true gradient's squared length, so that estimators of any scale are
    compared; along a dotted line their sum, the scale-free error, is constant. Methods with the
    same moments share a mark.

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
        moments = pick(_of_everyone(probed(runs)), mu=self.mu, probe_seed=self.probe_seed)
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
        note = "95% jackknife intervals over replicates; an arrow: only an upper limit is known."
        return Panels(tuple(panels), note, tuple(left_out))


_BIAS, _NOISE = "Squared bias (share)", "Variance (share)"
_SUMS = (0.25, 0.5, 0.75, 1.0)


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
            for name in ("scaled_bias", "scaled_variance")
        ]
        if not np.isfinite([end for axis in axes for end in axis]).all():
            lost.append(method)
        else:
            x, y = axes
            marks.setdefault(tuple(np.round([*x, *y], 5)), Mark(method, x, y))  # type: ignore[arg-type]
    return tuple(marks.values()), lost


@dataclass(frozen=True)
class ErrorBySolveRate(Drawing):
    """Scale-free error of one training step against the questions' solve rate, one panel a step.

    Where the first two methods cross is where a gate between them should switch; it is marked.

    Attributes:
        methods: labels; the crossing is of the first two.
        distance, mu, probe_seed: of the probes.
    """

    methods: Sequence[str] = ("sft", "grpo")
    distance: int = 0
    mu: float = 0.0
    probe_seed: int = 0

    @property
    def _probe(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("distance", "mu", "probe_seed")}

    def check(self) -> None:
        _check(self.study, "ErrorBySolveRate", self.methods, **self._probe)
        if len(self.methods) < 2:
            raise ValueError(f"ErrorBySolveRate.methods are two or more, got {self.methods}")

    def keys(self, labels: Sequence[str]) -> Mapping[str, str]:
        return {label: label for label in (*self.methods, CROSSING)}

    def panels(self, runs: Runs) -> Panels:
        moments = pick(probed(runs), **self._probe, method=tuple(self.methods))
        bands = pd.DataFrame(moments[moments["band_high"] - moments["band_low"] < 2.0])
        panels, notes = [], []
        for step in sorted(set(bands["step"])):
            mine = pick(bands, step=step)
            lines = tuple(self._line(mine, method) for method in self.methods)
            where = crossing(mine, self.methods[0], self.methods[1])
            notes.append(f"step {step}: {_said(where)}")
            if where is not None:
                ends = np.array([0.0, OVERSHOOT])
                lines = (*lines, Line(CROSSING, CROSSING, np.array([where, where]), ends))
            panels.append(
                Panel(f"Step {step}", "Solve rate", "Scale-free error", lines, y_range=(0.0, 1.25))
            )
        if not panels:
            return Panels((), left_out=("no probe of it is finished",))
        note = (
            f"Truth: gradient of J, mu = {self.mu:g}, {_distance(self.distance)}.\n"
            "Bands: 95% jackknife intervals over replicates.\n"
            f"Crossing of {self.methods[0]} and {self.methods[1]}: {'; '.join(notes)}."
        )
        return Panels(tuple(panels), note)

    def _line(self, moments: pd.DataFrame, method: str) -> Line:
        found = estimates(pick(moments, method=method)).sort_values("solve_rate")
        x, y, low, high = (
            found[name].to_numpy("float64")
            for name in (
                "solve_rate",
                "scale_free_error",
                "scale_free_error_low",
                "scale_free_error_high",
            )
        )
        return Line(method, method, x, y, (low, high))


CROSSING = "crossing"


def _said(where: float | None) -> str:
    return "none" if where is None else f"{where:.2f}"


def crossing(moments: pd.DataFrame, one: str, other: str) -> float | None:
    """The solve rate at which the errors of two methods are equal, between two bands; or None.

    Linear between the bands' mean solve rates, and the lowest if there are several.
    """
    each = {
        float(mine["solve_rate"].iloc[0]): float(
            difference(mine, one, other, "scale_free_error").value
        )
        for _, mine in moments.groupby("band_low", sort=True)
    }
    points = [(rate, value) for rate, value in sorted(each.items()) if np.isfinite(value)]
    for (left, below), (right, above) in pairwise(points):
        if below * above < 0:
            return left + (right - left) * below / (below - above)
    return None
