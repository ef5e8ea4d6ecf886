"""Bars of made-up runs against means taken by hand, and recipes against their twins."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
from benchmarks.multitask_bert.report.plots.bars import draw_methods
from tests.benchmark.records.made_up_runs import (
    COSINE,
    COSINE_PCGRAD,
    LOSS_SUM,
    PCGRAD,
    write_run,
)


def test_a_bar_is_the_mean_over_seeds_and_a_dot_one_of_them(tmp_path: Path) -> None:
    for seed, sst in enumerate((0.40, 0.50)):
        write_run(tmp_path, LOSS_SUM, seed, metrics={"sst": sst, "quora": 0.8, "sts": 0.6})
    (section,) = group_by_data(find_runs([tmp_path])[0])
    figure = draw_methods(section, section.rows)
    assert figure is not None
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_xticklabels()]
    heights = {name: bar.get_height() for name, bar in zip(names, axis.containers[0], strict=True)}
    assert heights["SST accuracy"] == pytest.approx(0.45)
    assert heights["mean"] == pytest.approx((0.45 + 0.8 + 0.6) / 3)
    dots = axis.collections[names.index("SST accuracy")].get_offsets()
    assert sorted(dots[:, 1]) == pytest.approx([0.40, 0.50])


def test_recipes_that_differ_in_their_method_stand_together_and_surgery_is_hatched(
    tmp_path: Path,
) -> None:
    for recipe in (LOSS_SUM, COSINE, PCGRAD, COSINE_PCGRAD):
        write_run(tmp_path, recipe)
    (section,) = group_by_data(find_runs([tmp_path])[0])
    figure = draw_methods(section, section.rows)
    assert figure is not None
    bars = sorted(figure.axes[0].containers, key=lambda bar: bar[0].get_x())
    hatched = {bar.get_label(): bool(bar[0].get_hatch()) for bar in bars}
    recipes = {row.label: row.runs[0].recipe["id"] for row in section.rows}
    order = [recipes[label] for label in hatched]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset({LOSS_SUM, PCGRAD}),
        frozenset({COSINE, COSINE_PCGRAD}),
    }
    assert {recipes[label] for label, is_hatched in hatched.items() if is_hatched} == {
        PCGRAD,
        COSINE_PCGRAD,
    }


def test_there_is_no_figure_without_a_metric(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM)
    (section,) = group_by_data(find_runs([tmp_path])[0])
    assert draw_methods(section, []) is None
