"""What Optuna shows of a search: its plots, and a copy of the study for optuna-dashboard."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawn
from sqlalchemy.exc import SQLAlchemyError

from workbench.search.searcher import Searcher

log = logging.getLogger(__name__)

MADE_HERE = "workbench"
ENDED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Dashboard:
    """A copy of the study in a storage that optuna-dashboard reads; made anew at every start.

    Raises:
        ValueError: a storage that does not open, or that has a study of that name from elsewhere.
    """

    study: optuna.Study
    uri: str
    _copy: optuna.Study = field(init=False)
    _shown: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        name = self.study.study_name
        try:
            if name in optuna.get_all_study_names(self.uri):
                if MADE_HERE not in optuna.load_study(study_name=name, storage=self.uri).user_attrs:
                    raise ValueError(
                        f"{self.uri} has a study {name!r} that no search made; choose another "
                        "storage, or another name"
                    )
                optuna.delete_study(study_name=name, storage=self.uri)
            self._copy = optuna.create_study(
                study_name=name, storage=self.uri, directions=self.study.directions
            )
        except (SQLAlchemyError, ImportError) as error:
            raise ValueError(f"Optuna's storage {self.uri} does not open: {error}") from error
        self._copy.set_user_attr(MADE_HERE, True)
        self.sync()

    def sync(self) -> None:
        """Shows the trials that ended; what goes wrong is logged, and the search goes on."""
        for trial in self.study.get_trials(states=ENDED_STATES):
            if trial.number in self._shown:
                continue
            try:
                self._copy.add_trial(trial)
            except SQLAlchemyError as error:
                log.warning("%s does not show trial %d: %s", self.uri, trial.number, error)
                return
            self._shown.add(trial.number)


def plots(searcher: Searcher) -> dict[str, Figure]:
    """Optuna's own plots by name: history, importance and slice, and the front of several goals."""
    keys = list(searcher.search.objectives)
    made: dict[str, Figure] = {}
    for at, key in enumerate(keys):
        suffix = f"-{at + 1}" if len(keys) > 1 else ""
        options = {"target": partial(_value, at=at)} if len(keys) > 1 else {}
        for name, plot in PLOTS.items():
            figure = _drawn(plot, searcher.study, target_name=key, **options)
            if figure is not None:
                made[f"{name}{suffix}"] = figure
    if len(keys) in (2, 3):
        figure = _drawn(drawn.plot_pareto_front, searcher.study, target_names=keys)
        made |= {"pareto-front": figure} if figure is not None else {}
    return made


PLOTS: dict[str, Callable[..., Any]] = {
    "history": drawn.plot_optimization_history,
    "importance": drawn.plot_param_importances,
    "slice": drawn.plot_slice,
}


def _value(trial: optuna.trial.FrozenTrial, at: int) -> float:
    return trial.values[at]


def _drawn(plot: Callable[..., Any], study: optuna.Study, **options: Any) -> Figure | None:
    """One plot; None where Optuna has too few trials for it."""
    complete = study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False)
    if len({tuple(trial.params.items()) for trial in complete}) < 2:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = plot(study, **options)
    except (ValueError, RuntimeError) as error:
        log.warning("%s is not drawn: %s", plot.__name__, error)
        return None
    panels = np.ravel(axes)
    figure = panels[0].figure
    figure.set_size_inches(max(7, 2.4 * len(panels)), 4)  # the labels of a slice stay apart
    figure.set_layout_engine("constrained")  # and whole
    pyplot.close(figure)
    return figure
