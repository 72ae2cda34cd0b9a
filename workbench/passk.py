"""Unbiased Pass@k, and the t interval of a mean: the two statistics that every report rests on."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
ROUNDING = 1e-12  # of a mean: what rounding may leave as the deviation of values that are the same


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, elementwise; the ends are NaN where there is no interval.

    Attributes:
        mean, low, high: arrays of one shape.
        units: how many problems, or runs, were averaged.
    """

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    units: int


def pass_at_k(samples: npt.ArrayLike, correct: npt.ArrayLike, k: npt.ArrayLike) -> FloatArray:
    """Returns `1 - C(n - c, k) / C(n, k)`: the chance that k of the n samples hold a correct one.

    It is unbiased for the chance that k fresh samples solve the problem, exactly 0 at c = 0 and
    exactly 1 where fewer than k samples are wrong.

    Args:
        samples: n of each problem; one number serves them all.
        correct: c of each problem.
        k: one k, or several.

    Returns:
        The shape of `correct` followed by the shape of `k`.

    Raises:
        ValueError: k above n or below 1, or c outside 0 to n.
    """
    right, ks = np.asarray(correct, dtype=np.int64), np.asarray(k, dtype=np.int64)
    counts = np.broadcast_to(np.asarray(samples, dtype=np.int64), right.shape)
    _check(counts, right, ks)
    found = np.empty((*right.shape, ks.size))
    for n in np.unique(counts):
        rows = counts == n
        found[rows] = 1.0 - _all_wrong(int(n), ks.ravel())[:, right[rows]].T
    return found.reshape((*right.shape, *ks.shape))


def pass_at_k_with_replacement(
    samples: npt.ArrayLike, correct: npt.ArrayLike, k: npt.ArrayLike
) -> FloatArray:
    """Returns `1 - (1 - c/n)^k`: the paper's bootstrap, k of the n samples drawn with replacement.

    This is what the mean over its draws tends to (arXiv 2509.04419 draws from 2048 samples). It is
    biased low, since a draw may hold one wrong sample many times: 1 of 4 correct reads 0.684 at
    k = 4, where every four samples hold the correct one; 1 of 2048 reads 0.393 instead of 0.5 at
    k = 1024. At k of at most n/32 the bias is under 0.006. For the paper's figure only: `pass_at_k`
    has no bias and takes the same counts.

    Args, Returns, Raises: those of `pass_at_k`.
    """
    right, ks = np.asarray(correct, dtype=np.int64), np.asarray(k, dtype=np.int64)
    counts = np.broadcast_to(np.asarray(samples, dtype=np.int64), right.shape)
    _check(counts, right, ks)
    wrong = 1.0 - right / counts
    return 1.0 - np.power.outer(wrong, ks.ravel()).reshape((*right.shape, *ks.shape))


def mean_pass_at_k_over_samples(
    samples: npt.ArrayLike, correct: npt.ArrayLike, k: npt.ArrayLike, level: float = LEVEL
) -> Estimate:
    """Averages Pass@k over problems, with an interval over samples of these very problems.

    The interval speaks of the same checkpoint answering the same problems again, and of nothing
    else: it is far narrower than the one over problems. Its variance is the exact one of the
    estimator under the binomial with chance `(c + 1/2) / (n + 1)`, so that problems solved never
    or always still count as uncertain; it covers at least as often as it says, also at k = n/2.
    """
    counts, right = np.broadcast_arrays(np.atleast_1d(samples), np.atleast_1d(correct))
    mean = np.asarray(pass_at_k(counts, right, k).mean(axis=0))
    variance = np.zeros_like(mean)
    for n in np.unique(counts):
        variance += _sampling_variances(int(n), right[counts == n], k).sum(axis=0)
    half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance) / len(counts)
    return Estimate(mean, np.maximum(mean - half, 0), np.minimum(mean + half, 1), len(counts))


def mean_interval(values: npt.ArrayLike, level: float = LEVEL) -> Estimate:
    """Averages over the first axis, with the t interval of a mean of independent units.

    The ends are NaN for one unit, and where all units are the same: their deviation of 0 says
    nothing of others.

    Raises:
        ValueError: no units.
    """
    units = np.asarray(values, dtype=np.float64)
    if units.ndim == 0 or len(units) == 0:
        raise ValueError("an interval needs at least one unit along the first axis, got none")
    mean = np.asarray(units.mean(axis=0))
    if len(units) == 1:
        unknown = np.full_like(mean, np.nan)
        return Estimate(mean, unknown, unknown, 1)
    deviation = units.std(axis=0, ddof=1)
    known = np.where(deviation > ROUNDING * np.abs(mean), deviation, np.nan)
    half = t_quantile(len(units) - 1, level) * known / sqrt(len(units))
    return Estimate(mean, mean - half, mean + half, len(units))


@lru_cache(maxsize=1024)
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Returns the t within which Student's distribution holds `level` of its mass, around 0.

    With whole degrees of freedom the mass within t is a finite sum in `atan(t / sqrt(degrees))`
    (Abramowitz and Stegun, 26.7.3 and 26.7.4), which bisection inverts: no scipy needed.
    """
    if degrees < 1:
        raise ValueError(f"t_quantile needs at least 1 degree of freedom, got {degrees}")
    if not 0 < level < 1:
        raise ValueError(f"t_quantile's level is a share between 0 and 1, got {level}")
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass_within(middle, degrees) < level else (low, middle)
    return tan((low + high) / 2) * sqrt(degrees)


def _all_wrong(n: int, ks: npt.NDArray[np.int64]) -> FloatArray:
    """C(n - c, k) / C(n, k) for every k (rows) and c = 0..n (columns).

    It is the product of `1 - k/i` for i = n - c + 1 to n. No factor exceeds 1, so that nothing
    overflows or cancels, and the factor at i = k is 0, so that the edges are exact.
    """
    factors = np.maximum(1.0 - ks[:, None] / np.arange(n, 0, -1), 0.0)
    products = np.ones((len(ks), n + 1))
    np.cumprod(factors, axis=1, out=products[:, 1:])
    return products


def _sampling_variances(n: int, correct: npt.NDArray[np.int64], k: npt.ArrayLike) -> FloatArray:
    """The variance of each problem's Pass@k over draws of n samples: problems, then shape of k."""
    distinct, where = np.unique(correct, return_inverse=True)
    chance = (distinct[:, None] + 0.5) / (n + 1)
    drawn = np.arange(n + 1)
    ways = np.zeros(n + 1)  # log C(n, drawn)
    np.cumsum(np.log(drawn[:0:-1] / drawn[1:]), out=ways[1:])
    weights = np.exp(ways + drawn * np.log(chance) + (n - drawn) * np.log1p(-chance))
    values = pass_at_k(n, drawn, k)
    mean, square = (np.tensordot(weights, values**power, axes=1) for power in (1, 2))
    return np.maximum(square - mean**2, 0.0)[where]


def _check(
    samples: npt.NDArray[np.int64], correct: npt.NDArray[np.int64], ks: npt.NDArray[np.int64]
) -> None:
    if ks.size and ks.min() < 1:
        raise ValueError(f"Pass@k needs k of at least 1, got k = {ks.min()}")
    if ks.size and samples.size and ks.max() > samples.min():
        raise ValueError(
            f"Pass@k needs at least k samples a problem, got k = {ks.max()} with "
            f"n = {samples.min()}; use k of at most {samples.min()}, or sample more"
        )
    if np.any(correct < 0) or np.any(correct > samples):
        at = int(np.argmax(((correct < 0) | (correct > samples)).ravel()))
        raise ValueError(
            f"the correct answers are 0 to n, got c = {correct.ravel()[at]} "
            f"with n = {samples.ravel()[at]}"
        )


def _mass_within(angle: float, degrees: int) -> float:
    """The mass of Student's t between -tan(angle) * sqrt(degrees) and its mirror image."""
    odd = degrees % 2
    first = np.arange(1 + odd, degrees - 1, 2, dtype=np.float64)
    factors = first / (first + 1) * cos(angle) ** 2
    series = sin(angle) * (1.0 + np.cumprod(factors).sum())
    if not odd:
        return float(series)
    return float(2 / pi * (angle + (cos(angle) * series if degrees > 1 else 0.0)))
