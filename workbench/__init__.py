"""A research workbench for LLM post-training: studies in Python, tracked, measured and redrawn."""

from typing import Any

from workbench.identity import Component, nearest, replace
from workbench.problems.corpus import Benchmark, Corpus, Rows
from workbench.recipe import (
    Constant,
    Data,
    Evaluation,
    Optimizer,
    Probe,
    Recipe,
    Sampling,
    Validation,
    WarmupCosine,
)
from workbench.resources import Resources
from workbench.study import Cell, Study, grid

__all__ = [
    "Benchmark",
    "Cell",
    "Component",
    "Constant",
    "Corpus",
    "Data",
    "Evaluation",
    "Optimizer",
    "Probe",
    "Recipe",
    "Resources",
    "Rows",
    "Sampling",
    "Study",
    "Validation",
    "WarmupCosine",
    "grid",
    "replace",
    "upge",
]


def __getattr__(name: str) -> Any:
    # Lazy, because upge imports torch and a plan, a report or --help can do without.
    if name == "upge":
        import workbench.upge

        return workbench.upge
    raise AttributeError(f"workbench has no {name!r}; {nearest(name, __all__)}")
