"""Plot files against those that the made-up runs call for."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.multitask_bert.report.build import report
from tests.benchmark.records.made_up_runs import (
    COSINE,
    COSINE_PCGRAD,
    LOSS_SUM,
    METRICS,
    PCGRAD,
    make_events,
    write_events,
    write_run,
)
from tests.benchmark.report.read_tables import PUBLISHED, row_of

PLOTS = (
    "learning-curves",
    "training-losses",
    "conflict-rates",
    "cosines",
    "methods",
    "differences",
)


def svg_size(path: Path) -> tuple[float, float]:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    return width, height


def test_plots_are_written_and_linked(tmp_path: Path) -> None:
    for recipe in (LOSS_SUM, COSINE, PCGRAD, COSINE_PCGRAD):
        for seed in range(2):
            write_run(tmp_path / "runs", recipe, seed)
    text = report([tmp_path / "runs"], tmp_path / "out").markdown
    assert (tmp_path / "out/report.md").read_text(encoding="utf-8") == text
    assert sorted(path.stem for path in (tmp_path / "out/plots").iterdir()) == sorted(PLOTS)
    for name in PLOTS:
        assert f"](plots/{name}.svg)" in text
        path = tmp_path / f"out/plots/{name}.svg"
        assert min(svg_size(path)) > 200
        assert path.stat().st_size > 8_000
    assert not (tmp_path / "runs/report.md").exists()


def test_each_source_of_data_has_plots_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", PCGRAD, num_steps=20, num_devs=1)
    write_run(tmp_path / "b", PCGRAD, num_steps=20, num_devs=1, data="synthetic")
    text = report([tmp_path]).markdown
    for path in ("plots/1-methods.svg", "plots/2-methods.svg"):
        assert f"]({path})" in text
        assert svg_size(tmp_path / path)


def test_many_recipes_have_plots_for_each_report(tmp_path: Path) -> None:
    ids = [id for table in PUBLISHED["reports"]["smet-walker"]["tables"] for id in table["systems"]]
    for id in [*ids[:11], "xu/dense-tuned"]:
        write_run(tmp_path, id, num_steps=20, num_devs=2, conflicts=id == PCGRAD)
    (tmp_path / "plots").mkdir()
    stale = [tmp_path / "plots" / name for name in ("methods.png", "2-cosines--xu-1.svg")]
    kept = tmp_path / "plots/errors.svg"
    for path in (*stale, kept):
        path.write_text("")
    text = report([tmp_path]).markdown
    assert not any(path.exists() for path in stale)
    assert kept.exists()
    for slug in ("--smet-walker-1", "--smet-walker-2", "--xu-1"):
        assert f"](plots/learning-curves{slug}.svg)" in text
        assert svg_size(tmp_path / f"plots/learning-curves{slug}.svg")
    assert len(list((tmp_path / "plots").glob("cosines*"))) == 1
    assert "<summary>Smet and Walker, 2 of 2</summary>" in text


def test_a_plot_without_data_is_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    report([tmp_path])
    assert (tmp_path / "plots/cosines.svg").exists()
    write_events(folder, make_events(PCGRAD, 0, METRICS, 100, 1, conflicts=False, examples=None))
    report([tmp_path])
    assert not (tmp_path / "plots/cosines.svg").exists()


def test_losses_and_cosines_that_diverged_are_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD, num_steps=30)
    broken = {
        "event": "train",
        "losses": {"sst": math.nan, "quora": math.inf, "sts": None},
        "cosines": {"sst~quora": math.nan},
        "conflict_rate": {"sst~quora": math.nan},
    }
    write_events(folder, [{**broken, "step": step} for step in (10, 20)])
    assert "- │" in row_of(report([tmp_path]).markdown, f"`{PCGRAD}`")["SST accuracy"]
    assert svg_size(tmp_path / "plots/training-losses.svg")


def test_one_task_and_one_dev_point(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, metrics={"sst": 0.4}, num_devs=1, num_steps=10)
    row = row_of(report([tmp_path]).markdown, f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == row["mean"] == row["normalised"] == "0.400 (1 seed) │ -"
    # A point is no curve: neither the one evaluation nor the one logged step is drawn.
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"methods"}
