"""Optuna, driven by ask and tell: the only package that imports it.

The Optuna study lives in memory and is made again from the records at every start, so that there
is no second truth: parameters come from the search's record, scores from the run directories.
"""

import optuna

from workbench.search.check import check
from workbench.search.searcher import Ended, Searcher, run
from workbench.search.shown import Dashboard, plots

__all__ = ["Dashboard", "Ended", "Searcher", "check", "plots", "run"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
