"""Lines that tell of a run without a terminal against the clock, and curves against events."""

from __future__ import annotations

import pytest

from benchmarks.multitask_bert.training import bar as bars
from benchmarks.multitask_bert.training.bar import Bar
from benchmarks.multitask_bert.training.board import Board, check_there_is_tensorboard, curves


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_line_now_and_then(monkeypatch, capsys, is_shown):
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    with Bar("recipe seed 1", 110, 10, is_shown=is_shown) as bar:
        for _ in range(50):
            now[0] += 1.0
            bar.update()
            bar.show({"sst": "1.500"})
    lines = capsys.readouterr().err.splitlines()
    assert lines == is_shown * [
        "recipe seed 1: step 20 of 110, sst 1.500, about 90 s of training left",
        "recipe seed 1: step 50 of 110, sst 1.500, about 60 s of training left",
    ]


TRAIN = {
    "event": "train",
    "step": 10,
    "losses": {"sst": 1.5, "sts": 2.5},
    "cosines": {"sst~sts": 0.25},
    "conflict_rate": None,
    "norms": {"sst": None},
}


def test_curves_of_events():
    expected = {"loss/sst": 1.5, "loss/sts": 2.5, "cosine/sst~sts": 0.25}
    assert dict(curves(TRAIN)) == expected
    assert not list(curves({"event": "end", "metrics": {"sst": 0.5}}))


def test_curves_of_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    board = Board(tmp_path)
    board.add({"event": "data"})
    board.add(TRAIN)
    board.add({"event": "dev", "step": 20, "metrics": {"sst": 0.5}, "mean": 0.5})
    found = event_accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == sorted(
        ["loss/sst", "loss/sts", "cosine/sst~sts", "dev/sst", "dev/mean"]
    )
    assert [(each.step, each.value) for each in found.Scalars("dev/sst")] == [(20, 0.5)]


def test_without_tensorboard_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr("benchmarks.multitask_bert.training.board.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        check_there_is_tensorboard()
