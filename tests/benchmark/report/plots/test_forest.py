"""The drawn differences against those that were put into made-up runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data
from benchmarks.multitask_bert.report.differences import compare_twins
from benchmarks.multitask_bert.report.plots.forest import draw_differences
from tests.benchmark.records.made_up_runs import LOSS_SUM, METRICS, PCGRAD, write_run


def section_of(root: Path) -> Section:
    (section,) = group_by_data(find_runs([root])[0])
    return section


def test_a_line_for_each_pair_and_a_panel_for_each_metric(tmp_path: Path) -> None:
    for seed, gain in enumerate((0.02, 0.03, 0.04)):
        write_run(tmp_path, LOSS_SUM, seed)
        metrics = {**METRICS, "sst": METRICS["sst"] + gain}
        write_run(tmp_path, PCGRAD, seed, metrics=metrics)
    section = section_of(tmp_path)
    figure = draw_differences(section, section.rows)
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["mean", "SST accuracy", "Quora accuracy", "STS Pearson r"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"PCGrad less loss sum ({PCGRAD})"]
    (compared,) = compare_twins(section, section.rows)
    for axis, metric in zip(figure.axes, ("mean", "sst"), strict=False):
        found = compared.by_metric[metric]
        unpaired, paired = axis.containers
        assert paired.lines[0].get_xdata() == pytest.approx([found.best.value])
        for drawn, expected in ((paired, found.best), (unpaired, found.unpaired)):
            ((low, _), (high, _)) = drawn.lines[2][0].get_segments()[0]
            assert low == pytest.approx(expected.value - expected.reach)
            assert high == pytest.approx(expected.value + expected.reach)
    low, high = figure.axes[1].get_xlim()
    assert low == -high < -0.03


def test_nothing_to_compare_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM)
    section = section_of(tmp_path)
    assert draw_differences(section, section.rows) is None
