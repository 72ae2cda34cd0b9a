"""One number for each run and problem: what comparisons of arms are made of."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.load import Runs, pick, suites_of, untrained
from analysis.metrics import STEP
from workbench.passk import FloatArray, pass_at_k
from workbench.rules import Share
from workbench.study import Study

Window = tuple[Share, Share]  # of a run's steps, from one share of them to another

COLUMNS = ("label", "seed", "suite", "problem", "value")


def pass_at_k_scores(runs: Runs, suites: Sequence[str], k: int) -> pd.DataFrame:
    """Unbiased Pass@k of each problem in percent: `label`, `seed`, `suite`, `problem`, `value`."""
    frame = pick(runs.evaluations, suite=tuple(suites))
    samples, correct = (frame[name].to_numpy("int64") for name in ("samples", "correct"))
    return frame.assign(value=100 * pass_at_k(samples, correct, k)).reindex(columns=list(COLUMNS))


def metric_scores(runs: Runs, key: str, window: Window = (0.0, 1.0)) -> pd.DataFrame:
    """A training metric's mean over the steps of each run, as the one problem of a suite.

    Args:
        runs: whose history is read.
        key: of the metric.
        window: the steps that count, as shares of the run's own from one to another.
    """
    frame = runs.history.reindex(columns=["label", "seed", STEP.key, key]).dropna()
    totals = {label: float(recipe.steps) for label, recipe in runs.study.recipes.items()}
    total = frame["label"].map(totals.get).to_numpy("float64")
    steps = pd.DataFrame(frame[inside(frame[STEP.key].to_numpy("float64"), total, window)])
    means = pd.DataFrame(steps.groupby(["label", "seed"], as_index=False).mean())
    found = means.assign(value=means[key], suite=key, problem="")
    return found.reindex(columns=list(COLUMNS))


def inside(steps: FloatArray, total: FloatArray | float, window: Window) -> npt.NDArray[np.bool_]:
    """Which steps of so many lie in a window, each by its middle: step 1 of 4 is at 0.125."""
    place = (steps - 0.5) / total
    return (place >= window[0]) & (place < window[1])


def at_every_seed(scores: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """The scores with those of a model left as it is at every seed, whatever seed they have.

    It is the same model beside each trained run, so that it has a pair in every one.
    """
    recipes = runs.study.recipes
    fixed = scores["label"].isin([label for label in recipes if untrained(recipes[label])])
    copies = [pd.DataFrame(scores[fixed]).assign(seed=seed) for seed in runs.study.seeds]
    return pd.concat([pd.DataFrame(scores[~fixed]), *copies], ignore_index=True)


def check_samples(study: Study, suites: Sequence[str], most: int, owner: str) -> None:
    """Raises ValueError for a suite that the study lacks, or with fewer samples than k."""
    known = suites_of(study)
    known.check(suites, owner)
    for suite in suites or known.names:
        n = study.evaluation.samples_for(suite)
        if most > n:
            raise ValueError(
                f"{owner} asks for k = {most} on {suite}, which has n = {n} samples a problem; "
                f"use k of at most {n}, or evaluate more samples"
            )
