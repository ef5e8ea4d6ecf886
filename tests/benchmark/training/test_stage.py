"""The seeds of the tasks' orders against the numbers that the first records were made with."""

from __future__ import annotations

import pytest

from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.stage import shuffle_seed

SEEDS = {"sst": 46844, "quora": 46845, "sts": 46846, "cfimdb": 46847}


@pytest.mark.parametrize("task", TASKS)
def test_the_seeds_of_the_first_records(task):
    assert shuffle_seed(11711, task) == SEEDS[task]


def test_a_fifth_task_changes_no_seed_and_shares_none(monkeypatch):
    monkeypatch.setattr("benchmarks.multitask_bert.tasks.TASKS", {"mnli": None, **TASKS})
    assert {task: shuffle_seed(11711, task) for task in SEEDS} == SEEDS
    tasks = [*SEEDS, "mnli", "qnli"]
    seeds = {shuffle_seed(seed, task) for seed in (0, 1, 11711, 2**32 + 9) for task in tasks}
    assert len(seeds) == 4 * len(tasks)
    assert shuffle_seed(0, "mnli") == 33808749061095615687
