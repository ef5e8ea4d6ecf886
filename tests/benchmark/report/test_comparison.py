"""Marks of noise against standard errors worked out by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmark.records.made_up_runs import (
    METRICS,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import row_of


def test_noise_and_what_is_more(markdown: Callable[..., str], tmp_path: Path) -> None:
    """One seed of an accuracy of 0.53 on 1,101 examples has a standard error of 0.01504."""
    write_run(tmp_path, PCGRAD, metrics={**METRICS, "sst": 0.50 + 1.99 * 0.01504})
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")
    assert row["SST accuracy"] == "0.530 (1 seed) │ 0.500 │ ≈ +0.030"
    write_run(tmp_path / "more", PCGRAD, metrics={**METRICS, "sst": 0.50 + 2.1 * 0.01504})
    row = row_of(markdown([tmp_path / "more"]), f"`{PCGRAD}`")
    assert row["SST accuracy"] == "0.532 (1 seed) │ 0.500 │ +0.032"


def test_noise_of_an_overall_score_is_that_of_its_tasks(tmp_path: Path) -> None:
    from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
    from benchmarks.multitask_bert.report.comparison import compare

    values = (0.5, 0.52)
    for seed, value in enumerate(values):
        write_run(tmp_path, PCGRAD, seed, metrics={"sst": value, "quora": 0.8, "sts": 0.6})
    (section,) = group_by_data(find_runs([tmp_path])[0])
    (row,) = section.rows
    sst = math.sqrt(0.51 * 0.49 / 1101)
    quora = math.sqrt(0.8 * 0.2 / 20212)
    sts = (1 - 0.6**2) / math.sqrt(862)
    seeds = statistics.stdev(values) / math.sqrt(2)
    assert compare(section, row, "sst").standard_error == pytest.approx(math.hypot(seeds, sst))
    for column, share in (("mean", 1.0), ("normalised", 0.5)):
        expected = math.hypot(seeds, sst, quora, share * sts) / 3
        assert compare(section, row, column).standard_error == pytest.approx(expected)
