"""Chance, told from differences: standard errors, exact tests, and the verdict on a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[Any]

LEVEL = 0.05
NUM_ERRORS = 2.0  # standard errors that a difference has to exceed
# Of fewer values than these, two estimated standard errors are not the 5 % that they stand for.
MIN_COUNT = 10


class Verdict(str, Enum):
    """The worth of a difference."""

    HIGHER = "higher"
    LOWER = "lower"
    NOISE = "within noise"
    TOO_FEW = "too few to tell"


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; NaN stands for what cannot be told."""

    value: float
    error: float

    def text(self, pattern: str = "{:+.2f}") -> str:
        """Give "value ± standard error".

        Example:
            >>> Estimate(0.5, 0.1).text()
            '+0.50 ± 0.10'
        """
        if not math.isfinite(self.value):
            return "-"
        value = pattern.format(self.value)
        if not math.isfinite(self.error):
            return value
        return f"{value} ± {pattern.replace('+', '').format(self.error)}"


UNKNOWN = Estimate(math.nan, math.nan)


@dataclass(frozen=True)
class ExactTest:
    """A two-sided probability, and the smallest that any outcome of as many could have had."""

    p: float
    smallest: float

    @property
    def text(self) -> str:
        return f"{self.p:.3f}" if self.p >= 0.001 else "< 0.001"


def mean_estimate(values: Values) -> Estimate:
    r"""Give the mean, and its standard error $s / \sqrt{N}$.

    Example:
        >>> mean_estimate([1.0, 2.0, 3.0, 4.0]).text("{:.3f}")
        '2.500 ± 0.645'
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return UNKNOWN
    error = float(np.std(array, ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.nan
    return Estimate(float(np.mean(array)), error)


def share_estimate(num_hits: int, count: int) -> Estimate:
    r"""Give the share of hits, and its standard error $\sqrt{q (1 - q) / N}$, $q = (k+1) / (N+2)$.

    With the share itself for $q$, no hit at all would pass for certainty.

    Example:
        >>> share_estimate(0, 8).text("{:.2f}")
        '0.00 ± 0.11'
    """
    if count == 0:
        return UNKNOWN
    drawn_in = (num_hits + 1) / (count + 2)
    return Estimate(num_hits / count, math.sqrt(drawn_in * (1 - drawn_in) / count))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Give the first less the second of two independent estimates.

    Example:
        >>> difference(Estimate(2.0, 0.3), Estimate(1.0, 0.4)).text()
        '+1.00 ± 0.50'
    """
    return Estimate(a.value - b.value, math.hypot(a.error, b.error))


def regression(predictors: Sequence[Values], target: Values) -> list[Estimate]:
    r"""Fit $y = \beta_0 + \sum_k \beta_k x_k$ by least squares, and give the slopes.

    Args:
        predictors: the $x_k$, each with a number for every value of the target.
        target: the $y$.

    Returns:
        An estimate of each slope, without the intercept; unknown where the data do not fix it.

    Example:
        >>> [slope.text("{:.2f}") for slope in regression([[0, 1, 2, 3]], [0.0, 1.0, 1.0, 2.0])]
        ['0.60 ± 0.14']
    """
    y = np.asarray(target, dtype=np.float64)
    columns = [np.asarray(values, dtype=np.float64) for values in predictors]
    unknown = [UNKNOWN] * len(columns)
    freedom = y.size - len(columns) - 1
    if freedom < 1:
        return unknown
    # Centred, the intercept drops out, and scaled, no unit can spoil the rank.
    centred = np.column_stack([x - x.mean() for x in columns])
    scales = np.abs(centred).max(axis=0)
    if not scales.all():
        return unknown
    centred /= scales
    y = y - y.mean()
    slopes, _, rank, _ = np.linalg.lstsq(centred, y, rcond=None)
    if rank < len(columns):
        return unknown
    # Of an exact fit rounding would leave a slope many times its error.
    slopes[np.abs(slopes) <= 1e-12 * np.abs(y).max()] = 0.0
    residuals = y - centred @ slopes
    covariance = np.linalg.inv(centred.T @ centred) * (residuals @ residuals / freedom)
    errors = np.sqrt(np.diag(covariance))
    return [
        Estimate(float(slope), float(error))
        for slope, error in zip(slopes / scales, errors / scales, strict=True)
    ]


def sign_test(num_over: int, num_under: int) -> ExactTest:
    r"""Test whether one side comes up more often than the other.

    $$p = \min\Big(1, \; 2 \sum_{k=0}^{\min(o, u)} \binom{o + u}{k} 2^{-(o + u)}\Big)$$

    Example:
        >>> round(sign_test(9, 4).p, 4)
        0.2668
    """
    count = num_over + num_under
    tail = sum(math.comb(count, k) for k in range(min(num_over, num_under) + 1))
    return ExactTest(min(1.0, 2 * tail / 2**count), min(1.0, 2 / 2**count))


def fisher_test(num_hits: int, count: int, num_others: int, other_count: int) -> ExactTest:
    """Test whether two shares differ, by Fisher's exact test.

    The probability, with all margins as they are, of tables no more probable than this one.

    Args:
        num_hits: of the first group.
        count: of the first group, hits and misses.
        num_others: hits of the second group.
        other_count: of the second group, hits and misses.

    Example:
        >>> round(fisher_test(3, 4, 1, 4).p, 4)
        0.4857

    Ronald A. Fisher, Statistical Methods for Research Workers, 1934.
    """
    all_hits, total = num_hits + num_others, count + other_count
    hits = np.arange(max(0, all_hits - other_count), min(count, all_hits) + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])  # log k!

    def log_choose(n: int, k: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(logs[n] - logs[k] - logs[n - k])

    chances = np.exp(
        log_choose(count, hits)
        + log_choose(other_count, all_hits - hits)
        - log_choose(total, np.array(all_hits))
    )
    observed = chances[num_hits - hits[0]]
    # Tables of equal probability differ in their last digits.
    at_most = [chances[chances <= limit * (1 + 1e-7)].sum() for limit in (observed, chances.min())]
    return ExactTest(*(min(1.0, float(p)) for p in at_most))


def judge(found: Estimate, *counts: int) -> Verdict:
    """Judge a difference by its standard error, if every side of it has enough values.

    Example:
        >>> judge(Estimate(0.5, 0.1), 40, 200).value, judge(Estimate(0.5, 0.1), 4, 200).value
        ('higher', 'too few to tell')
    """
    known = math.isfinite(found.value) and math.isfinite(found.error)
    if not known or min(counts) < MIN_COUNT:
        return Verdict.TOO_FEW
    return direction(found.value) if abs(found.value) > NUM_ERRORS * found.error else Verdict.NOISE


def judge_exact(test: ExactTest, found: float) -> Verdict:
    """Judge a difference by an exact test, unless no outcome could have been significant.

    Example:
        >>> judge_exact(sign_test(9, 4), 0.3).value, judge_exact(sign_test(5, 0), 0.3).value
        ('within noise', 'too few to tell')
    """
    if test.smallest >= LEVEL:
        return Verdict.TOO_FEW
    return direction(found) if test.p < LEVEL else Verdict.NOISE


def direction(found: float) -> Verdict:
    """Name the side of zero that a number is on."""
    return Verdict.HIGHER if found > 0 else Verdict.LOWER
