"""Events against the steps and losses of a run."""

from __future__ import annotations

import pytest

from benchmarks.multitask_bert.metrics import overall_mean, overall_normalised
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import (
    CORPUS,
    NUM_DEV,
    SIZES,
    TASKS,
    events_of,
    make_plan,
    make_recipe,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


def test_events(tmp_path):
    assert run(make_plan(tmp_path, make_recipe()))
    events = list(Record(tmp_path).events())
    kinds = [event["event"] for event in events]
    assert kinds == ["data"] * 6 + ["train", "dev"] + ["train"] * 2 + ["dev", "end"]
    for task in TASKS:
        part, dev = (e for e in events[:6] if e["task"] == task)
        assert (part["split"], part["examples"], part["skipped"]) == ("train", SIZES[task], 0)
        assert (dev["split"], dev["examples"], dev["skipped"]) == ("dev", NUM_DEV, 0)
        labels = [example.label for example in CORPUS.splits[task, "dev"].examples]
        most = max(labels.count(label) for label in labels) / len(labels)
        assert dev["constant_metric"] == pytest.approx(0 if task == "sts" else most)
    trained = [event for event in events if event["event"] == "train"]
    assert [(e["epoch"], e["step"], e["samples"]) for e in trained] == [
        (1, 4, 96),
        (2, 8, 192),
        (2, 12, 288),
    ]
    seconds = [event["seconds"] for event in events if "seconds" in event]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    for event in trained:
        assert event["norm_before"] > 0
        assert event["norm_after"] > 0
    for event in events:
        if event["event"] == "dev":
            assert event["eval_samples"] == 3 * NUM_DEV
            assert event["mean"] == pytest.approx(overall_mean(event["metrics"]))
            assert event["normalised"] == pytest.approx(overall_normalised(event["metrics"]))
    end = events[-1]
    assert end["samples_per_second"] == pytest.approx(14 * 24 / end["train_seconds"], rel=0.05)
    assert end["eval_samples_per_second"] > 0


def test_losses_of_an_event_are_means_since_the_last_one(tmp_path, monkeypatch):
    recipe = make_recipe()
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    assert run(make_plan(tmp_path / "each", recipe, max_steps=6))
    monkeypatch.setattr(train, "LOG_EVERY", 3)
    assert run(make_plan(tmp_path / "three", recipe, max_steps=6))
    each = [event["losses"] for event in events_of(tmp_path / "each", "train")]
    three = [event["losses"] for event in events_of(tmp_path / "three", "train")]
    for number, found in enumerate(three):
        for task in TASKS:
            steps = [losses[task] for losses in each[3 * number : 3 * number + 3]]
            assert found[task] == pytest.approx(sum(steps) / 3, rel=1e-6)
