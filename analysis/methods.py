"""Table 1: methods as parts of the unified estimator, read off the component values themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import Runs
from analysis.output import Tabular
from analysis.sheet import Entry, Head, Sheet
from workbench.identity import Component, field_names
from workbench.recipe import Objective

NOTHING = "–"
PARTS = ("denominator", "advantage", "mask", "likelihood", "aggregation")
_TITLES = {
    "method": "Method",
    "stream": "Stream",
    "coefficient": "Weight",
    "denominator": "Denominator π_ref",
    "advantage": "Advantage A",
    "mask": "Mask 1_stable",
    "likelihood": "Likelihood f(π)",
    "aggregation": "Aggregation",
    "gate": "Gate (α, β)",
}


def components(methods: Mapping[str, Objective | None]) -> pd.DataFrame:
    """Table 1 as a frame: one row for each estimator of each stream of each method.

    Args:
        methods: by label; None is a model left as it is, which has no row.

    Returns:
        Columns method, stream, coefficient, denominator, advantage, mask, likelihood, aggregation
        and gate: each part as it prints, so that it can be pasted back into a study.
    """
    rows = [row for label, method in methods.items() for row in _rows(label, method)]
    return pd.DataFrame(rows, columns=list(_TITLES))


def _rows(label: str, method: Objective | None) -> Iterable[dict[str, str]]:
    """A method's rows; one whose streams are not made of these parts has one row, itself."""
    if method is None:
        return
    streams = [(name, each) for name in _streams(method) for each in _terms(method, name)]
    gate = _printed(getattr(method, "gate", None))
    if not streams:
        yield {"method": label, "stream": str(method)}
    for name, (coefficient, estimator) in streams:
        parts = {part: _printed(getattr(estimator, part, None)) for part in PARTS}
        yield {"method": label, "stream": name, "coefficient": coefficient, **parts, "gate": gate}


def _streams(method: Component) -> list[str]:
    return [name for name in ("rollouts", "demonstrations") if name in field_names(method)]


def _terms(method: Component, stream: str) -> list[tuple[str, Component]]:
    """The estimators of a stream with their coefficients: none, one or several."""
    found: Any = getattr(method, stream)
    if found is None:
        return []
    if isinstance(found, tuple):
        return [(_printed(term.coefficient), term.estimator) for term in found]
    return [("1", found)]


def _printed(part: object) -> str:
    """A part as the Python that makes it, without the parentheses that hold nothing."""
    if isinstance(part, float):
        return f"{part:g}"
    return NOTHING if part is None else str(part).removesuffix("()")


@dataclass(frozen=True)
class Components(Tabular):
    """Table 1: the parts of the study's methods, and of others beside them.

    Attributes:
        methods: others to show, by label or by the name that they have, such as
            `[upge.ppo(), upge.gspo()]`.
    """

    methods: Mapping[str, Objective] | Sequence[Objective] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.methods
        named = given if isinstance(given, Mapping) else {each.label: each for each in given}
        object.__setattr__(self, "methods", dict(named))

    def sheet(self, runs: Runs) -> Sheet:
        arms = self.arms or tuple(self.study.recipes)
        methods = {label: self.study.recipes[label].method for label in arms}
        assert isinstance(self.methods, dict)
        frame = components({**methods, **self.methods})
        heads = tuple(Head(title, key, text=True) for key, title in _TITLES.items())
        rows = [
            tuple(Entry(_shown(row[key]), _shown(row[key])) for key in _TITLES)
            for row in frame.to_dict("records")
        ]
        notes = (
            "The weight on grad log π of a token is 1_stable · (π / π_ref) · A · f'(π) "
            "(arXiv 2509.04419, Table 1); every part is printed as the Python that makes it.",
        )
        return Sheet(self.name, heads, tuple(rows), notes)


def _shown(cell: object) -> str:
    return cell if isinstance(cell, str) else NOTHING
