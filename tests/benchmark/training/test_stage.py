"""Stages against what their recipe trains, and seeds against those of the first records."""

from __future__ import annotations

import pytest
import torch

from benchmarks.multitask_bert.tasks import TASKS as ALL_TASKS
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training.loop import Training, run
from benchmarks.multitask_bert.training.stage import shuffle_seed
from tests.benchmark.training.small_runs import (
    HEADS_FIRST,
    TASKS,
    by_hand,
    events_of,
    initial_weights,
    make_plan,
    make_recipe,
    make_stage,
    steps_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


def test_a_frozen_encoder_does_not_move(tmp_path):
    """Not by a gradient, and not by weight decay either."""
    recipe = make_recipe(make_stage(trainable="heads"), weight_decay=0.1)
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("encoder."), name


def test_the_encoder_moves_in_the_stage_after(tmp_path):
    recipe = make_recipe(*HEADS_FIRST)
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    assert not torch.equal(
        before["encoder.embeddings.word.weight"], after["encoder.embeddings.word.weight"]
    )
    events = events_of(tmp_path, "dev")
    assert [(e["stage"], e["epoch"], e["step"]) for e in events] == [
        (0, 1, 7),
        (1, 1, 10),
        (1, 2, 13),
    ]


def test_a_stage_of_some_tasks(tmp_path):
    """Their heads and the encoder learn, the others' heads stay, and all tasks are evaluated."""
    recipe = make_recipe(make_stage(tasks=("sts", "quora")))
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert {"sts", "quora", "embeddings"} <= moved
    assert "sst" not in moved
    assert set(events_of(tmp_path, "end")[0]["metrics"]) == set(TASKS)
    assert set(events_of(tmp_path, "train")[0]["losses"]) == {"sts", "quora"}


def test_the_losses_of_a_stage(tmp_path, monkeypatch):
    """A stage may train a task on another loss than the recipe's."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = make_recipe(make_stage(losses={"sts": "cosine-mse"}))
    assert run(make_plan(tmp_path, recipe, max_steps=1))
    training = Training(make_plan(tmp_path / "by hand", recipe))
    step = dict(next(steps_of(training, 0)))
    expected = {}
    for task in TASKS:  # in this order, for the dropout
        outputs, labels = training.model(step[task]), step[task].labels
        loss = (
            ((outputs - labels / 2.5 + 1) ** 2).mean()
            if task == "sts"
            else by_hand(outputs, labels, task)
        )
        expected[task] = loss.item()
    assert events_of(tmp_path, "train")[0]["losses"] == pytest.approx(expected, rel=1e-6)


SEEDS = {"sst": 46844, "quora": 46845, "sts": 46846, "cfimdb": 46847}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_seeds_of_the_first_records(task):
    assert shuffle_seed(11711, task) == SEEDS[task]


def test_a_fifth_task_changes_no_seed_and_shares_none(monkeypatch):
    monkeypatch.setattr("benchmarks.multitask_bert.tasks.TASKS", {"mnli": None, **ALL_TASKS})
    assert {task: shuffle_seed(11711, task) for task in SEEDS} == SEEDS
    tasks = [*SEEDS, "mnli", "qnli"]
    seeds = {shuffle_seed(seed, task) for seed in (0, 1, 11711, 2**32 + 9) for task in tasks}
    assert len(seeds) == 4 * len(tasks)
    assert shuffle_seed(0, "mnli") == 33808749061095615687
