"""Remarks against the faults put into made-up runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.benchmark.records.made_up_runs import (
    COSINE_PCGRAD,
    LOSS_SUM,
    METRICS,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import row_of


def test_unfinished_runs_are_marked_and_not_mixed_with_complete_ones(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM, 0)
    write_run(
        tmp_path, LOSS_SUM, 1, finished=False, num_steps=250, metrics=dict.fromkeys(METRICS, 0.1)
    )
    write_run(tmp_path, PCGRAD, 7, finished=False, num_steps=120)
    text = markdown([tmp_path])
    row = row_of(text, f"`{LOSS_SUM}`")
    assert row["seeds"] == "0; not counted: 1 (unfinished, step 250) │ single seed"
    assert row["SST accuracy"] == "0.430 (1 seed) │ -"
    row = row_of(text, f"`{PCGRAD}`")
    assert row["seeds"] == "7 (unfinished, step 120) │ single seed"
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.500 │ -0.070"
    assert row["samples/s (training / evaluation)"] == "32 / 75"


def test_a_damaged_line_is_named(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[5] = lines[5][:20]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert f"`{folder}`: 1 damaged line of metrics.jsonl left out." in markdown([tmp_path])


def test_degenerate_predictions_are_marked(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, COSINE_PCGRAD)
    (folder / "predictions").mkdir()
    for task, rows in {
        "quora": ("a,1,0", "b,1,1"),
        "sst": ("a,1,0", "b,2,2"),
        "sts": ("a",),
    }.items():
        text = "\n".join(["id,prediction,label", *rows])
        (folder / f"predictions/{task}-dev.csv").write_text(text)
    text = markdown([tmp_path])
    row = row_of(text, f"`{COSINE_PCGRAD}`")
    assert row["Quora accuracy"] == "0.800 (1 seed) † │ 0.375 │ +0.425"
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.518 │ -0.088"
    assert row["STS Pearson r"] == "0.830 (1 seed) │ 0.171 │ +0.659"
    assert (
        f"† Degenerate: the Quora predictions of `{COSINE_PCGRAD}` are all one value or not "
        "finite." in text
    )
    write_run(tmp_path, COSINE_PCGRAD, 1)
    assert f"the Quora predictions of `{COSINE_PCGRAD}` (seed 0) are all" in markdown([tmp_path])


def test_what_a_run_said_of_its_predictions_outlives_them(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    """A record without predictions/, such as one that was put under version control."""
    path = write_run(tmp_path, COSINE_PCGRAD) / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    best = [event for event in events if event.get("best")]
    best[0]["degenerate"], best[-1]["degenerate"] = ["sts"], ["quora"]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    row = row_of(markdown([tmp_path]), f"`{COSINE_PCGRAD}`")
    assert "†" in row["Quora accuracy"]
    assert "†" not in row["SST accuracy"] + row["STS Pearson r"]


def test_a_seed_counts_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, finished=False, metrics=dict.fromkeys(METRICS, 0.9))
    folder = write_run(tmp_path / "b", LOSS_SUM, 0)
    again = write_run(tmp_path / "c", LOSS_SUM, 0, metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path / "a", tmp_path / "b", tmp_path / "c", folder], tmp_path / "out")
    assert row_of(text, f"`{LOSS_SUM}`")["SST accuracy"] == "0.430 (1 seed) │ -"
    assert f"Not counted: `{again}` (its seed is there twice)." in text
