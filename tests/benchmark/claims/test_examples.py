"""Errors over dev examples against those of paired differences by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.multitask_bert.claims.examples import contributions, difference_error
from benchmarks.multitask_bert.metrics import (
    accuracy_standard_error,
    pearson_standard_error,
)
from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    finding,
    section_of,
    write_run,
    write_seeds,
)


def test_errors_on_the_same_examples_are_paired(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 1101).astype(float)
    ours = np.where(random.random(1101) < 0.5, labels, (labels + 1) % 5)
    theirs = ours.copy()
    theirs[:33] = (labels[:33] + 2) % 5  # wrong where the first is right or as wrong
    ids = [f"a{i}" for i in range(1101)]
    for id, values in ((CJ_GS, ours), (CJ, theirs)):
        rows = list(zip(ids, values.tolist(), labels.tolist(), strict=True))
        write_run(tmp_path, id, predictions={"sst": rows})
    rows = {row.recipe_id: row for row in section_of(tmp_path).rows}
    lost = np.zeros(1101)
    lost[:33] = (ours == labels)[:33]
    expected = lost.std(ddof=1) / math.sqrt(1101)
    assert difference_error("sst", rows[CJ_GS], rows[CJ]) == pytest.approx(expected)
    independent = math.hypot(*[accuracy_standard_error(0.5, 1101)] * 2)
    assert expected < independent / 3
    assert difference_error("quora", rows[CJ_GS], rows[CJ]) == pytest.approx(
        math.hypot(*[accuracy_standard_error(0.8, 20212)] * 2)
    )


def test_contributions_have_the_standard_error_of_the_metric() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=20000)
    y = 0.8 * x + 0.6 * random.normal(size=20000)
    error = contributions("sts", x, y).std() / math.sqrt(20000)
    assert error == pytest.approx(pearson_standard_error(np.corrcoef(x, y)[0, 1], 20000), rel=0.05)
    right = (random.random(20000) < 0.3).astype(float)
    error = contributions("quora", right, np.ones(20000)).std() / math.sqrt(20000)
    assert error == pytest.approx(accuracy_standard_error(right.mean(), 20000))


def test_a_constant_prediction_decides_nothing(tmp_path: Path) -> None:
    rows = [(f"a{i}", 2.5, i % 5) for i in range(863)]
    write_seeds(tmp_path, CJ_GS, "sts", [0.0, 0.0], predictions={"sts": rows})
    write_seeds(tmp_path, CJ, "sts", [0.60, 0.61])
    found = finding(tmp_path, "C3")
    assert found.verdict == "inconclusive"
    assert "degenerate STS predictions" in found.evidence
