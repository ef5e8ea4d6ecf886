"""Differences by seed against sums written out here, and pairs that are none against refusals."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from benchmarks.multitask_bert.claims.paired import Difference, difference_of
from benchmarks.multitask_bert.significance import Verdict
from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    METRICS,
    finding,
    section_of,
    write_run,
    write_seeds,
)

T_OF_TWO = 4.302653  # Student's t at 5 %, two degrees of freedom, from a printed table
NORMAL = 1.959964
SIZES = {"sst": 40, "quora": 20212, "sts": 863}


def measured(root: Path, metric: str = "sts") -> Difference:
    rows = {row.recipe_id: row for row in section_of(root).rows}
    found = difference_of(metric, rows[CJ_GS], rows[CJ])
    assert found is not None
    return found


def test_seeds_that_go_together_leave_a_narrow_interval(tmp_path: Path) -> None:
    """The seeds lie 0.3 apart in both rows, and their differences hardly at all."""
    theirs = [0.40, 0.55, 0.70]
    gains = [0.050, 0.054, 0.046]
    write_seeds(tmp_path, CJ_GS, "sts", [a + b for a, b in zip(theirs, gains, strict=True)])
    write_seeds(tmp_path, CJ, "sts", theirs)
    found = measured(tmp_path)
    assert found.paired is not None
    assert found.by_seed == pytest.approx(gains)
    # No predictions are on record: the examples' error is that of two independent correlations.
    dev = [(1 - r**2) / math.sqrt(862) for r in (0.60, 0.55)]
    seeds = statistics.stdev(gains) / math.sqrt(3)
    assert found.paired.value == pytest.approx(0.05)
    assert found.paired.reach == pytest.approx(
        math.hypot(T_OF_TWO * seeds, *(NORMAL * error for error in dev)), rel=1e-3
    )
    apart = [statistics.stdev(v) / math.sqrt(3) for v in (theirs, [0.45, 0.604, 0.746])]
    assert found.unpaired.value == pytest.approx(0.05)
    assert found.unpaired.reach == pytest.approx(
        math.hypot(*(T_OF_TWO * e for e in apart), *(NORMAL * e for e in dev)), rel=1e-3
    )
    assert found.unpaired.reach > 5 * found.paired.reach


def write_answers(root: Path, id: str, seed: int, num_wrong: int) -> None:
    """Make up a run that has the first SST examples wrong, and all else right."""
    sst = [(str(i), float(i % 2 + (i < num_wrong)), float(i % 2)) for i in range(40)]
    metrics = {**METRICS, "sst": 1 - num_wrong / 40}
    write_run(root, id, seed, metrics=metrics, predictions={"sst": sst}, sizes=SIZES)


def test_examples_are_paired_where_they_are_on_record(tmp_path: Path) -> None:
    for seed in range(3):
        write_answers(tmp_path, CJ_GS, seed, num_wrong=5)
        write_answers(tmp_path, CJ, seed, num_wrong=9)
    found = measured(tmp_path, "sst")
    # Four of forty examples are won and none is lost, in every seed.
    each = [1.0] * 4 + [0.0] * 36
    error = statistics.stdev(each) / math.sqrt(40)
    assert found.paired is not None
    assert found.paired.value == pytest.approx(0.1)
    assert found.paired.reach == pytest.approx(NORMAL * error, rel=1e-3)
    assert found.paired.verdict is Verdict.HIGHER


def test_only_seeds_of_both_rows_are_paired(tmp_path: Path) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", [0.5, 0.6, 0.7])
    for seed, value in ((1, 0.5), (2, 0.55), (7, 0.1)):
        write_run(tmp_path, CJ, seed, metrics={**METRICS, "sts": value})
    found = measured(tmp_path)
    assert found.by_seed == pytest.approx((0.1, 0.15))
    assert found.best is found.paired
    assert found.unpaired.value == pytest.approx(0.6 - 1.15 / 3)


def test_one_pair_decides_nothing(tmp_path: Path) -> None:
    for id, value in ((CJ_GS, 0.9), (CJ, 0.1)):
        write_run(tmp_path, id, metrics={**METRICS, "sts": value})
    found = measured(tmp_path)
    assert found.paired is not None
    assert math.isnan(found.paired.reach)
    assert found.paired.verdict is Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"version": "0.0.1"}, "version 0.0.1 and None"),
        ({"device": "cuda"}, "device cuda and cpu"),
        ({"num_processes": 2}, "num_processes 2 and 1"),
    ],
)
def test_runs_that_are_not_alike_are_no_pair(
    tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    for seed in range(3):
        odd = config if seed == 1 else {}
        write_run(tmp_path, CJ_GS, seed, metrics={**METRICS, "sts": 0.9}, **odd)
        write_run(tmp_path, CJ, seed)
    found = measured(tmp_path)
    assert found.refused == (f"seed 1: {reason}",)
    assert len(found.by_seed) == 2
    assert f"no pair is seed 1: {reason}" in finding(tmp_path, "C3").evidence


def test_other_examples_are_no_pair(tmp_path: Path) -> None:
    for id, first in ((CJ_GS, "a"), (CJ, "b")):
        sst = [(first, 0.0, 0.0), ("c", 1.0, 0.0)]
        write_run(tmp_path, id, predictions={"sst": sst}, sizes={"sst": 2, "quora": 5, "sts": 5})
    found = measured(tmp_path)
    assert found.paired is None
    assert found.refused == ("seed 0: other SST dev examples",)
    assert found.paired_text == "no seed in common"
