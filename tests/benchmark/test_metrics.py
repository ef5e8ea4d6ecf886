"""The metrics against numpy, against values worked out by hand, and against published rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.multitask_bert.metrics import (
    accuracy,
    accuracy_standard_error,
    constant_metric,
    interval,
    is_degenerate,
    overall_mean,
    overall_normalised,
    pearson,
    pearson_standard_error,
)

SST_DEV_COUNTS = (139, 289, 229, 279, 165)
LABELS = [0.0, 1.5, 3.0, 5.0]


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 4], 0.75),
        ([1.0, 0.0], [1, 0], 1.0),
        ([1], [0], 0.0),
        ([math.nan, 1], [0, 1], 0.5),
    ],
)
def test_accuracy_by_hand(predictions: list[float], labels: list[float], expected: float) -> None:
    assert accuracy(predictions, labels) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_pearson_is_that_of_numpy(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=200)
    y = 0.3 * seed * x + random.normal(size=200) + 7.0
    expected = np.corrcoef(x, y)[0, 1]
    assert pearson(scale * x, y) == pytest.approx(expected, abs=1e-12)
    assert pearson(y, -scale * x) == pytest.approx(-expected, abs=1e-12)


def test_pearson_keeps_a_small_difference_on_a_large_offset() -> None:
    x = np.array([0.0, 1.0, 2.0, 4.0])
    expected = np.corrcoef(x, LABELS)[0, 1]
    assert pearson(1e6 + x, LABELS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "predictions",
    [
        [0.0] * 4,
        [0.1] * 4,
        [-2.7] * 4,
        [1e300] * 4,
        [1.0, 2.0, 3.0, math.nan],
        [1.0, 2.0, 3.0, math.inf],
        [1.0, 2.0, -math.inf, math.inf],
    ],
)
def test_pearson_is_zero_where_undefined(predictions: list[float]) -> None:
    assert pearson(predictions, LABELS) == 0.0
    assert pearson(LABELS, predictions) == 0.0


def test_pearson_of_one_example_is_zero() -> None:
    assert pearson([3.0], [4.0]) == 0.0


@settings(deadline=None)  # the machine may be busy
@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(
            *[st.lists(st.floats(width=64), min_size=n, max_size=n) for _ in range(2)]
        )
    )
)
def test_pearson_is_always_a_correlation(pair: tuple[list[float], list[float]]) -> None:
    assert -1.0 <= pearson(*pair) <= 1.0
    assert pearson(*pair) == pearson(*reversed(pair))


@pytest.mark.parametrize(
    ("metrics", "mean", "normalised"),
    [  # rows of Smet and Walker, with both scores worked out by hand
        ({"sst": 0.501, "quora": 0.831, "sts": 0.676}, 0.6693, 0.7233),
        ({"sst": 0.500, "quora": 0.853, "sts": 0.864}, 0.7390, 0.7617),
        ({"sst": 0.144, "quora": 0.547, "sts": -0.019}, 0.2240, 0.3938),
        ({"sst": 0.5}, 0.5, 0.5),
        ({"sts": 0.5}, 0.5, 0.75),
        ({"sst": 0.4, "cfimdb": 0.9}, 0.65, 0.65),
    ],
)
def test_overall_scores(metrics: dict[str, float], mean: float, normalised: float) -> None:
    assert overall_mean(metrics) == pytest.approx(mean, abs=5e-5)
    assert overall_normalised(metrics) == pytest.approx(normalised, abs=5e-5)


@pytest.mark.parametrize("overall", [overall_mean, overall_normalised])
@pytest.mark.parametrize(("metrics", "found"), [({}, "none"), ({"para": 0.5}, "'para'")])
def test_overall_refuses_what_it_does_not_know(
    overall: object, metrics: dict[str, float], found: str
) -> None:
    assert callable(overall)
    with pytest.raises(ValueError, match=f"metrics: must .* found {found}"):
        overall(metrics)


def test_constant_metric_is_the_best_constant() -> None:
    labels = np.repeat(np.arange(5), SST_DEV_COUNTS)
    best = max(accuracy(np.full(labels.size, label), labels) for label in range(5))
    assert constant_metric("classes", labels) == best
    assert best == pytest.approx(0.2625, abs=5e-5)
    assert constant_metric("binary", [1, 0, 0, 0]) == 0.75
    assert constant_metric("score", LABELS) == pearson([2.5] * 4, LABELS) == 0.0


@pytest.mark.parametrize(
    ("predictions", "kind", "expected"),
    [
        ([3, 3, 3], "classes", True),
        ([3, 3, 2], "classes", False),
        ([1, 1], "binary", True),
        ([0, 1], "binary", False),
        ([math.nan, 1.0], "binary", True),
        ([2.5, 2.5, 2.5], "score", True),
        ([2.5, 2.5 + 1e-4, 2.5 - 1e-4], "score", True),
        ([0.0, 0.0, 0.0], "score", True),
        ([2.4, 2.5, 2.6], "score", False),
        ([1e300, -1e300], "score", False),
        ([math.inf, 1.0], "score", True),
    ],
)
def test_is_degenerate(predictions: list[float], kind: str, expected: bool) -> None:
    assert is_degenerate(predictions, kind) is expected  # type: ignore[arg-type]


def test_accuracy_standard_error_is_that_of_a_mean() -> None:
    hits = np.repeat([1.0, 0.0], [430, 671])
    expected = hits.std() / math.sqrt(hits.size)
    assert accuracy_standard_error(430 / 1101, 1101) == pytest.approx(expected)
    assert accuracy_standard_error(1.0, 10) == 0.0


def test_pearson_standard_error_is_the_spread_over_samples() -> None:
    random = np.random.default_rng(0)
    x, noise = random.normal(size=(2, 4000, 200))
    y = 0.6 * x + 0.8 * noise
    spread = np.std([pearson(a, b) for a, b in zip(x, y, strict=True)])
    assert pearson_standard_error(0.6, 200) == pytest.approx(spread, rel=0.05)
    assert pearson_standard_error(0.6, 1) == math.inf


@pytest.mark.parametrize("metric", [accuracy, pearson])
@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1.0], [1.0, 2.0], r"predictions: must be one number for each label, .* \[1\] and \[2\]"),
        ([[1.0]], [[1.0]], r"predictions: must be one number for each label, .* \[1, 1\]"),
        ([], [], "labels: must not be empty, found 0"),
    ],
)
def test_lengths_are_checked(
    metric: object, predictions: list[float], labels: list[float], message: str
) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=message) as caught:
        metric(predictions, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 10), (450, 1101), (7, 7)])
def test_the_interval_of_an_accuracy_solves_wilsons_equation(hits: int, count: int) -> None:
    value = hits / count
    low, high = interval("accuracy", value, count)
    assert 0 <= low <= value <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        distance = abs(value - end) / math.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("metric", "truth"), [("accuracy", 0.3), ("pearson", 0.6)])
def test_an_interval_holds_the_truth_as_often_as_it_says(metric: str, truth: float) -> None:
    random = np.random.default_rng(0)
    held, count = [], 60
    for _ in range(2000):
        x = random.normal(size=count)
        y = truth * x + math.sqrt(1 - truth**2) * random.normal(size=count)
        hits = (random.random(count) < truth).mean()
        value = float(hits) if metric == "accuracy" else pearson(x, y)
        low, high = interval(metric, value, count)
        held.append(low <= truth <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_intervals_at_their_ends() -> None:
    assert interval("pearson", 0.5, 3) == (-1.0, 1.0)
    assert interval("pearson", 1.0, 30) == (1.0, 1.0)
    low, high = interval("pearson", 0.5, 28)  # artanh 0.5 is 0.5493061, and z / 5 is 0.3919928
    assert (low, high) == pytest.approx((math.tanh(0.1573133), math.tanh(0.9412989)), abs=1e-6)
