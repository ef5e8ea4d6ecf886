"""Runs against plain loops, and against their own repetition."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training.loop import Training, run
from benchmarks.multitask_bert.training.stage import Steps
from tests.benchmark.training.small_runs import (
    TASKS,
    TOKENIZED,
    assert_same,
    by_hand,
    events_of,
    make_plan,
    make_recipe,
    make_stage,
    outcome,
    steps_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


@pytest.mark.parametrize("method", ["loss-sum", "pcgrad"])
def test_losses_fall(tmp_path, method):
    recipe = make_recipe(make_stage(method, epochs=8), encoder_dropout=0.0, head_dropout=0.0)
    assert run(make_plan(tmp_path, recipe))
    losses = [event["losses"] for event in events_of(tmp_path, "train")]
    assert [set(each) for each in losses] == [set(TASKS)] * len(losses)
    for task, share in (("sst", 0.8), ("quora", 0.9), ("sts", 0.5)):
        last = sum(each[task] for each in losses[-3:]) / 3
        assert last < share * losses[0][task], task


@pytest.mark.parametrize(("weight_decay", "grad_clip"), [(0.0, None), (0.1, 0.5)])
def test_loss_sum_is_a_plain_loop(tmp_path, monkeypatch, weight_decay, grad_clip):
    """Sum of the losses and AdamW, step by step on the same batches: equal to the last bit."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = make_recipe(make_stage("loss-sum"), weight_decay=weight_decay, grad_clip=grad_clip)
    assert run(make_plan(tmp_path, recipe))
    training = Training(make_plan(tmp_path / "by hand", recipe))
    model = training.model
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=2e-3,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=weight_decay,
        fused=True,  # the same formula, other roundings than unfused
    )
    losses = []
    for epoch in range(2):  # between them the run evaluates, which draws no random number
        for step in steps_of(training, epoch):
            optimizer.zero_grad()
            found = {}
            for task, batch in step:
                loss = by_hand(model(batch), batch.labels, task)
                loss.backward()  # gradients add up: that of the sum
                found[task] = loss.item()
            if grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            optimizer.step()
            losses.append(found)
    assert [event["losses"] for event in events_of(tmp_path, "train")] == losses
    assert_same(weights_of(tmp_path), model.state_dict())


def test_pcgrad_is_not_the_loss_sum(tmp_path):
    """Same start, same batches, and conflicts on the way: other weights."""
    for method in ("pcgrad", "loss-sum"):
        assert run(make_plan(tmp_path / method, make_recipe(make_stage(method))))
    rates = events_of(tmp_path / "pcgrad", "train")[-1]["conflict_rate"]
    assert set(rates) == {"sst~quora", "sst~sts", "quora~sts"}
    assert any(rate > 0 for rate in rates.values())
    surgery, plain = (weights_of(tmp_path / method) for method in ("pcgrad", "loss-sum"))
    name = "encoder.embeddings.word.weight"
    assert not torch.equal(surgery[name], plain[name])


def test_loss_sum_measures_conflicts_too(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(make_stage("loss-sum"))))
    for event in events_of(tmp_path, "train"):
        assert all(-1 <= cosine <= 1 for cosine in event["cosines"].values())
        assert all(0 <= rate <= 1 for rate in event["conflict_rate"].values())
        assert event["norm_after"] == pytest.approx(event["norm_before"], rel=1e-6)
        assert event["norms_after"] is None


@pytest.mark.parametrize("method", ["loss-sum", "pcgrad"])
def test_monitoring_changes_nothing_but_what_is_logged(tmp_path, method):
    for monitored in (True, False):
        recipe = make_recipe(make_stage(method, monitored=monitored))
        run(make_plan(tmp_path / str(monitored), recipe))
    watched, plain = (events_of(tmp_path / str(m), "train") for m in (True, False))
    assert [event["losses"] for event in watched] == [event["losses"] for event in plain]
    assert all(event["layer_cosines"] for event in watched)
    assert not any(event["layer_cosines"] for event in plain)
    # PCGrad has the Gram matrix anyway.
    assert all(bool(event["cosines"]) == (method == "pcgrad") for event in plain)


def test_gradients_are_told_apart_by_layer(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(make_stage("pcgrad"))))
    for event in events_of(tmp_path, "train"):
        layers = event["layer_cosines"]
        assert list(layers) == ["embeddings", "layer 1", "layer 2"]  # the mean needs no pooler
        assert all(set(layer) == set(event["cosines"]) for layer in layers.values())
        # The whole is a weighted mean of its parts.
        for pair, cosine in event["cosines"].items():
            parts = [abs(layer[pair]) for layer in layers.values()]
            assert abs(cosine) <= max(parts) + 1e-6
        assert all(event["norms_after"][t] <= event["norms"][t] * (1 + 1e-6) for t in TASKS)


def test_a_seed_decides_everything(tmp_path):
    recipe = make_recipe()
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        torch.manual_seed(hash(name))  # what was drawn before does not matter
        assert run(make_plan(tmp_path / name, recipe, seed=seed))
    first, again, other = (outcome(tmp_path / name) for name in ("first", "again", "other"))
    assert_same(again, first)
    assert other["model.safetensors"] != first["model.safetensors"]
    losses = [
        [event["losses"] for event in each["events"] if event["event"] == "train"]
        for each in (first, other)
    ]
    assert losses[0] != losses[1]


def drawn(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run of a method is shown: a digest of its first weights and of each batch, and noise.

    The noise is told by the random state before each step, of which dropout draws.
    """
    batches, noise = [], []
    take = Steps.take

    def look(steps: Steps, draws: Any, watched: Any = None) -> int:
        noise.append(digest([torch.get_rng_state()]))
        for task, batch in draws:
            batches.append((task, digest([batch.first.ids, batch.labels, batch.indices])))
        return take(steps, draws, watched)

    plan = make_plan(folder, make_recipe(make_stage(method)), max_steps=8)  # the second epoch
    weights = digest(Training(plan).model.state_dict().values())
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", look)
        assert run(plan)
    return {"weights": weights, "batches": batches, "noise": noise}


def digest(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def test_runs_of_a_seed_are_shown_the_same_whatever_the_method(tmp_path, monkeypatch):
    """Weights, batches and dropout of every method against the loss sum's, step by step."""
    expected = drawn(tmp_path / "sum", "loss-sum", monkeypatch)
    assert len(expected["batches"]) == len(TASKS) * len(expected["noise"]) == 3 * 8
    assert len(set(expected["batches"])) > 20
    for method in METHODS.keys() - {"none", "loss-sum"}:
        assert drawn(tmp_path / method, method, monkeypatch) == expected, method
    ends = {weights_of(path)["heads.sst.1.weight"].sum().item() for path in tmp_path.iterdir()}
    assert len(ends) > 1  # what they learn from it differs


def test_splits_tokenized_by_another_run_are_the_same(tmp_path):
    recipe = make_recipe()
    for name in ("own", "shared"):
        tokenized: dict[Any, Any] = {} if name == "own" else TOKENIZED
        assert run(make_plan(tmp_path / name, recipe, tokenized=tokenized))
    assert_same(outcome(tmp_path / "own"), outcome(tmp_path / "shared"))


@pytest.mark.parametrize("method", ["pcgrad", "loss-sum"])
def test_bf16(tmp_path, method):
    """Activations in bf16, weights in float32, losses near those of float32."""
    recipe = make_recipe(make_stage(method), encoder_dropout=0.0, head_dropout=0.0)
    for precision in ("fp32", "bf16"):
        assert run(make_plan(tmp_path / precision, recipe, precision=precision))
    losses = {}
    for precision in ("fp32", "bf16"):
        assert {x.dtype for x in weights_of(tmp_path / precision).values()} == {torch.float32}
        losses[precision] = events_of(tmp_path / precision, "train")[0]["losses"]
        assert all(math.isfinite(loss) for loss in losses[precision].values())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


@pytest.mark.parametrize("id", ["smet-walker/v1-dropout-0.3", "smet-walker/v3-cosine-pcgrad"])
def test_siamese_recipes_run(tmp_path, id):
    recipe = make_recipe(make_stage(), id=id)
    assert recipe.pairs["sts"] == "siamese-cos"
    assert run(make_plan(tmp_path, recipe, max_steps=4))
    assert Record(tmp_path).is_complete
