"""Curves of made-up events against means and deviations taken by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data
from benchmarks.multitask_bert.report.plots.curves import (
    draw_conflict_rates,
    draw_learning_curves,
    draw_losses,
)
from tests.benchmark.records.made_up_runs import PCGRAD, write_events, write_run


def section_with(root: Path, *events_of_seeds: Sequence[dict[str, Any]]) -> Section:
    for seed, events in enumerate(events_of_seeds):
        write_events(write_run(root, PCGRAD, seed), events)
    (section,) = group_by_data(find_runs([root])[0])
    return section


def panels(figure: Any) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure.axes}


def test_dev_metrics_are_means_over_seeds_in_a_band_of_a_deviation(tmp_path: Path) -> None:
    section = section_with(
        tmp_path,
        *(
            [
                {"event": "dev", "step": step, "metrics": {"sst": sst, "quora": quora, "sts": 0.1}}
                for step in (10, 20)
            ]
            for sst, quora in ((0.2, 0.6), (0.4, 0.8))
        ),
    )
    shown = panels(draw_learning_curves(section, section.rows))
    assert list(shown) == ["SST", "Quora", "STS", "All tasks"]
    for title, mean in {"SST": 0.3, "Quora": 0.7, "STS": 0.1, "All tasks": 1.1 / 3}.items():
        line = shown[title].lines[0]
        assert list(line.get_xdata()) == [10, 20]
        assert list(line.get_ydata()) == pytest.approx([mean, mean])
    band = shown["SST"].collections[0].get_paths()[0].vertices[:, 1]
    deviation = (2 * 0.1**2) ** 0.5  # over n - 1
    assert (min(band), max(band)) == pytest.approx((0.3 - deviation, 0.3 + deviation))


def test_losses_are_drawn_as_they_are_below_their_moving_average(tmp_path: Path) -> None:
    losses = [float(step % 3) for step in range(50)]
    section = section_with(
        tmp_path,
        [
            {"event": "train", "step": 10 * i, "losses": {"sst": loss}}
            for i, loss in enumerate(losses)
        ],
    )
    shown = panels(draw_losses(section, section.rows))
    assert list(shown) == ["SST"]
    thin, thick = shown["SST"].lines
    assert list(thin.get_ydata()) == losses
    # Of 50 points the window has two on either side, and what there is of them at the ends.
    smooth = thick.get_ydata()
    assert smooth[0] == pytest.approx(sum(losses[:3]) / 3)
    assert smooth[20] == pytest.approx(sum(losses[18:23]) / 5)
    assert smooth[-1] == pytest.approx(sum(losses[-3:]) / 3)


def test_conflict_rates_have_a_panel_for_each_pair_that_was_measured(tmp_path: Path) -> None:
    rates = {"sst~quora": 0.25, "sst~sts": 0.5}
    events = [{"event": "train", "step": step, "conflict_rate": rates} for step in (10, 20)]
    section = section_with(tmp_path, events)
    shown = panels(draw_conflict_rates(section, section.rows))
    heights = {title: list(axis.lines[0].get_ydata()) for title, axis in shown.items()}
    assert sorted(heights.values()) == [[0.25, 0.25], [0.5, 0.5]]


@pytest.mark.parametrize("draw", [draw_learning_curves, draw_losses, draw_conflict_rates])
def test_there_is_no_figure_of_what_was_not_logged(tmp_path: Path, draw: Any) -> None:
    section = section_with(tmp_path, [{"event": "end", "step": 10, "metrics": {}}])
    assert draw(section, section.rows) is None
