"""One number for each run and problem: what comparisons of arms are made of."""

from collections.abc import Sequence

import pandas as pd

from analysis.load import Runs, pick, suites_of, untrained
from analysis.metrics import STEP
from workbench.passk import pass_at_k
from workbench.study import Study

COLUMNS = ("label", "seed", "suite", "problem", "value")


def pass_at_k_scores(runs: Runs, suites: Sequence[str], k: int) -> pd.DataFrame:
    """Unbiased Pass@k of each problem in percent: `label`, `seed`, `suite`, `problem`, `value`."""
    frame = pick(runs.evaluations, suite=tuple(suites))
    samples, correct = (frame[name].to_numpy("int64") for name in ("samples", "correct"))
    return frame.assign(value=100 * pass_at_k(samples, correct, k)).reindex(columns=list(COLUMNS))


def metric_scores(runs: Runs, key: str) -> pd.DataFrame:
    """A training metric's mean over the steps of each run, as the one problem of a suite."""
    frame = runs.history.reindex(columns=["label", "seed", STEP.key, key]).dropna()
    steps = pd.DataFrame(frame[frame[STEP.key] > 0])
    means = pd.DataFrame(steps.groupby(["label", "seed"], as_index=False).mean())
    found = means.assign(value=means[key], suite=key, problem="")
    return found.reindex(columns=list(COLUMNS))


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
