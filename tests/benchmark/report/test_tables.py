"""Cells of the tables against means and deviations worked out by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmark.records.made_up_runs import (
    LOSS_SUM,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import row_of, tables_of


def test_cells_are_mean_and_deviation_beside_the_published_number(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    values = {"sst": [0.40, 0.43, 0.49], "quora": [0.80, 0.82, 0.81], "sts": [0.7, 0.8, 0.75]}
    for seed in range(3):
        write_run(tmp_path, PCGRAD, seed, metrics={task: v[seed] for task, v in values.items()})
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")

    def cell(numbers: Sequence[float], published: float) -> str:
        mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
        return f"{mean:.3f} ± {deviation:.3f} (3 seeds) │ {published:.3f} │ {mean - published:+.3f}"

    means = [sum(v[i] for v in values.values()) / 3 for i in range(3)]
    normalised = [
        (values["sst"][i] + values["quora"][i] + (values["sts"][i] + 1) / 2) / 3 for i in range(3)
    ]
    assert row["method"] == "PCGrad"
    assert row["seeds"] == "0, 1, 2"
    # Two standard errors: 2 * hypot(0.0458 / sqrt(3), 0.0150) of the seeds and 1,101 examples.
    assert row["SST accuracy"] == "0.440 ± 0.046 (3 seeds) │ 0.500 │ ≈ -0.060"
    assert row["Quora accuracy"] == cell(values["quora"], 0.853)
    assert row["STS Pearson r"] == cell(values["sts"], 0.864)
    assert row["mean"] == cell(means, 0.739)
    assert row["normalised"] == cell(normalised, (0.5 + 0.853 + (0.864 + 1) / 2) / 3)
    assert row["samples/s (training / evaluation)"] == "31 / 100"


def test_one_seed_and_a_system_without_published_number(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM)
    text = markdown([tmp_path])
    row = row_of(text, f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == "0.430 (1 seed) │ -"
    assert row["method"] == "loss sum"
    constant = row_of(text, "constant predictor")
    assert constant["SST accuracy"] == "0.260"
    assert constant["STS Pearson r"] == "0.000"
    assert constant["mean"] == f"{(0.26 + 0.62) / 3:.3f}"
    assert constant["normalised"] == f"{(0.26 + 0.62 + 0.5) / 3:.3f}"


def test_what_older_evaluations_printed(markdown: Callable[..., str], tmp_path: Path) -> None:
    assert "older evaluation" not in markdown([write_run(tmp_path / "old", PCGRAD)])
    for seed in range(2):
        folder = write_run(tmp_path / "new", PCGRAD, seed)
        *events, end = (folder / "metrics.jsonl").read_text().splitlines()
        sts = {"sigmoid": 0.7 + seed / 100, "integer-labels": 0.81, "both": 0.69}
        legacy = {"sts": sts, "quora": {"double-sigmoid": 0.375}}
        events.append(json.dumps({**json.loads(end), "legacy": legacy}))
        (folder / "metrics.jsonl").write_text("\n".join(events))
    text = markdown([tmp_path / "new"])
    assert "## As older evaluation code would have it" in text
    (line,) = [line for line in text.splitlines() if "0.705 ± 0.007" in line]
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    sts = ["0.830 ± 0.000", "0.705 ± 0.007", "0.810 ± 0.000", "0.690 ± 0.000", "0.864"]
    assert cells == [f"`{PCGRAD}`", *sts, "0.800 ± 0.000", "0.375 ± 0.000", "0.853"]


def test_a_scale_is_said_above_every_table(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD, scale=0.02)
    text = markdown([tmp_path])
    assert len(tables_of(text)) == 5
    assert text.count("**--scale 0.02**: the epochs of all rows are shortened") == 5
    write_run(tmp_path, LOSS_SUM)
    text = markdown([tmp_path])
    assert f"**--scale 0.02**: the epochs of `{PCGRAD}` are shortened by that factor." in text
