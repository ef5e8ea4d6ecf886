"""Plot files against those that the made-up runs call for."""

from __future__ import annotations

import math
from pathlib import Path

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

PLOTS = ("learning-curves", "training-losses", "conflict-rates", "cosines", "methods")


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_plots_are_written_and_linked(tmp_path: Path) -> None:
    for recipe in (LOSS_SUM, COSINE, PCGRAD, COSINE_PCGRAD):
        for seed in range(2):
            write_run(tmp_path / "runs", recipe, seed)
    text = report([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out/report.md").read_text(encoding="utf-8") == text
    assert sorted(path.stem for path in (tmp_path / "out/plots").iterdir()) == sorted(PLOTS)
    for name in PLOTS:
        assert f"](plots/{name}.png)" in text
        path = tmp_path / f"out/plots/{name}.png"
        assert min(png_size(path)) > 400
        assert path.stat().st_size > 20_000
    assert not (tmp_path / "runs/report.md").exists()


def test_each_source_of_data_has_plots_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", PCGRAD, num_steps=20, num_devs=1)
    write_run(tmp_path / "b", PCGRAD, num_steps=20, num_devs=1, data="synthetic")
    text = report([tmp_path])
    for path in ("plots/1-methods.png", "plots/2-methods.png"):
        assert f"]({path})" in text
        assert png_size(tmp_path / path)


def test_many_recipes_have_plots_for_each_report(tmp_path: Path) -> None:
    ids = [id for table in PUBLISHED["reports"]["smet-walker"]["tables"] for id in table["systems"]]
    for id in [*ids[:11], "xu/dense-tuned"]:
        write_run(tmp_path, id, num_steps=20, num_devs=1, conflicts=id == PCGRAD)
    (tmp_path / "plots").mkdir()
    stale = [tmp_path / "plots" / name for name in ("methods.png", "2-cosines--xu-1.png")]
    kept = tmp_path / "plots/errors.png"
    for path in (*stale, kept):
        path.write_text("")
    text = report([tmp_path])
    assert not any(path.exists() for path in stale)
    assert kept.exists()
    for slug in ("--smet-walker-1", "--smet-walker-2", "--xu-1"):
        assert f"](plots/learning-curves{slug}.png)" in text
        assert png_size(tmp_path / f"plots/learning-curves{slug}.png")
    assert len(list((tmp_path / "plots").glob("cosines*"))) == 1
    assert "<summary>Smet and Walker, 2 of 2</summary>" in text


def test_a_plot_without_data_is_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    report([tmp_path])
    assert (tmp_path / "plots/cosines.png").exists()
    write_events(folder, make_events(PCGRAD, 0, METRICS, 100, 1, conflicts=False, examples=None))
    report([tmp_path])
    assert not (tmp_path / "plots/cosines.png").exists()


def test_losses_and_cosines_that_diverged_are_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD, num_steps=30)
    broken = {
        "event": "train",
        "losses": {"sst": math.nan, "quora": math.inf, "sts": None},
        "cosines": {"sst~quora": math.nan},
        "conflict_rate": {"sst~quora": math.nan},
    }
    write_events(folder, [{**broken, "step": step} for step in (10, 20)])
    assert "- │" in row_of(report([tmp_path]), f"`{PCGRAD}`")["SST accuracy"]
    assert png_size(tmp_path / "plots/training-losses.png")


def test_one_task_and_one_dev_point(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, metrics={"sst": 0.4}, num_devs=1, num_steps=10)
    row = row_of(report([tmp_path]), f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == row["mean"] == row["normalised"] == "0.400 (1 seed) │ -"
    assert png_size(tmp_path / "plots/learning-curves.png")
