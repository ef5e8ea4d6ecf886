"""Verdicts against those that the numbers and margins call for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.multitask_bert.claims.verdicts import (
    Each,
    Every,
    Measured,
    UntestedError,
    Within,
)
from benchmarks.multitask_bert.records.rows import Section
from benchmarks.multitask_bert.significance import Estimate
from tests.benchmark.claims.made_up_seeds import PCGRAD, finding, write_seeds

VERDICTS = {"supported", "contradicted", "inconclusive", "not tested"}


@pytest.mark.parametrize(
    ("sts", "verdict"),
    [(0.805, "supported"), (0.92, "contradicted"), (0.84, "inconclusive")],
)
def test_hardly_matters_means_an_interval_within_the_margin(
    sts: float, verdict: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    labels = random.uniform(0, 5, 863)
    noise = random.normal(size=863)
    ids = [f"a{i}" for i in range(863)]

    def rows(scale: float) -> list[tuple[str, float, float]]:
        values = labels + scale * noise
        return list(zip(ids, values.tolist(), labels.tolist(), strict=True))

    sst = [(f"b{i}", i % 5, (i % 2) * (i % 5)) for i in range(1101)]
    quora = [(f"c{i}", i % 2, i % 3 % 2) for i in range(20212)]
    for number, value in ((0, 0.80), (1, sts), (2, 0.80)):
        id = PCGRAD if number == 0 else f"smet-walker/v2-ll{number}-all"
        predictions = {"sst": sst, "quora": quora, "sts": rows(1.0 if value == 0.80 else 0.95)}
        spread = (-0.01, 0.01) if verdict == "inconclusive" else (0.0, 0.0)
        values = [value + each for each in spread]
        write_seeds(tmp_path, id, "sts", values, predictions=predictions)
    found = finding(tmp_path, "C17")
    assert found.verdict == verdict
    assert "claimed between -0.02 and 0.02" in found.evidence


@pytest.mark.parametrize(
    ("sts", "verdict"), [(0.95, "supported"), (0.81, "contradicted"), (0.90, "inconclusive")]
)
def test_by_far_means_more_than_the_margin(sts: float, verdict: str, tmp_path: Path) -> None:
    write_seeds(tmp_path, "jiang-yu/finetune-3", "sts", [sts] * 2)
    write_seeds(tmp_path, "jiang-yu/finetune-1", "sts", [0.80] * 2)
    assert finding(tmp_path, "C23").verdict == verdict


def measured(value: float | None, num_seeds: int = 3) -> Within:
    class Fixed:
        recipes = ("a",)

        def __call__(self, section: Section) -> Measured:
            if value is None:
                raise UntestedError("no such run")
            return Measured("gain", Estimate(value, 0.1), num_seeds)

    return Within(Fixed(), low=0.0)


GAIN, LOSS, NOISE, ABSENT, ALONE = (
    measured(1.0),
    measured(-1.0),
    measured(0.1),
    measured(None),
    measured(1.0, num_seeds=1),
)


@pytest.mark.parametrize(
    ("parts", "every", "each"),
    [
        ((GAIN, GAIN), "supported", "supported"),
        ((GAIN, NOISE), "inconclusive", "inconclusive"),
        ((GAIN, LOSS), "contradicted", "inconclusive"),
        ((LOSS, LOSS), "contradicted", "contradicted"),
        ((GAIN, ABSENT), "inconclusive", "supported"),
        ((LOSS, ABSENT), "contradicted", "contradicted"),
        ((ABSENT, ABSENT), "not tested", "not tested"),
        ((GAIN, ALONE), "inconclusive", "supported"),
        ((ALONE, ABSENT), "inconclusive", "inconclusive"),
    ],
)
def test_several_numbers_together(parts: tuple[Within, ...], every: str, each: str) -> None:
    section = Section("some/folder", "", ())
    assert Every(parts).outcome(section).verdict == every
    assert Each(parts).outcome(section).verdict == each
    assert {every, each} <= VERDICTS
