"""What a run's probes say of each method, with intervals, from its directory alone."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from pyarrow.parquet import read_schema

from workbench.moments import STATISTICS, Moments, jackknife
from workbench.recipe import Probe
from workbench.records import Run

# Everything but what is estimated: a row of `estimates` for each of these and method.
KEYS = ["probe_seed", "step", "distance", "mu", "band_low", "band_high"]
ABOUT = ["solve_rate", "questions"]
SKETCHES = ["sketch_error", "reference_sketch_error"]
PARTS = ["inner", "square", "truth_square", "variance", "within"]
EVERYONE: Mapping[str, Any] = {
    "band_low": -1.0,
    "band_high": 1.0,
}  # the band that holds all questions


def probed(run: Run, probes: Iterable[Probe]) -> pd.DataFrame:
    """Every recorded moment of the probes that a run has, as it was measured.

    One row for each probe, method, truth (`mu`), band of solve rates and left-out group of
    questions (-1: none), with `inner`, `square`, `truth_square`, `variance` and `within`;
    `sketch_error` is the relative error of a squared length in the probe's sketch, as it was
    measured, and `reference_sketch_error` that of the sample which the truth is from.
    """
    found = []
    for probe in probes:
        path = run.probe_path(probe)
        if path.exists():
            note = read_schema(path).metadata
            errors = {name: float(note[name.encode()]) for name in SKETCHES}
            found.append(pd.read_parquet(path).assign(probe_seed=probe.seed, **errors))
    columns = [*KEYS, *ABOUT, "method", "left_out", *PARTS, *SKETCHES]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def estimates(moments: pd.DataFrame) -> pd.DataFrame:
    """Every statistic with its interval: `name`, `name_low`, `name_high` for each method.

    Args:
        moments: what `probed` returns, or some of its rows; of several runs with their `label` and
            `seed`.

    Returns:
        One row for each run, probe, truth, band and method.
    """
    keys = [name for name in ("label", "seed") if name in moments] + KEYS
    rows = []
    for _, mine in moments.groupby([*keys, "method"], sort=True):
        row = {name: mine[name].iloc[0] for name in [*keys, "method", *ABOUT]}
        for name, statistic in STATISTICS.items():
            found = jackknife(statistic, moments_of(mine))
            row |= {name: float(found.value)}
            row |= {f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
        rows.append(row)
    return pd.DataFrame(rows)


def moments_of(rows: pd.DataFrame) -> Moments:
    """One method's moments as `jackknife` takes them: all questions first."""
    ordered = rows.sort_values("left_out")
    return Moments(*(ordered[name].to_numpy("float64") for name in PARTS[:4]))
