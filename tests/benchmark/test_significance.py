"""Estimates and exact tests against values by hand, and against enumeration in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.multitask_bert.significance import (
    UNKNOWN,
    Estimate,
    Verdict,
    difference,
    fisher_test,
    judge,
    judge_exact,
    mean_estimate,
    regression,
    share_estimate,
    sign_test,
)


def test_mean_estimate_by_hand() -> None:
    found = mean_estimate([1.0, 2.0, 6.0])  # squared deviations 4 + 1 + 9, over 2, is 7
    assert found.value == 3.0
    assert found.error == pytest.approx(math.sqrt(7 / 3))
    assert mean_estimate([]).text() == "-"
    assert mean_estimate([2.0]).text() == "+2.00"


def test_share_estimate_by_hand() -> None:
    found = share_estimate(3, 8)
    assert found.value == 0.375
    assert found.error == pytest.approx(math.sqrt(0.4 * 0.6 / 8))
    assert share_estimate(0, 8).error == pytest.approx(math.sqrt(0.1 * 0.9 / 8))
    assert share_estimate(0, 0) is UNKNOWN


def test_difference_is_welch() -> None:
    found = difference(mean_estimate([1.0, 3.0]), mean_estimate([0.0, 0.0, 3.0]))
    assert found.value == 1.0
    assert found.error == pytest.approx(math.sqrt(2 / 2 + 3 / 3))


def test_regression_by_hand() -> None:
    x, y = [0.0, 1.0, 2.0, 4.0], [1.0, 1.0, 2.0, 3.0]
    # About the means, 1.75 both: squares 8.75 and 2.75, products 4.75.
    residual = 2.75 - 4.75**2 / 8.75
    (found,) = regression([x], y)
    assert found.value == pytest.approx(4.75 / 8.75)
    assert found.error == pytest.approx(math.sqrt(residual / 2 / 8.75))


def test_regression_on_a_group_is_the_difference_of_means() -> None:
    group = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    y = np.array([3.0, 4.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    (found,) = regression([group], y)
    pooled = (2 + 10) / (8 - 2)
    assert found.value == pytest.approx(2.0)
    assert found.error == pytest.approx(math.sqrt(pooled * (1 / 3 + 1 / 5)))


def test_regression_tells_correlated_features_apart() -> None:
    random = np.random.default_rng(0)
    label = random.normal(size=4000)
    feature = label + random.normal(size=4000)
    y = 0.5 * feature - 2.0 * label + random.normal(size=4000)
    by_feature, by_label = regression([1000 * feature, label], y)
    assert 1000 * by_feature.value == pytest.approx(0.5, abs=4 * 1000 * by_feature.error)
    assert by_label.value == pytest.approx(-2.0, abs=4 * by_label.error)
    assert 1000 * by_feature.error == pytest.approx(1 / math.sqrt(4000), rel=0.05)


def test_an_exact_fit_makes_no_effect_of_rounding() -> None:
    label = np.linspace(0, 5, 60)
    group = np.arange(60) % 7 == 0
    by_group, by_label = regression([group, label], 1.3 - 0.7 * label)
    assert by_group.value == 0.0
    assert by_label.value == pytest.approx(-0.7)
    assert judge(by_group, 9, 51) is Verdict.TOO_FEW
    assert judge(by_group, 10, 50) is Verdict.NOISE


@pytest.mark.parametrize(
    ("predictors", "target"),
    [
        ([[1.0, 1.0, 1.0, 1.0]], [1.0, 2.0, 3.0, 4.0]),  # constant
        ([[1.0, 2.0]], [1.0, 2.0]),  # no degree of freedom is left
        ([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 7.0, 9.0]], [1.0, 2.0, 2.0, 4.0, 3.0]),
    ],
)
def test_regression_says_when_the_data_do_not_fix_it(
    predictors: list[list[float]], target: list[float]
) -> None:
    assert regression(predictors, target) == [UNKNOWN] * len(predictors)


@pytest.mark.parametrize(
    ("over", "under", "p"),
    [
        (9, 4, 2 * (1 + 13 + 78 + 286 + 715) / 2**13),  # Benton's 13 long pairs
        (4, 9, 2 * (1 + 13 + 78 + 286 + 715) / 2**13),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_sign_test_by_hand(over: int, under: int, p: float) -> None:
    assert sign_test(over, under).p == pytest.approx(p, rel=1e-12)


def test_sign_test_of_many_does_not_overflow() -> None:
    test = sign_test(1100, 900)
    logs = [math.lgamma(2001) - math.lgamma(k + 1) - math.lgamma(2001 - k) for k in range(901)]
    expected = 2 * sum(math.exp(log - 2000 * math.log(2)) for log in logs)
    assert test.p == pytest.approx(expected, rel=1e-9)
    assert test.smallest < 1e-300


def exact_fisher(hits: int, count: int, others: int, other_count: int) -> tuple[Fraction, Fraction]:
    total = math.comb(count + other_count, hits + others)
    chances = {
        k: Fraction(math.comb(count, k) * math.comb(other_count, hits + others - k), total)
        for k in range(count + 1)
        if 0 <= hits + others - k <= other_count
    }
    least = min(chances.values())
    return tuple(  # type: ignore[return-value]
        sum((c for c in chances.values() if c <= limit), Fraction(0))
        for limit in (chances[hits], least)
    )


def test_fisher_test_is_the_sum_over_tables() -> None:
    for count, other_count in ((1, 1), (3, 5), (7, 4), (6, 6)):
        for hits, others in product(range(count + 1), range(other_count + 1)):
            p, smallest = exact_fisher(hits, count, others, other_count)
            test = fisher_test(hits, count, others, other_count)
            assert test.p == pytest.approx(float(p), rel=1e-9)
            assert test.smallest == pytest.approx(float(smallest), rel=1e-9)


def test_fisher_test_of_tea_by_hand() -> None:
    # Three of four cups: 16/70 + 1/70 on either side.
    assert fisher_test(3, 4, 1, 4).p == pytest.approx(34 / 70)
    assert fisher_test(4, 4, 0, 4).p == pytest.approx(2 / 70)


def test_fisher_test_of_many() -> None:
    p, _ = exact_fisher(90, 300, 640, 3000)
    assert fisher_test(90, 300, 640, 3000).p == pytest.approx(float(p), rel=1e-6)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_exact_tests_are_probabilities(a: int, b: int, c: int, d: int) -> None:
    for test in (sign_test(a, b), fisher_test(a, a + b, c, c + d)):
        assert 0 <= test.smallest <= test.p * (1 + 1e-9) <= 1 + 1e-9
    swapped = fisher_test(c, c + d, a, a + b)
    assert fisher_test(a, a + b, c, c + d).p == pytest.approx(swapped.p, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "error", "counts", "verdict"),
    [
        (0.3, 0.1, (10, 50), Verdict.HIGHER),
        (-0.3, 0.1, (50, 10), Verdict.LOWER),
        (0.19, 0.1, (50, 50), Verdict.NOISE),
        (0.0, 0.0, (50, 50), Verdict.NOISE),
        (3.0, 0.1, (9, 50), Verdict.TOO_FEW),
        (3.0, 0.1, (50, 9), Verdict.TOO_FEW),
        (3.0, math.nan, (50, 50), Verdict.TOO_FEW),
        (math.nan, 0.1, (50, 50), Verdict.TOO_FEW),
        (0.5, math.inf, (50, 50), Verdict.TOO_FEW),
    ],
)
def test_judge(value: float, error: float, counts: tuple[int, int], verdict: Verdict) -> None:
    assert judge(Estimate(value, error), *counts) is verdict


@pytest.mark.parametrize(
    ("over", "under", "verdict"),
    [
        (9, 4, Verdict.NOISE),  # what Benton's rule found
        (5, 0, Verdict.TOO_FEW),  # no outcome of five has p < 0.05
        (6, 0, Verdict.HIGHER),
        (0, 6, Verdict.LOWER),
        (0, 0, Verdict.TOO_FEW),
    ],
)
def test_judge_exact(over: int, under: int, verdict: Verdict) -> None:
    assert judge_exact(sign_test(over, under), over - under) is verdict


def test_a_group_without_a_rest_is_too_few() -> None:
    assert judge_exact(fisher_test(3, 10, 0, 0), math.nan) is Verdict.TOO_FEW


def test_texts() -> None:
    assert Estimate(-0.125, 0.0625).text("{:+.3f}") == "-0.125 ± 0.062"
    assert Estimate(0.5, math.inf).text("{:.1f}") == "0.5"
    assert sign_test(9, 4).text == "0.267"
    assert sign_test(30, 0).text == "< 0.001"
