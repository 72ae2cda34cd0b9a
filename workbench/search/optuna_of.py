"""Optuna's own samplers and pruners for the values that a study file names."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.study import StudyDirection

from workbench.samplers import FullGrid, Hyperband, Median, Random, Sampler, Tpe, WithinRun
from workbench.study import Search


def sampler_of(sampler: Sampler, number: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for the trial of a number, with a stream of its own."""
    seed = sampler.seed * 1_000_003 + number
    match sampler:
        case Tpe():
            return optuna.samplers.TPESampler(n_startup_trials=sampler.startup, seed=seed)
        case FullGrid():
            with _experimental():
                return optuna.samplers.BruteForceSampler(seed=seed)
        case Random():
            return optuna.samplers.RandomSampler(seed=seed)
    raise TypeError(f"no sampler of Optuna stands behind {sampler}")


def pruner_between(search: Search) -> optuna.pruners.BasePruner:
    """Optuna's pruner of trials, whose steps are seeds."""
    test = search.between_seeds
    if test is None:
        return optuna.pruners.NopPruner()
    with _experimental():
        return optuna.pruners.WilcoxonPruner(p_threshold=test.p, n_startup_steps=test.startup)


def pruner_within(pruner: WithinRun) -> optuna.pruners.BasePruner:
    """Optuna's pruner of runs, whose steps are training steps."""
    match pruner:
        case Median():
            return optuna.pruners.MedianPruner(pruner.startup, pruner.warmup)
        case Hyperband():
            return optuna.pruners.HyperbandPruner(pruner.least, "auto", pruner.factor)
    raise TypeError(f"no pruner of Optuna stands behind {pruner}")


def directions_of(search: Search) -> list[StudyDirection]:
    """Where each objective is to go."""
    return [StudyDirection[each.upper()] for each in search.objectives.values()]


@contextmanager
def _experimental() -> Iterator[None]:
    """Says nothing of what Optuna calls experimental though it is years old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
