"""A research workbench for LLM post-training: studies in Python, tracked, measured and redrawn."""

from typing import Any

from workbench.identity import Component, nearest, replace
from workbench.problems.corpus import Benchmark, Corpus, Rows
from workbench.recipe import (
    Constant,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Probe,
    Recipe,
    Sampling,
    Start,
    Validation,
    WarmupCosine,
)
from workbench.resources import Resources
from workbench.samplers import FullGrid, Hyperband, Median, Random, Tpe, Wilcoxon
from workbench.study import Asks, Cell, Search, Study, choose, grid

__all__ = [
    "Asks",
    "Benchmark",
    "Cell",
    "Component",
    "Constant",
    "Corpus",
    "Data",
    "Evaluation",
    "FullGrid",
    "Hyperband",
    "Median",
    "Model",
    "Optimizer",
    "Probe",
    "Random",
    "Recipe",
    "Resources",
    "Rows",
    "Sampling",
    "Search",
    "Start",
    "Study",
    "Tpe",
    "Validation",
    "WarmupCosine",
    "Wilcoxon",
    "choose",
    "grid",
    "replace",
    "upge",
]


def __getattr__(name: str) -> Any:
    # Lazy: a report of exported runs, or --help, can do without.
    if name == "upge":
        import workbench.upge

        return workbench.upge
    raise AttributeError(f"workbench has no {name!r}; {nearest(name, __all__)}")
