"""Intervals against printed tables of Student's distribution, and against how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.multitask_bert.intervals import Interval, interval, student_quantile
from benchmarks.multitask_bert.significance import Verdict


def test_student_quantiles_are_those_of_printed_tables() -> None:
    printed = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 11: 2.2010, 30: 2.0423}
    for freedom, quantile in printed.items():
        assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)
    assert student_quantile(3, 0.01) == pytest.approx(5.8409, abs=5e-5)
    assert student_quantile(120) == pytest.approx(1.9799, abs=5e-5)


def test_an_interval_covers_what_it_says() -> None:
    """Means of three seeds with a known error of examples: the truth lies inside 95 % of times."""
    random = np.random.default_rng(5)
    seeds, examples = random.normal(size=(20000, 3)), random.normal(scale=0.7, size=20000)
    found = seeds.mean(axis=1) + examples
    errors = seeds.std(axis=1, ddof=1) / math.sqrt(3)
    inside = [
        not interval(value, (error, 2), (0.7, math.inf)).is_decided
        for value, error in zip(found, errors, strict=True)
    ]
    assert 0.95 <= np.mean(inside) <= 0.985  # on the safe side, and not by much


@pytest.mark.parametrize(
    ("value", "reach", "verdict"),
    [
        (0.2, 0.1, Verdict.HIGHER),
        (-0.2, 0.1, Verdict.LOWER),
        (0.1, 0.1, Verdict.NOISE),
        (0.2, math.nan, Verdict.TOO_FEW),
        (math.nan, 0.1, Verdict.TOO_FEW),
    ],
)
def test_an_interval_decides_where_zero_is_outside(
    value: float, reach: float, verdict: Verdict
) -> None:
    assert Interval(value, reach).verdict is verdict


def test_an_unknown_source_of_error_leaves_the_interval_unknown() -> None:
    assert math.isnan(interval(0.3, (0.0, 0), (0.1, math.inf)).reach)
    assert math.isnan(interval(0.3, (0.1, 4), (math.nan, math.inf)).reach)
