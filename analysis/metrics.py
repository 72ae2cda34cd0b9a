"""What a metric's key says on an axis; keys that no trainer writes are refused."""

import re
from math import isnan

from workbench.identity import nearest
from workbench.schema import METRICS, VALIDATION_LEVEL, Metric

STEP = Metric("step", "Step")

_LEVEL = re.compile(re.escape(VALIDATION_LEVEL).replace(r"\{level\}", r"(\d+)"))


def metric(key: str) -> Metric:
    """The metric of that key, `step` and validation accuracy by level included.

    Raises:
        ValueError: no such metric, with the nearest one.
    """
    if key == STEP.key:
        return STEP
    if level_of(key) is not None:
        return Metric(key, f"Validation accuracy, level {level_of(key)}", "share")
    if key not in METRICS:
        example = VALIDATION_LEVEL.format(level=1)
        raise ValueError(f"no metric {key!r}; {nearest(key, [STEP.key, *METRICS, example])}")
    return METRICS[key]


def level_of(key: str) -> int | None:
    """The level whose validation accuracy this is, if it is one."""
    found = _LEVEL.fullmatch(key)
    return int(found[1]) if found else None


def axis_label(of: Metric) -> str:
    """The metric's name with its unit in parentheses."""
    return f"{of.label} ({of.unit})" if of.unit else of.label


def compact(number: float) -> str:
    """Three digits and a thousands letter: 1234567 is `1.23M`; NaN is a dash."""
    if isnan(number):
        return "–"
    for limit, divisor, letter in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M")):
        if abs(number) < limit:
            return f"{float(f'{number / divisor:.3g}'):g}{letter}"
    return f"{float(f'{number / 1e9:.3g}'):g}B"
