"""The table of conflicts against numbers put into the logs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.multitask_bert.report.build import report
from tests.benchmark.records.made_up_runs import (
    LOSS_SUM,
    PCGRAD,
    write_events,
    write_run,
)
from tests.benchmark.report.read_tables import row_of


def test_conflict_table(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    events = [
        {
            "event": "train",
            "step": step,
            "cosines": {"sst~quora": c},
            "conflict_rate": {"sst~quora": r},
        }
        for step, c, r in [(1, 0.2, 0.0), (2, -0.4, 0.5), (3, math.nan, None), (4, -0.1, 0.75)]
    ]
    write_events(folder, events)
    text = markdown([tmp_path])
    row = row_of(text, f"`{PCGRAD}`", table=2)
    deviation = statistics.stdev([0.2, -0.4, -0.1])
    assert "| SST and Quora │ cosine │ in conflict |" in text
    assert row["cosine"] == f"-0.100 ± {deviation:.3f} │ 0.750"


def test_norms_before_and_after(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    norms = [{"sst": 3.0, "sts": 8.0}, {"sst": 4.0, "sts": 10.0}]
    after = [{"sst": 2.0, "sts": 8.0}, None]
    write_events(
        folder,
        [
            {
                "event": "train",
                "step": step,
                "cosines": {"sst~sts": -0.1},
                "norms": norms[step],
                "norms_after": after[step],
                "norm_before": 12.0,
                "norm_after": 11.0 + step,
            }
            for step in range(2)
        ],
    )
    text = markdown([tmp_path])
    (line,) = [line for line in text.splitlines() if "3.5 → 2" in line]
    assert [cell.strip() for cell in line.strip("|").split(" | ")] == [
        f"`{PCGRAD}`",
        "PCGrad",
        "-0.100 ± 0.000 │ -",
        "3.5 → 2",
        "9 → 8",
        "12 → 11.5",
    ]


def test_cosines_by_layer(tmp_path: Path) -> None:
    """The mean over steps and seeds, the layers in their order, against numbers by hand."""
    from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
    from benchmarks.multitask_bert.report.plots.heatmaps import draw_layer_cosines

    names = ["pooler", "layer 10", "embeddings", "layer 2"]
    for seed in range(2):
        folder = write_run(tmp_path, PCGRAD, seed)
        events = [
            {
                "event": "train",
                "step": step,
                "cosines": {"sst~quora": 0.0},
                "layer_cosines": {
                    name: {"quora~sst": 0.1 * number + 0.01 * step + 0.1 * seed}
                    for number, name in enumerate(names)
                },
            }
            for step in (0, 2)
        ]
        write_events(folder, events)
    (section,) = group_by_data(find_runs([tmp_path])[0])
    figure = draw_layer_cosines(section, section.rows)
    assert figure is not None
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "embeddings",
        "layer 2",
        "layer 10",
        "pooler",
    ]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["SST\nQuora"]
    expected = [[0.2], [0.3], [0.1], [0.0]]
    np.testing.assert_allclose(panel.images[0].get_array(), np.array(expected) + 0.01 + 0.05)
    assert "](plots/layer-cosines.svg)" in report([tmp_path]).markdown


def test_no_conflicts_on_record(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, conflicts=False)
    text = report([tmp_path]).markdown
    assert "None on record" in text
    assert not (tmp_path / "plots/cosines.svg").exists()
    assert not (tmp_path / "plots/conflict-rates.svg").exists()
    assert "cosines.svg" not in text
