"""Tracked runs in, tables and figures out. No GPU, and no torch of its own."""

from analysis.figure import Dynamics, Figure, LearningCurves, PassAtK
from analysis.report import Report, report
from analysis.table import Table

__all__ = ["Dynamics", "Figure", "LearningCurves", "PassAtK", "Report", "Table", "report"]
