"""Tracked runs in, tables, figures and one page out. No GPU, and no torch of its own."""

from analysis.across import AcrossSuites
from analysis.change import Change
from analysis.comparison import Comparison
from analysis.exclusive import Exclusive
from analysis.figure import Dynamics, Figure, GateDecisions, LearningCurves, PassAtK
from analysis.gradient import (
    BiasVariance,
    ErrorBySolveRate,
    Estimators,
    Reproduced,
    estimates,
    probed,
)
from analysis.grid import RolloutGrid
from analysis.load import Runs, runs
from analysis.methods import Components, components
from analysis.paper import dynamics, paper
from analysis.published import reported
from analysis.quantities import (
    accuracy,
    curves,
    exclusive_solves,
    gate_decisions,
    pass_at_k,
    rollout_accuracy,
    rollout_difference,
)
from analysis.report import Report, report
from analysis.table import Table
from analysis.tracked import fetch, histories

__all__ = [
    "AcrossSuites",
    "BiasVariance",
    "Change",
    "Comparison",
    "Components",
    "Dynamics",
    "ErrorBySolveRate",
    "Estimators",
    "Exclusive",
    "Figure",
    "GateDecisions",
    "LearningCurves",
    "PassAtK",
    "Report",
    "Reproduced",
    "RolloutGrid",
    "Runs",
    "Table",
    "accuracy",
    "components",
    "curves",
    "dynamics",
    "estimates",
    "exclusive_solves",
    "fetch",
    "gate_decisions",
    "histories",
    "paper",
    "pass_at_k",
    "probed",
    "report",
    "reported",
    "rollout_accuracy",
    "rollout_difference",
    "runs",
]
