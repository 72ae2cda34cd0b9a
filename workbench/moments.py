"""Bias and variance of a gradient estimator: one vocabulary for what is enumerated and measured.

Everything follows from four numbers: the squared length of the estimator's mean, that of the true
gradient, their inner product, and the trace of the estimator's covariance. They are arrays of one
shape, so that a whole table, or a jackknife, is one call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.passk import LEVEL, t_quantile

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """The first two moments of an estimator g against the true gradient g*.

    Estimates of them may be negative where the quantity cannot be: they are unbiased, not cut.

    Attributes:
        inner: <E g, g*>.
        square: |E g|^2.
        truth_square: |g*|^2.
        variance: the trace of Cov[g] for one step.
    """

    inner: Array
    square: Array
    truth_square: Array
    variance: Array

    @property
    def bias_squared(self) -> Array:
        """|E g - g*|^2."""
        return self.square - 2 * self.inner + self.truth_square

    @property
    def mse(self) -> Array:
        """E |g - g*|^2."""
        return self.bias_squared + self.variance

    @property
    def cosine(self) -> Array:
        """Of E g with g*; NaN where either has no positive squared length."""
        return _over(self.inner, _root(self.square) * _root(self.truth_square))

    @property
    def relative_bias(self) -> Array:
        """The bias that no rescaling removes: the sine of the angle between E g and g*."""
        return np.sqrt(np.maximum(0.0, 1 - self.cosine**2))

    @property
    def directed_bias(self) -> Array:
        """The relative bias squared: |s E g - g*|^2 / |g*|^2 where s makes it least."""
        return 1 - _over(self.inner**2, _positive(self.square) * _positive(self.truth_square))

    @property
    def directed_variance(self) -> Array:
        """s^2 tr Cov / |g*|^2 at the scale of `directed_bias`: what of the noise is in the way."""
        power = _positive(self.square) ** 2 * _positive(self.truth_square)
        return _over(self.inner**2 * self.variance, power)

    @property
    def scale_free_error(self) -> Array:
        """min over s of E |s g - g*|^2 / |g*|^2: what estimators of any scale are compared by.

        1 is an estimator as good as none, 0 one without bias or noise.
        """
        power = self.square + self.variance
        along = _over(self.inner**2, power * _positive(self.truth_square))
        return 1 - np.where(power > 0, along, 0.0)

    @property
    def scale(self) -> Array:
        """The s of the scale-free error: what the estimator is best multiplied by."""
        return _over(self.inner, self.square + self.variance)

    @property
    def scaled_bias(self) -> Array:
        """|s E g - g*|^2 / |g*|^2 at the best scale, a part of the scale-free error."""
        bias = self.scale**2 * self.square - 2 * self.scale * self.inner + self.truth_square
        return _over(bias, _positive(self.truth_square))

    @property
    def scaled_variance(self) -> Array:
        """s^2 tr Cov / |g*|^2 at the best scale, the other part."""
        return _over(self.scale**2 * self.variance, _positive(self.truth_square))

    @property
    def noise_scale(self) -> Array:
        """tr Cov / |E g|^2 (McCandlish et al. 2018), for steps of this size."""
        return _over(self.variance, _positive(self.square))


STATISTICS: dict[str, Callable[[Moments], Array]] = {
    "bias_squared": lambda m: m.bias_squared,
    "variance": lambda m: m.variance,
    "mse": lambda m: m.mse,
    "relative_bias": lambda m: m.relative_bias,
    "cosine": lambda m: m.cosine,
    "directed_bias": lambda m: m.directed_bias,
    "directed_variance": lambda m: m.directed_variance,
    "scale_free_error": lambda m: m.scale_free_error,
    "scaled_bias": lambda m: m.scaled_bias,
    "scaled_variance": lambda m: m.scaled_variance,
    "noise_scale": lambda m: m.noise_scale,
}


def _positive(value: Array) -> Array:
    return np.where(np.asarray(value) > 0, value, np.nan)


def _root(square: Array) -> Array:
    return np.sqrt(_positive(square))


def _over(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above / below)


# --- estimates from independent draws -------------------------------------------------------------

GROUPS = 32  # that draws are left out in, at most: more make no better interval


def left_out(draws: int) -> Array:
    """Which of some draws take part: all of them, then without each of some groups of them.

    Returns:
        [1 + group, draw], 1 where a draw takes part and else 0; groups differ by a draw in size.
    """
    group = np.arange(draws) % min(draws, GROUPS)
    return np.vstack([np.ones(draws), group[None] != np.arange(group.max() + 1)[:, None]])


def of_pairs(one: Array, other: Array, kept: Array) -> Array:
    """<E one, E other> from pairs of two draws, for no draw is independent of itself.

    The U-statistic: a product of averages would be too large by the covariance over the draws.

    Args:
        one, other: [draw, dimension], of the same draws.
        kept: [which, draw], as `left_out` gives it.

    Returns:
        [which].
    """
    count = kept.sum(axis=1)
    every = np.einsum("wd,wd->w", kept @ one, kept @ other)
    same = kept @ np.einsum("nd,nd->n", one, other)
    return (every - same) / (count * (count - 1))


def of_each(values: Array, kept: Array) -> Array:
    """The mean of a number of each draw, for every row of `kept`."""
    return kept @ values / kept.sum(axis=1)


@dataclass(frozen=True)
class Measured:
    """An estimate with its interval, elementwise.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
    """

    value: Array
    low: Array
    high: Array


def jackknife(statistic: Callable[[Moments], Array], left_out: Moments) -> Measured:
    """A statistic of moments with its jackknife interval (Efron 1982, chapter 3).

    The value is not corrected for bias: in a ratio whose parts are noisy the correction is far
    noisier than what it corrects.

    Args:
        statistic: what is wanted, such as `lambda m: m.cosine`.
        left_out: arrays whose last axis has the estimate from all draws first, then that without
            each group of them.

    Returns:
        Arrays without the last axis; NaN where the statistic is not defined.
    """
    if statistic is STATISTICS["relative_bias"]:
        # Its square has an interval where the angle is 0 too, and the root keeps the order.
        square = jackknife(STATISTICS["directed_bias"], left_out)
        ends = (square.value, square.low, square.high)
        return Measured(*(np.sqrt(np.maximum(0.0, end)) for end in ends))
    found = statistic(left_out)
    measured = interval(found[..., 0], [found[..., 1:]])
    grows = any(statistic is STATISTICS[name] for name in _SQUARES)
    return _stretched(measured) if grows else measured


_SQUARES = ("bias_squared", "mse")


def _stretched(measured: Measured) -> Measured:
    """The interval of a squared length, whose error grows with its root: its upper end is further.

    As in Wilson's interval, where the error is taken at the end and not at the estimate; an
    estimate below its own error is taken to be as large as that.
    """
    half = measured.high - measured.value
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(half > 0, half / (2 * np.maximum(measured.value, half)), 0.0)
    high = measured.value + half * (ratio + np.sqrt(1 + ratio**2))
    return Measured(measured.value, measured.low, high)


def interval(value: Array, left_out: Sequence[Array]) -> Measured:
    """The interval of a number that follows from one or several independent sets of draws.

    Products of sums have far longer tails than a mean has, so that the t quantile is taken at a
    sixth of the degrees of freedom of the smallest set: coverage is then nominal on enumerable
    policies, where the tests measure it.

    Args:
        value: from all draws of all sets.
        left_out: for each set, the same without each of its groups, on the last axis.
    """
    square = np.zeros_like(value)
    for each in left_out:
        groups = each.shape[-1]
        off = each - each.mean(axis=-1, keepdims=True)
        square = square + (groups - 1) / groups * (off**2).sum(axis=-1)
    fewest = min(each.shape[-1] for each in left_out)
    half = t_quantile(max(1, (fewest - 1) // 6), LEVEL) * np.sqrt(square)
    return Measured(value, value - half, value + half)
