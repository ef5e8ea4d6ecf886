"""The checkpoint that is kept against scripted evaluations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.metrics import overall_mean, overall_normalised
from benchmarks.multitask_bert.recipes.recipe import (
    Sampling,
)
from benchmarks.multitask_bert.training import selection as selections
from benchmarks.multitask_bert.training.checkpoint import load_model
from benchmarks.multitask_bert.training.evaluate import Evaluation, evaluate
from benchmarks.multitask_bert.training.loop import Training, run
from tests.benchmark.training.small_runs import (
    CORPUS,
    CPU,
    NUM_DEV,
    TASKS,
    events_of,
    make_plan,
    make_recipe,
    make_stage,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


# Epoch -> metrics of a scripted evaluation. The best of the means is the first, of the normalised
# means the second, and of SST the third, which equals the fourth.
SCRIPT = (
    {"sst": 0.5, "quora": 0.5, "sts": 0.9},
    {"sst": 0.6, "quora": 0.6, "sts": 0.6},
    {"sst": 0.7, "quora": 0.3, "sts": 0.1},
    {"sst": 0.7, "quora": 0.2, "sts": -0.2},
)


@pytest.mark.parametrize(
    ("selection", "kept"),
    [("mean", 1), ("normalised", 2), ("last", 4), ("sst", 3), ("quora", 2), ("sts", 1)],
)
def test_selection(tmp_path, monkeypatch, selection, kept):
    weights: list[dict[str, Tensor]] = []  # at each evaluation

    def scripted(model, batches, device, precision, processes):
        (task,) = {batch.task for batch in batches}
        if task == TASKS[0]:
            weights.append({name: x.clone() for name, x in model.state_dict().items()})
        epoch = len(weights)
        return Evaluation([float(epoch)] * NUM_DEV, [1.0] * NUM_DEV, SCRIPT[epoch - 1][task], {})

    monkeypatch.setattr(selections, "evaluate", scripted)
    stage = make_stage(epochs=4, sampling=Sampling("joint", "batches", 1))
    recipe = make_recipe(stage, selection=selection)
    assert run(make_plan(tmp_path, recipe))
    (end,) = events_of(tmp_path, "end")
    assert end["best_epoch"] == kept
    assert end["metrics"] == SCRIPT[kept - 1]
    assert end["mean"] == pytest.approx(overall_mean(SCRIPT[kept - 1]))
    assert end["normalised"] == pytest.approx(overall_normalised(SCRIPT[kept - 1]))
    best = [event["epoch"] for event in events_of(tmp_path, "dev") if event["best"]]
    assert best[-1] == kept
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for number, each in enumerate(weights, start=1):
        is_kept = all(torch.equal(saved[name], each[name]) for name in each)
        assert is_kept == (number == kept)
    for task in TASKS:
        rows = (tmp_path / "predictions" / f"{task}-dev.csv").read_text().splitlines()[1:]
        assert {row.split(",")[1] for row in rows} == {str(kept)}


def test_the_checkpoint_gives_the_recorded_metrics(tmp_path):
    """What is on the disk, loaded into a new model, predicts what the record says."""
    recipe = make_recipe()
    assert run(make_plan(tmp_path, recipe))
    training = Training(make_plan(tmp_path / "new", recipe, seed=99))
    load_model(tmp_path / "model.safetensors", training.model)
    (end,) = events_of(tmp_path, "end")
    for task in TASKS:
        batches = evaluation_batches(training.splits[task, "dev"], selections.EVALUATION_BATCH)
        found = evaluate(training.model, batches, CPU, nullcontext)
        assert found.metric == end["metrics"][task]
        rows = (tmp_path / "predictions" / f"{task}-dev.csv").read_text().splitlines()[1:]
        examples = CORPUS.splits[task, "dev"].examples
        assert [row.split(",")[0] for row in rows] == [example.id for example in examples]
        assert [float(row.split(",")[2]) for row in rows] == [e.label for e in examples]
        predictions = [float(row.split(",")[1]) for row in rows]
        assert predictions == pytest.approx(found.predictions, rel=1e-5)
