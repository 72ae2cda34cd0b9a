"""The paper's quantities as functions of frames: what tables and figures show, and notebooks can.

Frames are those of `Runs` (`history`, `evaluations`, `questions`), or any with the same columns.
What comes back is tidy: one row for each number, with its interval and what that is over.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.intervals import FEW, PROBLEMS, SAMPLES, SEEDS, Interval, over_problems, over_seeds
from analysis.load import pick
from workbench.identity import nearest
from workbench.passk import (
    ROUNDING,
    Estimate,
    FloatArray,
    mean_interval,
    mean_pass_at_k_over_samples,
    pass_at_k_with_replacement,
    t_quantile,
)
from workbench.passk import pass_at_k as unbiased_pass_at_k

UNITS = (SEEDS, PROBLEMS, SAMPLES)
UNBIASED = "unbiased"
ESTIMATORS = {UNBIASED: unbiased_pass_at_k, "with_replacement": pass_at_k_with_replacement}


# --- final evaluations ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A number of each problem, out of its counts: what it is called, how it is shown."""

    title: str
    count: str
    scale: float
    digits: int
    best: Callable[[Sequence[float]], float] | None = None


VALUES = {
    "pass_at_1": Value("Pass@1 in percent", "correct", 100, 1, max),
    "tokens": Value("Response length in tokens", "tokens", 1, 0),
    "truncated": Value("Truncated answers in percent", "truncated", 100, 1),
    "ungradable": Value("Answers that could not be graded, in percent", "ungradable", 100, 1),
}


def per_problem(evaluations: pd.DataFrame, value: str = "pass_at_1") -> pd.DataFrame:
    """The evaluations with a column `value`: the mean over each problem's samples."""
    known = VALUES[value]
    counts, samples = evaluations[known.count], evaluations["samples"]
    return evaluations.assign(
        value=counts.astype("float64") / samples.astype("float64") * known.scale
    )


def interval_of(frame: pd.DataFrame, by: str, strata: Sequence[object]) -> Interval | None:
    """The mean over the strata of one arm's `value`, each stratum with the same weight.

    Over the runs that have every stratum; over problems if that is one run; None if there is none.
    """
    runs: list[list[FloatArray]] = []
    for _, run in frame.groupby("seed", sort=True):
        parts = [run.loc[run[by] == name, "value"].to_numpy("float64") for name in strata]
        if all(len(part) for part in parts):
            runs.append(parts)
    if len(runs) == 1:
        return over_problems(runs[0])
    means = [sum(part.mean() for part in parts) / len(parts) for parts in runs]
    return over_seeds(means) if means else None


def accuracy(
    evaluations: pd.DataFrame, by: str = "suite", value: str = "pass_at_1"
) -> pd.DataFrame:
    """Tables 2, 3, 5 and 6: the mean of each arm on each suite, or each level.

    Args:
        evaluations: one row for each label, seed, suite and problem, with counts.
        by: `suite` or `level`.
        value: `pass_at_1` (percent), `tokens`, `truncated` or `ungradable`.

    Returns:
        Columns label, `by`, mean, low, high, n and over (`seeds` or `problems`).
    """
    frame = per_problem(evaluations, value)
    rows = []
    for key, mine in frame.groupby(["label", by], sort=False):
        label, stratum = cast(tuple[str, object], key)
        found = interval_of(mine, by, [stratum])
        assert found is not None
        rows.append((label, stratum, found.mean, found.low, found.high, found.units, found.over))
    return pd.DataFrame(rows, columns=["label", by, "mean", "low", "high", "n", "over"])


def pass_at_k(
    evaluations: pd.DataFrame, ks: Iterable[int], over: str = SEEDS, estimator: str = UNBIASED
) -> pd.DataFrame:
    """Figure 2: Pass@k of each arm on each suite, as shares with intervals.

    Args:
        evaluations: one row for each label, seed, suite and problem, with counts.
        ks: at most the samples of a problem.
        over: what intervals are over where an arm has several runs, `seeds` or `problems` (each
            problem's Pass@k averaged over runs first); one run has them over problems instead of
            seeds. Or `samples`: the same runs answering the same problems again.
        estimator: `unbiased`, or `with_replacement` for the paper's, which is biased low.

    Returns:
        Columns label, suite, k, mean, low, high, n (over samples: those of a problem) and over.

    Raises:
        ValueError: an unknown `over` or `estimator`, an interval over samples of the paper's, or k
            above a problem's samples.
    """
    check_pass_at_k(over, estimator, "pass_at_k")
    at = np.array(list(ks))
    frames = []
    for key, mine in evaluations.groupby(["label", "suite"], sort=False):
        label, suite = cast(tuple[str, str], key)
        unit, found = _pass_at_k(mine, at, over, estimator)
        ends = dict(mean=found.mean, low=found.low, high=found.high, n=found.units, over=unit)
        frames.append(pd.DataFrame({"label": label, "suite": suite, "k": at, **ends}))
    columns = ["label", "suite", "k", "mean", "low", "high", "n", "over"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def check_pass_at_k(over: str, estimator: str, owner: str) -> None:
    """Raises ValueError for a choice that `pass_at_k` does not have."""
    for name, given, known in (("over", over, UNITS), ("estimator", estimator, ESTIMATORS)):
        if given not in known:
            raise ValueError(f"{owner}.{name} is {given!r}; {nearest(given, known)}")
    if over == SAMPLES and estimator != UNBIASED:
        raise ValueError(f"{owner}.over is {over!r}, an interval of the unbiased estimator only")


def _pass_at_k(
    frame: pd.DataFrame, ks: npt.NDArray[np.int64], over: str, estimator: str
) -> tuple[str, Estimate]:
    """The mean over problems at every k of one arm on one suite, and what its interval is over."""
    runs = [run.sort_values("problem") for _, run in frame.groupby("seed", sort=True)]
    counts = [(run["samples"].to_numpy(), run["correct"].to_numpy()) for run in runs]
    if over == SAMPLES:
        samples, correct = np.concatenate(counts, axis=1)
        found = mean_pass_at_k_over_samples(samples, correct, ks)
        return SAMPLES, Estimate(found.mean, found.low, found.high, int(samples.min()))
    if len(runs) == 1:
        over = PROBLEMS
    each = [ESTIMATORS[estimator](samples, correct, ks) for samples, correct in counts]
    found = mean_interval(
        [values.mean(axis=0) for values in each] if over == SEEDS else np.mean(each, axis=0)
    )
    low, high = np.clip(found.low, 0.0, 1.0), np.clip(found.high, 0.0, 1.0)
    return over, Estimate(found.mean, low, high, found.units)


def exclusive_solves(
    evaluations: pd.DataFrame, ours: str, baseline: str, at_least: float = 0.5
) -> pd.DataFrame:
    """Table 4: problems that one arm solves and the other does not, by level, for each seed.

    Args:
        evaluations: one row for each label, seed, suite and problem, with counts.
        ours, baseline: labels of the two arms; only seeds and problems of both are compared, and
            a baseline of one run (a model left as it is) with every seed of ours.
        at_least: the share of a problem's samples that must be correct for it to count as solved.

    Returns:
        Columns seed, level, problems, ours_only and baseline_only (counts).
    """
    rate = per_problem(evaluations)["value"] / VALUES["pass_at_1"].scale
    solved = evaluations.assign(solved=rate >= at_least)
    mine, theirs = (pick(solved, label=label) for label in (ours, baseline))
    keys = ["suite", "problem", "seed"]
    if len(set(theirs["seed"])) == 1 < len(set(mine["seed"])):
        keys = keys[:2]
    both = mine.merge(pick(theirs, [*keys, "solved"]), on=keys, suffixes=("", "_baseline"))
    both = both.assign(
        problems=1,
        ours_only=(both["solved"] & ~both["solved_baseline"]).astype("int64"),
        baseline_only=(both["solved_baseline"] & ~both["solved"]).astype("int64"),
    )
    counts = ["problems", "ours_only", "baseline_only"]
    return pd.DataFrame(both.groupby(["seed", "level"], as_index=False)[counts].sum())


# --- training -------------------------------------------------------------------------------------


def curves(history: pd.DataFrame, x: str, y: str, smooth: int = 1) -> pd.DataFrame:
    """Figures 5 to 8: one metric against the step or another metric, averaged over runs.

    Args:
        history: one row for each label, seed and step.
        x: `step` or a metric.
        y: a metric.
        smooth: points of the running mean that is taken of each run.

    Returns:
        Columns label, step, x, mean, low, high and n: the t interval over seeds, NaN at a step
        that fewer than five runs have, or at which all have the same value.
    """
    points = smoothed(history, x, y, smooth)
    found = points.groupby(["label", "step"], as_index=False).agg(
        x=("x", "mean"), mean=("y", "mean"), deviation=("y", "std"), n=("y", "count")
    )
    quantiles = found["n"].map(lambda n: t_quantile(n - 1) if n >= FEW else nan)
    differs = found["deviation"] > ROUNDING * found["mean"].abs()
    half = (quantiles * found["deviation"] / found["n"] ** 0.5).astype("float64").where(differs)
    found = found.assign(low=found["mean"] - half, high=found["mean"] + half)
    return pick(found, ["label", "step", "x", "mean", "low", "high", "n"])


def smoothed(history: pd.DataFrame, x: str, y: str, smooth: int = 1) -> pd.DataFrame:
    """Each run's points: label, seed, step, x and the running mean of y; no rows without both."""
    columns = ["label", "seed", "step", "x", "y"]
    if x not in history or y not in history:
        return pd.DataFrame(columns=columns)
    found = pick(history, columns[:3]).assign(x=history[x], y=history[y]).dropna()
    found = found.sort_values("step", kind="stable", ignore_index=True)
    if smooth > 1:
        rolling = found.groupby(["label", "seed"])["y"].rolling(smooth, 1, center=True).mean()
        found["y"] = rolling.droplevel([0, 1])
    return found


def rollout_accuracy(questions: pd.DataFrame) -> pd.DataFrame:
    """Figure 3: the share of correct rollouts of every training question at every epoch.

    Args:
        questions: one row for each label, seed, step and question.

    Returns:
        Columns label, level, question, epoch, accuracy (mean over seeds) and n (seeds).
    """
    known = questions.dropna(subset=["correct"])
    share = known.assign(accuracy=known["correct"] / known["rollouts"].astype("float64"))
    keys = ["label", "level", "question", "epoch"]
    grouped = share.groupby(keys, as_index=False, sort=True)
    return pd.DataFrame(grouped.agg(accuracy=("accuracy", "mean"), n=("seed", "nunique")))


def rollout_difference(questions: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Figure 4: rollout accuracy of one arm minus another's, matched by question and epoch.

    Only seeds that both arms have take part.

    Returns:
        Columns level, question, epoch and difference (-1 to 1).
    """
    seeds = [set(pick(questions, label=label)["seed"]) for label in (one, other)]
    found = rollout_accuracy(pick(questions, seed=tuple(seeds[0] & seeds[1])))
    mine, theirs = (pick(found, label=label) for label in (one, other))
    keys = ["level", "question", "epoch"]
    merged = mine.merge(theirs, on=keys, suffixes=("", "_other"))
    difference = merged["accuracy"] - merged["accuracy_other"]
    return pick(merged.assign(difference=difference), [*keys, "difference"])


def gate_decisions(questions: pd.DataFrame) -> pd.DataFrame:
    """The share of each level's weight that the gate gave to demonstrations, at every step.

    Args:
        questions: one row for each label, seed, step and question, with weights alpha and beta.

    Returns:
        Columns label, seed, step and `gate/level_<n>` for each level; NaN where a step has no
        question of the level.
    """
    total = questions["alpha"] + questions["beta"]
    shares = questions.assign(
        demonstrated=(questions["beta"] / total.where(total > 0)),
        key=[f"gate/level_{level}" for level in questions["level"]],
    )
    grid = shares.pivot_table("demonstrated", ["label", "seed", "step"], "key", "mean")
    return pd.DataFrame(grid.reset_index()).rename_axis(columns=None)
