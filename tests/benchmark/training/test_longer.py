"""Runs that go on after their end, or are evaluated more often, against runs that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import (
    HEADS_FIRST,
    assert_same,
    events_of,
    make_plan,
    make_recipe,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_intervals")
RECIPES = {
    "one stage": make_recipe(),  # 7 steps an epoch, two epochs
    "two stages": make_recipe(*HEADS_FIRST),  # 7 steps of the heads, then 3 an epoch
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("first", [3, 7])  # within an epoch, and at the end of one
def test_a_run_that_goes_on_after_its_end_is_one_that_did_not_stop(tmp_path, name, first):
    recipe = RECIPES[name]
    short, long = ({"max_steps": n, "config": {"max_steps": n}} for n in (first, 12))
    assert run(make_plan(tmp_path / "a", recipe, **short))
    assert Record(tmp_path / "a").is_complete
    assert run(make_plan(tmp_path / "a", recipe, **long), resume=True)
    assert run(make_plan(tmp_path / "b", recipe, **long))
    assert_same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert Record(tmp_path / "a").read_json("config.json") == {"max_steps": 12}
    found, expected = (events_of(tmp_path / each, "dev") for each in "ab")
    assert [event["step"] for event in found if event["step"] != first] == [
        event["step"] for event in expected if event["step"] != first
    ]
    for one in expected:
        (same,) = (event for event in found if event["step"] == one["step"])
        assert {**same, "best": None} == {**one, "best": None}
    assert [event["event"] for event in Record(tmp_path / "a").events()].count("end") == 1
    assert (
        events_of(tmp_path / "a", "end")[0]["epochs"]
        == events_of(tmp_path / "b", "end")[0]["epochs"]
    )


def test_a_model_evaluated_within_epochs_is_trained_all_the_same(tmp_path):
    recipe = make_recipe()
    assert run(make_plan(tmp_path / "often", recipe, eval_every=3))
    assert run(make_plan(tmp_path / "rarely", recipe))
    assert_same(weights_of(tmp_path / "often"), weights_of(tmp_path / "rarely"))
    often, rarely = (events_of(tmp_path / each, "dev") for each in ("often", "rarely"))
    assert [event["step"] for event in often] == [3, 6, 7, 9, 12, 14]
    assert [event["epoch"] for event in often] == [1, 1, 1, 2, 2, 2]
    assert [{**e, "best": None} for e in often if e["step"] in (7, 14)] == [
        {**e, "best": None} for e in rarely
    ]
    best = max(often, key=lambda event: event["mean"])
    (end,) = events_of(tmp_path / "often", "end")
    assert end["metrics"] == best["metrics"]
    assert (end["epochs"], end["best_epoch"]) == (2, best["epoch"])


def test_the_last_model_is_that_of_the_last_step(tmp_path):
    recipe = replace(make_recipe(), selection="last")
    assert run(make_plan(tmp_path, recipe, eval_every=4, max_steps=10))
    assert_same(load_file(tmp_path / "model.safetensors"), dict(weights_of(tmp_path)))
    assert all(event["best"] for event in events_of(tmp_path, "dev"))
