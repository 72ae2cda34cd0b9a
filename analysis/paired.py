"""Paired comparisons of two arms: differences on common seeds and problems, and how likely by luck.

Seeds are the unit: a seed gives both arms the same data in the same order and the same questions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from workbench.passk import FloatArray

EXACT = 20  # pairs up to which every assignment of signs is counted
DRAWS = 1_000_000  # assignments that are drawn beyond


def differences(
    frame: pd.DataFrame, arm: str, baseline: str, suites: Sequence[str] = ()
) -> pd.DataFrame:
    """The arm's values minus the baseline's, where both have one.

    Args:
        frame: columns `label`, `seed`, `suite`, `problem` and `value`.
        arm, baseline: labels.
        suites: that a seed must have; empty takes the frame's.

    Returns:
        One row for each suite and problem, one column for each seed that both arms have on every
        suite. Problems that one of those runs lacks are left out.
    """
    ours, theirs = (_grid(frame, label) for label in (arm, baseline))
    found = ours.sub(theirs)  # aligned on suites, problems and seeds; NaN where one is absent
    measured = found.notna().groupby(level="suite").any()
    wanted = list(suites) or frame["suite"].unique()
    common = measured.reindex(wanted, fill_value=False).all()
    return found.loc[:, common].dropna()


def sign_flip(differences: npt.ArrayLike, random: np.random.Generator) -> float:
    """The two-sided p of a paired permutation test on the mean, by flipping signs.

    If the two arms were the same, each difference would be as likely with the other sign. The p is
    the share of assignments of signs whose mean is at least as far from 0 as the one seen: exact
    up to 20 differences, from a million draws of the generator beyond.

    Raises:
        ValueError: no difference.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a sign-flip test needs at least one pair, got none")
    # Accuracies are multiples of one fraction: sums that are equal must not differ by rounding.
    least = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) > EXACT:
        hits = sum(_flipped_at_least(values, least, random, DRAWS // 100) for _ in range(100))
        return (1 + hits) / (1 + DRAWS)
    sums = values[:1]  # the first sign is held: an assignment and its mirror image are as extreme
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= least))


def smallest_p(pairs: int) -> float:
    """The p that `sign_flip` gives where all of so many differences have one sign: `2^(1 - n)`."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT else 1 / (1 + DRAWS)


def holm(ps: Sequence[float] | FloatArray) -> FloatArray:
    """Adjusts the p of a family of tests so that any of them is wrong at most at the level (1979).

    A test that could not be made has p NaN: it stays NaN and still counts in the family's size,
    because the family was declared before it was known which runs there would be.

    Returns:
        The adjusted p, in the order given.
    """
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values, kind="stable")  # NaN last
    factors = np.arange(len(values), 0, -1)
    found = np.empty_like(values)
    found[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return found


def _grid(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """An arm's values, one row for each suite and problem, one column for each seed."""
    mine = frame[frame["label"] == label]
    return mine.pivot(index=["suite", "problem"], columns="seed", values="value")


def _flipped_at_least(
    values: FloatArray, least: float, random: np.random.Generator, draws: int
) -> int:
    signs = random.integers(2, size=(draws, len(values)), dtype=np.int8) * 2.0 - 1.0
    return int(np.sum(np.abs(signs @ values) >= least))
