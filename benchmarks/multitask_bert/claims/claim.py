"""The form of a claim, the margins that its words stand for, and the commonest comparisons."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.multitask_bert.claims.differences import MetricDifference
from benchmarks.multitask_bert.claims.verdicts import Check, Within

# What "hardly matters" allows: less than the least gain that the reports call one (0.021), and more
# than the largest spread that they call marginal (0.007).
SAME = 0.02
# What "fails" and "by a wide margin" ask for: five times SAME, and a third or less of the drops
# and gains that are published as such (0.31, 0.38, 0.41, 0.43).
WIDE = 0.1
# What "well below" asks for: half of the smaller gap published (0.108 and 0.208).
WELL = 0.05
# Gradients at an angle of 84 to 96 degrees.
ORTHOGONAL = 0.1
# A gradient that keeps half of its norm is far from annihilated.
ANNIHILATED = 0.5
# The published 30 minutes against 20, which are rounded.
TIME_RATIO = (1.25, 1.75)
# A dev metric that has stopped still moves a little; a training loss falls by more than its noise.
STALLED = 0.005
FALLING = -0.02


SW, CHADA, BENTON, XU, JIANG = "smet-walker", "chada-jolly", "benton", "xu", "jiang-yu"


@dataclass(frozen=True)
class Claim:
    """A statement that reports make, in our words.

    Args:
        id: ``C1`` to ``C30``.
        text: one sentence.
        sources: keys of the reports in ``published.toml``.
        check: what decides it.
        caution: what a reader should know about the check or the published numbers.
    """

    id: str
    text: str
    sources: tuple[str, ...]
    check: Check
    caution: str = ""


def higher(metric: str, first: str, second: str, by: float = 0.0) -> Within:
    """The claim that a metric of the first recipe is higher, by so much at least."""
    return Within(MetricDifference(metric, first, second), low=by)


def lower(metric: str, first: str, second: str, by: float = 0.0) -> Within:
    """The claim that a metric of the first recipe is lower, by so much at least."""
    return Within(MetricDifference(metric, first, second), high=0.0 - by)


def no_gain(metric: str, first: str, second: str) -> Within:
    """The claim that a metric of the first recipe is not noticeably higher."""
    return Within(MetricDifference(metric, first, second), high=SAME)


def same(metric: str, first: str, second: str) -> Within:
    """The claim that a metric of two recipes is much the same."""
    return Within(MetricDifference(metric, first, second), -SAME, SAME)
