"""The confusion matrix and its metrics against counts and ratios worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.multitask_bert.errors.confusion import Confusion

LABELS = [0, 0, 0, 1, 1, 2, 4, 4]
PREDICTIONS = [0, 0, 1, 1, 4, 0, 4, 3]


@pytest.fixture
def confusion() -> Confusion:
    return Confusion.of(PREDICTIONS, LABELS, 5)


def test_counts(confusion: Confusion) -> None:
    expected = np.zeros((5, 5), dtype=int)
    expected[0, 0], expected[0, 1] = 2, 1
    expected[1, 1], expected[1, 4] = 1, 1
    expected[2, 0] = 1
    expected[4, 4], expected[4, 3] = 1, 1
    assert np.array_equal(confusion.counts, expected)
    assert confusion.num_labels.tolist() == [3, 2, 1, 0, 2]
    assert confusion.num_predictions.tolist() == [3, 2, 0, 1, 2]
    assert confusion.hits.tolist() == [2, 1, 0, 0, 1]


def test_metrics(confusion: Confusion) -> None:
    assert confusion.accuracy == 4 / 8
    assert confusion.off_by_one == 6 / 8
    assert confusion.f1 == pytest.approx([4 / 6, 2 / 4, 0.0, 0.0, 2 / 4])
    assert confusion.macro_f1 == pytest.approx((4 / 6 + 2 / 4 + 2 / 4) / 5)


def test_a_class_that_never_occurs_does_not_count() -> None:
    confusion = Confusion.of([0, 1], [0, 1], 3)
    assert math.isnan(confusion.f1[2])
    assert confusion.macro_f1 == 1.0


def test_best_constant(confusion: Confusion) -> None:
    assert confusion.best_constant(lambda c: c.accuracy) == 3 / 8
    # Class 1 is at most one off for labels 0, 1 and 2.
    assert confusion.best_constant(lambda c: c.off_by_one) == 6 / 8
    # Class 0 for all: F1 of 2 * 3 / (3 + 8), and 0 for the three other classes with a label.
    assert confusion.best_constant(lambda c: c.macro_f1) == pytest.approx(6 / 11 / 4)
