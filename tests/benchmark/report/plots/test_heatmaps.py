"""Heat maps of made-up events against mean cosines taken by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data
from benchmarks.multitask_bert.report.plots.heatmaps import draw_cosines, draw_layer_cosines
from tests.benchmark.records.made_up_runs import PCGRAD, write_events, write_run


def section_of(root: Path, **logged: Any) -> Section:
    """One run with two logged steps, each with half of what is given in lists."""
    halves = [{name: pick(value, at) for name, value in logged.items()} for at in (0, 1)]
    events = [{"event": "train", "step": 10 * i, **half} for i, half in enumerate(halves, start=1)]
    write_events(write_run(root, PCGRAD), events)
    (section,) = group_by_data(find_runs([root])[0])
    return section


def pick(value: Any, at: int) -> Any:
    if isinstance(value, dict):
        return {key: pick(each, at) for key, each in value.items()}
    return value[at]


def test_a_cell_is_the_mean_over_logged_steps_on_both_sides_of_the_diagonal(
    tmp_path: Path,
) -> None:
    cosines = {"sst~quora": [0.1, 0.3], "sst~sts": [-0.4, -0.2], "quora~sts": [0.0, 0.2]}
    section = section_of(tmp_path, cosines=cosines)
    figure = draw_cosines(section, section.rows)
    assert figure is not None
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["SST", "Quora", "STS"]
    (image,) = axis.get_images()
    nan = np.nan
    np.testing.assert_allclose(
        np.ma.filled(image.get_array(), nan),
        [[nan, 0.2, -0.3], [0.2, nan, 0.1], [-0.3, 0.1, nan]],
        atol=1e-12,
    )
    assert image.get_clim() == pytest.approx((-0.3, 0.3))  # the largest, the same on both sides


def test_layers_go_from_the_embeddings_to_the_pooler(tmp_path: Path) -> None:
    layers = {
        "pooler": {"sst~quora": [0.0, 0.04]},
        "layer 10": {"sst~quora": [0.04, 0.08]},
        "layer 9": {"quora~sst": [0.02, 0.02]},
        "embeddings": {"sst~quora": [-0.05, -0.07]},
    }
    section = section_of(tmp_path, layer_cosines=layers, cosines={"sst~quora": [0.0, 0.0]})
    figure = draw_layer_cosines(section, section.rows)
    assert figure is not None
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["embeddings", "layer 9", "layer 10", "pooler"]
    (image,) = axis.get_images()
    np.testing.assert_allclose(image.get_array(), [[-0.06], [0.02], [0.06], [0.02]], atol=1e-12)
    assert image.get_clim() == (-0.1, 0.1)  # no noise around 0 looks strong


def test_there_is_no_figure_of_pairs_that_no_step_names(tmp_path: Path) -> None:
    section = section_of(tmp_path, layer_cosines={"pooler": {"sst~quora": [0.1, 0.1]}})
    assert draw_layer_cosines(section, section.rows) is None


def test_there_is_no_figure_without_cosines(tmp_path: Path) -> None:
    section = section_of(tmp_path, cosines={"sst~quora": [None, None]})
    assert draw_cosines(section, section.rows) is None
    assert draw_layer_cosines(section, section.rows) is None
