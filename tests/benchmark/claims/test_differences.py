"""Differences of made-up runs against what was put into them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.metrics import (
    accuracy_standard_error,
    pearson_standard_error,
)
from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    LOSS_SUM,
    METRICS,
    PCGRAD,
    SIZES,
    estimates,
    finding,
    write_run,
    write_seeds,
)


def unmonitored(recipe: dict[str, Any]) -> None:
    for stage in recipe["stages"]:
        stage["monitored"] = False


def test_a_difference_is_judged_by_its_error_over_seeds_and_examples(tmp_path: Path) -> None:
    ours, theirs = [0.40, 0.43, 0.46] * 2, [0.60, 0.61, 0.65] * 2
    write_seeds(tmp_path, CJ_GS, "sts", ours)
    write_seeds(tmp_path, CJ, "sts", theirs)
    found = finding(tmp_path, "C3")
    seeds = [statistics.stdev(v) / math.sqrt(6) for v in (ours, theirs)]
    pairs = statistics.stdev(a - b for a, b in zip(ours, theirs, strict=True)) / math.sqrt(6)
    dev = [pearson_standard_error(statistics.mean(v), 863) for v in (ours, theirs)]
    ((value, error),) = estimates(found.evidence)
    assert value == pytest.approx(statistics.mean(ours) - statistics.mean(theirs), abs=5e-4)
    assert error == pytest.approx(math.hypot(pairs, *dev), abs=5e-4)
    assert found.verdict == "supported"
    unpaired = f"-0.190 ± {math.hypot(*seeds, *dev):.3f}"
    assert (
        f"paired by 6 seeds; unpaired {unpaired}; 0.430 and 0.620; 6 seeds each; 1,000 steps;"
        in found.evidence
    )
    assert f"`{CJ_GS}` less `{CJ}`" in found.evidence
    assert found.source == "chada-jolly"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.70, 0.71], "contradicted"),
        ([0.60, 0.61], "inconclusive"),
        ([0.20, 0.90], "inconclusive"),
        ([0.40], "inconclusive"),
    ],
    ids=["the other way", "too close", "seeds too far apart", "one seed"],
)
def test_a_difference_that_is_not_as_claimed(
    ours: list[float], verdict: str, tmp_path: Path
) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", ours)
    write_seeds(tmp_path, CJ, "sts", [0.60, 0.61])
    found = finding(tmp_path, "C3")
    assert found.verdict == verdict
    assert ("a single seed" in found.evidence) == (len(ours) == 1)


def test_the_error_of_an_overall_score_is_that_of_its_parts(tmp_path: Path) -> None:
    for id, shift in ((PCGRAD, 0.1), (LOSS_SUM, 0.0)):
        for seed in range(2):
            write_run(tmp_path, id, seed, metrics={k: v + shift for k, v in METRICS.items()})
    found = finding(tmp_path, "C4")
    errors = [
        measure(METRICS[task] + shift, SIZES[task]) / 3
        for task, measure in (
            ("sst", accuracy_standard_error),
            ("quora", accuracy_standard_error),
            ("sts", pearson_standard_error),
        )
        for shift in (0.1, 0.0)
    ]
    assert estimates(found.evidence) == [(0.1, pytest.approx(math.hypot(*errors), abs=5e-4))]
    assert found.verdict == "supported"
    assert "not tested: needs complete runs of `jiang-yu/finetune-1`" in found.evidence


def test_time_needs_a_loss_sum_that_does_not_watch(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, seconds=150.0)
        write_run(tmp_path, CJ, seed, seconds=100.0)
    found = finding(tmp_path, "C5")
    assert found.verdict == "not tested"
    assert "--set monitored=false" in found.evidence
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, seconds=110.0, change=unmonitored)
        write_run(tmp_path, CJ, seed, seconds=100.0, change=unmonitored)
    found = finding(tmp_path, "C5")
    assert found.verdict == "contradicted"
    assert "1.10" in found.evidence


@pytest.mark.parametrize(
    ("seconds", "cpu", "verdict"),
    [
        ((150.0, 152.0), "a processor", "supported"),
        ((300.0, 304.0), "a processor", "contradicted"),
        ((150.0, 152.0), "another", "not tested"),
    ],
)
def test_time_on_one_machine(
    seconds: tuple[float, float], cpu: str, verdict: str, tmp_path: Path
) -> None:
    for seed in range(2):
        there = {"cpu": cpu}
        write_run(
            tmp_path, CJ_GS, seed, seconds=seconds[seed], environment=there, change=unmonitored
        )
        write_run(tmp_path, CJ, seed, seconds=100.0, change=unmonitored)
    found = finding(tmp_path, "C5")
    assert found.verdict == verdict
    assert ("different machines" in found.evidence) == (verdict == "not tested")
