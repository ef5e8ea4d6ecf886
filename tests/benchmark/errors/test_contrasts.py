"""Groups against the rest: counts, means and rates worked out by hand, and simulated effects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.multitask_bert.errors.contrasts import (
    MEAN_HEADER,
    RATE_HEADER,
    Group,
    MeanContrast,
    RateContrast,
    bins,
)
from benchmarks.multitask_bert.significance import Verdict


def flags(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text])


def test_a_group_is_split_among_its_own() -> None:
    inside, outside = Group("", flags("xx..x"), flags("xxx..")).split()
    assert inside.tolist() == flags("xx...").tolist()
    assert outside.tolist() == flags("..x..").tolist()
    inside, outside = Group("", flags("xx..x")).split(also=flags(".xxxx"))
    assert inside.tolist() == flags(".x..x").tolist()
    assert outside.tolist() == flags("..xx.").tolist()


def test_mean_contrast_by_hand() -> None:
    errors = np.array([1.0, 3.0, 0.0, 0.0, 3.0])
    contrast = MeanContrast(errors, np.ones(5), flags("xx..."), flags("..xxx"))
    assert contrast.counts == (2, 3)
    assert (contrast.group.value, contrast.rest.value, contrast.plain.value) == (2.0, 1.0, 1.0)
    assert contrast.plain.error == pytest.approx(math.sqrt(1 + 1))
    # All labels are equal, so nothing is left to account for.
    assert contrast.at_equal_label.value == pytest.approx(1.0)
    assert contrast.verdict is Verdict.TOO_FEW
    assert len(contrast.cells("a title")) == len(MEAN_HEADER)


def test_scores_drawn_to_the_middle_are_no_effect_of_a_group_with_low_labels() -> None:
    random = np.random.default_rng(0)
    labels = random.uniform(0, 5, size=2000)
    group = labels + random.normal(size=2000) < 1.5
    errors = 0.5 * (2.5 - labels) + random.normal(scale=0.3, size=2000)
    contrast = MeanContrast(errors, labels, group, ~group)
    assert contrast.plain.value > 10 * contrast.plain.error
    assert contrast.verdict is Verdict.NOISE
    shifted = MeanContrast(errors + 0.2 * group, labels, group, ~group)
    assert shifted.at_equal_label.value == pytest.approx(0.2, abs=0.05)
    assert shifted.verdict is Verdict.HIGHER


def test_rate_contrast_by_hand() -> None:
    contrast = RateContrast.of(flags("xxx.x..."), flags("xxxx...."), flags("....xxxx"))
    assert (contrast.num_hits, contrast.count) == (3, 4)
    assert (contrast.num_others, contrast.other_count) == (1, 4)
    assert contrast.plain.value == 0.5
    assert contrast.test.p == pytest.approx(34 / 70)
    assert contrast.verdict is Verdict.NOISE
    assert len(contrast.cells("a title")) == len(RATE_HEADER)


def test_rate_contrast_of_an_empty_group() -> None:
    contrast = RateContrast(0, 0, 3, 10)
    assert contrast.verdict is Verdict.TOO_FEW
    assert contrast.cells("nobody")[1:3] == ["0", "-"]


def test_bins_hold_every_value_once() -> None:
    found = bins(np.array([0, 1, 2, 3, 4, 5, 80]), (0, 1, 2, 3, 5))
    assert [each.title for each in found] == ["0", "1", "2", "3 to 4", "5 or more"]
    assert [int(each.members.sum()) for each in found] == [1, 1, 1, 2, 2]
    assert np.array_equal(np.sum([each.members for each in found], axis=0), np.ones(7))


def test_bins_of_shares_are_closed_below() -> None:
    found = bins(np.array([0.0, 0.19, 0.2, 0.5, 1.0]), (0.0, 0.2, 0.5))
    assert [each.title for each in found] == ["0 to 0.2", "0.2 to 0.5", "0.5 or more"]
    assert [int(each.members.sum()) for each in found] == [2, 1, 2]
