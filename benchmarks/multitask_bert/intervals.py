"""Intervals of 95 % around numbers whose error has several sources."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.multitask_bert.significance import LEVEL, Verdict, direction

# Degrees of freedom from which on Student's distribution is the normal one to three digits.
NORMAL = 4000


@dataclass(frozen=True)
class Interval:
    """A number, and how far on either side of it the true one may lie; NaN where it is unknown."""

    value: float
    reach: float

    @property
    def verdict(self) -> Verdict:
        """Say on which side of zero the whole interval lies, if it does."""
        if not (math.isfinite(self.value) and math.isfinite(self.reach)):
            return Verdict.TOO_FEW
        if abs(self.value) <= self.reach:
            return Verdict.NOISE
        return direction(self.value)

    @property
    def is_decided(self) -> bool:
        """Tells whether zero is outside."""
        return self.verdict in (Verdict.HIGHER, Verdict.LOWER)

    def text(self, pattern: str = "{:+.3f}") -> str:
        """Give "value [low, high]".

        Example:
            >>> Interval(0.019, 0.031).text(), Interval(0.019, math.nan).text()
            ('+0.019 [-0.012, +0.050]', '+0.019')
        """
        if not math.isfinite(self.value):
            return "-"
        if not math.isfinite(self.reach):
            return pattern.format(self.value)
        low, high = self.value - self.reach, self.value + self.reach
        return f"{pattern.format(self.value)} [{pattern.format(low)}, {pattern.format(high)}]"


def interval(value: float, *sources: tuple[float, float]) -> Interval:
    r"""Put the interval of 95 % around a number whose error has several independent sources.

    $$r^2 = \sum_k \big( t_{\nu_k} \, s_k \big)^2$$

    Args:
        value: the number.
        sources: each with its standard error $s_k$, and the degrees of freedom $\nu_k$ that this
            was estimated with; without any, 0, the interval is unknown.

    Example:
        >>> interval(0.5, (0.1, 2), (0.05, math.inf)).text("{:.2f}")
        '0.50 [0.06, 0.94]'

    Guang Yong Zou, Allan Donner, Construction of confidence limits about effect measures: a general
    approach, 2008.
    """
    reaches = [
        student_quantile(int(min(freedom, NORMAL))) * error if freedom >= 1 else math.nan
        for error, freedom in sources
    ]
    return Interval(value, math.hypot(*reaches))


@lru_cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    r"""Give the $t$ that Student's distribution exceeds, on both sides together, at a level.

    Its probability within $\pm t$ is a finite sum for a whole number of degrees of freedom; that is
    inverted by bisection.

    Example:
        >>> [round(student_quantile(freedom), 3) for freedom in (1, 2, 10, 1000)]
        [12.706, 4.303, 2.228, 1.962]

    Milton Abramowitz, Irene A. Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t over the root of the freedom
    for _ in range(60):
        angle = (low + high) / 2
        if _student_within(angle, freedom) < 1 - level:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(low)


def _student_within(angle: float, freedom: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for k in range(2 + is_odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return (angle + sine * total) * 2 / math.pi if is_odd else sine * total
