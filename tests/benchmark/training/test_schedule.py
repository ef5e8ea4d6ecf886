"""The steps of an epoch and of a run against counts by hand."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.recipe import (
    Sampling,
)
from benchmarks.multitask_bert.training import run_state as parts
from benchmarks.multitask_bert.training.checkpoint import load_state
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import (
    HEADS_FIRST,
    TASKS,
    events_of,
    initial_weights,
    make_plan,
    make_recipe,
    make_stage,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


STEPS = {
    ("joint", "smallest", None): (3, {"sst": 24, "quora": 24, "sts": 24}),
    ("joint", "largest", None): (7, {"sst": 56, "quora": 56, "sts": 56}),
    ("joint", "batches", 2): (2, {"sst": 16, "quora": 16, "sts": 16}),
    ("joint", "batches", 6): (6, {"sst": 48, "quora": 48, "sts": 48}),
    ("round-robin", "smallest", None): (9, {"sst": 24, "quora": 24, "sts": 24}),
    ("round-robin", "largest", None): (21, {"sst": 56, "quora": 56, "sts": 56}),
    ("round-robin", "batches", 4): (4, {"sst": 16, "quora": 8, "sts": 8}),
    ("proportional", "smallest", None): (9, None),
    ("proportional", "batches", 5): (5, None),
    ("annealed", "largest", None): (21, None),
    ("sequential", "smallest", None): (15, {"sst": 40, "quora": 56, "sts": 24}),
}


@pytest.mark.parametrize("sampling", STEPS, ids=lambda s: "-".join(str(x) for x in s if x))
def test_steps_of_an_epoch(tmp_path, sampling):
    num_steps, samples = STEPS[sampling]
    seen = dict.fromkeys(TASKS, 0)

    class Counting(MultiTaskModel):
        def forward(self, batch):
            if self.training:
                seen[batch.task] += len(batch)
            return super().forward(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MultiTaskModel", Counting)
        recipe = make_recipe(make_stage(sampling=Sampling(*sampling), epochs=1))
        assert run(make_plan(tmp_path, recipe))
    assert [event["step"] for event in events_of(tmp_path, "dev")] == [num_steps]
    if samples is None:
        assert sum(seen.values()) == 8 * num_steps
    else:
        assert seen == samples


def test_a_batch_that_is_not_full(tmp_path):
    """The last batch of a pass may be smaller, and its examples are counted."""
    stage = make_stage(
        epochs=1, sampling=Sampling("sequential"), batch_size={"sst": 12, "quora": 30, "sts": 24}
    )
    assert run(make_plan(tmp_path, make_recipe(stage)))
    (end,) = events_of(tmp_path, "end")
    assert end["step"] == 4 + 2 + 1
    state = load_state(tmp_path / "state" / "state.pt")
    assert state["progress"]["samples"] == 40 + 56 + 24


@pytest.mark.parametrize(
    ("max_steps", "epochs"), [(1, [1]), (5, [5]), (7, [7]), (9, [7, 9]), (14, [7, 14])]
)
def test_max_steps(tmp_path, max_steps, epochs):
    """Ends a run after so many steps, whatever the epochs, and with an evaluation."""
    assert run(make_plan(tmp_path, make_recipe(), max_steps=max_steps))
    assert [event["step"] for event in events_of(tmp_path, "dev")] == epochs
    (end,) = events_of(tmp_path, "end")
    assert (end["step"], end["epochs"]) == (max_steps, len(epochs))


def test_max_steps_beyond_the_recipe(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(), max_steps=1000))
    assert events_of(tmp_path, "end")[0]["step"] == 14


def test_max_steps_ends_the_stages_too(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(*HEADS_FIRST), max_steps=7))
    assert [(e["stage"], e["step"]) for e in events_of(tmp_path, "dev")] == [(0, 7)]


def test_max_steps_counts_over_the_stages(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(*HEADS_FIRST), max_steps=8))
    assert [(e["stage"], e["step"]) for e in events_of(tmp_path, "dev")] == [(0, 7), (1, 8)]


def test_no_epoch_at_all(tmp_path):
    """The untrained model is evaluated once."""
    recipe = make_recipe(make_stage(epochs=0))
    assert run(make_plan(tmp_path, recipe))
    (end,) = events_of(tmp_path, "end")
    assert end["step"] == 0
    assert set(end["metrics"]) == set(TASKS)
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    before = initial_weights(recipe)
    assert all(torch.equal(found[name], before[name]) for name in before)
