"""What a run scored, by the keys that figures and MLflow call it, from its directory alone."""

from collections.abc import Iterable

import pandas as pd

from workbench import compact
from workbench.identity import nearest
from workbench.plan import Job
from workbench.problems import loaders
from workbench.recipe import Measurement, Recipe
from workbench.schema import (
    AVERAGE,
    AVERAGE_OOD,
    EVAL_LENGTH,
    EVAL_PASS_AT_1,
    METRICS,
    VALIDATION_LEVEL,
    File,
)

OF_SUITE = (EVAL_PASS_AT_1, EVAL_LENGTH)


def evaluated(job: Job) -> dict[str, tuple[str, float]]:
    """Pass@1 and length of each suite and the averages: by key, the suite and the value."""
    found: dict[str, tuple[str, float]] = {}
    at_1: dict[str, float] = {}
    for measurement in job.measurements:
        counts = pd.read_parquet(job.run.evaluation_path(measurement))
        samples, correct, tokens = (
            counts[name].to_numpy("float64") for name in ("samples", "correct", "tokens")
        )
        suite, length = measurement.suite, float(tokens.sum() / samples.sum())
        at_1[suite] = float((correct / samples).mean())
        found[EVAL_PASS_AT_1.format(suite=suite)] = (suite, at_1[suite])
        found[EVAL_LENGTH.format(suite=suite)] = (suite, length)
    for name, suites in averaged(job.recipe).items():
        values = [at_1[suite] for suite in suites if suite in at_1]
        if values:
            found[EVAL_PASS_AT_1.format(suite=name)] = (name, sum(values) / len(values))
    return found


def averaged(recipe: Recipe) -> dict[str, list[str]]:
    """The suites of the data that each average is over."""
    suites = loaders.outside(recipe.data)
    return {
        name: [suite for suite, is_outside in suites.items() if is_outside is outside]
        for name, outside in ((AVERAGE, False), (AVERAGE_OOD, True))
    }


def score(job: Job, key: str) -> float | None:
    """A done job's value of an objective: its evaluation's, or the last that training recorded."""
    found = evaluated(job).get(key)
    if found is not None:
        return found[1]
    rows = compact.read(job.run, File.METRICS)
    values = rows[key].drop_null().to_pylist() if key in rows.column_names else []
    return float(values[-1]) if values else None


def needed(key: str, job: Job) -> list[Measurement]:
    """The job's measurements that an objective is computed from.

    Raises:
        ValueError: no such objective, with the nearest one that there is.
    """
    averages = averaged(job.recipe)
    for measured, suites in _sources(job.measurements, averages).items():
        if key == measured:
            return [each for each in job.measurements if each.suite in suites]
    levels = {problem.level for problem in loaders.load(job.recipe.data).validation}
    recorded = [*METRICS, *(VALIDATION_LEVEL.format(level=level) for level in sorted(levels))]
    if key not in recorded:
        known = [*_sources(job.measurements, averages), *recorded]
        raise ValueError(f"no objective {key!r}; {nearest(key, known)}")
    return []


def _sources(
    measurements: Iterable[Measurement], averages: dict[str, list[str]]
) -> dict[str, list[str]]:
    """For each key of an evaluation, the suites that it is computed from."""
    suites = [each.suite for each in measurements]
    found = {pattern.format(suite=suite): [suite] for pattern in OF_SUITE for suite in suites}
    for name, among in averages.items():
        inside = [suite for suite in suites if suite in among]
        if inside:
            found[EVAL_PASS_AT_1.format(suite=name)] = inside
    return found
