"""The appendix against environments and commands of made-up runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.benchmark.records.made_up_runs import (
    LOSS_SUM,
    write_run,
)
from tests.benchmark.report.read_tables import row_of


def test_machine_versions_dates_and_commands_are_told(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM, 11711)
    text = markdown([tmp_path])
    for told in (
        "A processor with 2 threads",
        "no GPU",
        "torch 2.13.0",
        "Python 3.11.7",
        "at commit 0123abc",
        "2025-01-02T03:04:05+00:00",
        f"python -m benchmarks.multitask_bert run {LOSS_SUM} --out 'a b'",
        "lr = 1e-05",
        "pooling = cls",
    ):
        assert told in text
    assert row_of(text, f"`{LOSS_SUM}`")["seeds"] == "11711 │ single seed"
