"""Training above frozen layers against plain loops that go through all layers every time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.multitask_bert.model.kept import GIB, KeptOutputs
from benchmarks.multitask_bert.model.tiny import tiny_encoder
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError, Regulariser
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training.loop import Training, run
from benchmarks.multitask_bert.training.run_state import Parts
from tests.benchmark.training.small_runs import (
    TASKS,
    assert_same,
    by_hand,
    events_of,
    initial_weights,
    make_plan,
    make_recipe,
    make_stage,
    outcome,
    steps_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_intervals")

FROZEN = ("encoder.embeddings.", "encoder.layers.0.")


def frozen_recipe(*stages: Any, **fields: Any) -> Recipe:
    return make_recipe(*stages, frozen_layers=1, **fields)


def train_with(recipe: Recipe, folder: Any, *, keeps: bool) -> tuple[list[Any], dict[str, Any]]:
    """The losses of every step and the last weights, with and without kept outputs."""
    training = Training(make_plan(folder, recipe))
    if not keeps:
        training.model.kept = None
    training.begin(resume=False)
    assert training.finish(lambda: False)
    losses = [event["losses"] for event in events_of(folder, "train")]
    return losses, training.model.state_dict()


@pytest.mark.parametrize(
    "pairs", ["joint-sep", "joint-raw-ids", "siamese-cos", "siamese-dot", "siamese-concat"]
)
def test_kept_outputs_train_as_those_made_each_time(tmp_path, monkeypatch, pairs):
    """With dropout above, whose draws are the same; in float64, where roundings do not add up."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = override(frozen_recipe(make_stage(epochs=1)), [f"pairs.sts={pairs}"])[0]
    if pairs in ("siamese-cos", "siamese-dot"):
        head = replace(recipe.heads["sts"], layers=("dropout",), output=pairs[8:])
        recipe = replace(recipe, heads={**recipe.heads, "sts": head})
    elif pairs == "siamese-concat":
        assert recipe.heads["sts"].layers[-1] == "linear:out"
    torch.set_default_dtype(torch.float64)
    try:
        found, weights = train_with(recipe, tmp_path / "kept", keeps=True)
        expected, plain = train_with(recipe, tmp_path / "made", keeps=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == 7
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for name, value in plain.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)


def test_it_is_a_plain_loop_over_what_is_left(tmp_path, monkeypatch):
    """Of a model that knows of no frozen layers, whose lower ones are left alone by hand."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = make_recipe(make_stage("loss-sum", epochs=1), encoder_dropout=0.0)
    frozen = replace(recipe, frozen_layers=1)
    assert run(make_plan(tmp_path, frozen))
    training = Training(make_plan(tmp_path / "by hand", recipe))
    model = training.model
    upper = [p for name, p in model.named_parameters() if not name.startswith(FROZEN)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    optimizer = torch.optim.AdamW(upper, lr=2e-3, eps=1e-6, weight_decay=0.0, fused=True)
    losses = []
    for step in steps_of(training, 0):
        optimizer.zero_grad()
        found = {}
        for task, batch in step:
            loss = by_hand(model(batch), batch.labels, task)
            loss.backward()
            found[task] = loss.item()
        optimizer.step()
        losses.append(found)
    logged = [event["losses"] for event in events_of(tmp_path, "train")]
    assert len(logged) == len(losses) == 7
    for ours, theirs in zip(logged, losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in weights_of(tmp_path).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-5)


def test_frozen_layers_do_not_move_and_have_no_moments(tmp_path):
    """Not by weight decay, and not by an average of encoders either."""
    stages = (
        make_stage("loss-sum", epochs=1, tasks=("sst",), start="initial"),
        make_stage("loss-sum", epochs=1, tasks=("sts",), start="initial"),
        make_stage("loss-sum", epochs=1, tasks=("quora",), start="initial"),
        make_stage("pcgrad", epochs=1, start="average"),
    )
    recipe = frozen_recipe(*stages, weight_decay=0.1)
    plan = make_plan(tmp_path, recipe)
    assert run(plan)
    before, after = initial_weights(recipe), weights_of(tmp_path)
    for name in before:
        if not name.startswith("encoder.pooler."):  # which these recipes leave out
            assert torch.equal(before[name], after[name]) == name.startswith(FROZEN), name
    steps = Parts(plan).steps
    held = {id(p) for group in steps.optimizer.param_groups for p in group["params"]}
    parameters = dict(steps.model.named_parameters())
    assert held == {id(p) for name, p in parameters.items() if not name.startswith(FROZEN)}


def test_conflicts_are_told_layer_by_layer_above_the_frozen_ones(tmp_path):
    assert run(make_plan(tmp_path, frozen_recipe()))
    layers = list(Parts(make_plan(tmp_path, frozen_recipe())).layers())
    assert layers == ["layer 2", "pooler"]
    assert list(Parts(make_plan(tmp_path, make_recipe())).layers()) == [
        "embeddings",
        "layer 1",
        "layer 2",
        "pooler",
    ]


@pytest.mark.parametrize("max_bytes", [0, 20_000, GIB])
def test_a_bound_changes_no_bit(tmp_path, max_bytes):
    recipe = frozen_recipe()
    kept = KeptOutputs(max_bytes)
    assert run(make_plan(tmp_path / "bound", recipe, kept=kept))
    assert kept.num_bytes <= max_bytes
    assert (kept.num_bytes > 0) == (max_bytes > 0)
    assert run(make_plan(tmp_path / "free", recipe))
    assert_same(outcome(tmp_path / "bound"), outcome(tmp_path / "free"))


def test_runs_of_one_command_share_them_where_the_layers_are_the_same(tmp_path):
    made: list[int] = []

    def counting(recipe: Recipe) -> Any:
        encoder, tokenizer = tiny_encoder(recipe)
        inside = encoder.embeddings
        inside.register_forward_pre_hook(lambda *_: made.append(1))
        return encoder, tokenizer

    kept = KeptOutputs()
    recipe, other = frozen_recipe(), frozen_recipe(make_stage("loss-sum"))
    for folder, each, seed in (("a", recipe, 5), ("b", other, 5), ("c", recipe, 6)):
        made.clear()
        plan = make_plan(tmp_path / folder, each, seed=seed, kept=kept, make_encoder=counting)
        assert run(plan)
        # The small encoder is drawn from the seed, a checkpoint would be the same.
        assert bool(made) == (folder != "b"), folder
    assert run(make_plan(tmp_path / "alone", other))
    assert_same(outcome(tmp_path / "b"), outcome(tmp_path / "alone"))


@pytest.mark.parametrize("name", ["smart", "bregman"])
def test_regularisers(tmp_path, monkeypatch, name):
    """The noise of SMART goes in below the frozen layers; the past model has the same ones."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = frozen_recipe(make_stage(epochs=1), regularisers=(Regulariser(name),))
    torch.set_default_dtype(torch.float64)
    try:
        found, _ = train_with(recipe, tmp_path / "kept", keeps=True)
        expected, _ = train_with(recipe, tmp_path / "made", keeps=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_all_layers_below_heads_alone(tmp_path):
    """A probe of the encoder: its layers are gone through once for each input."""
    recipe = make_recipe(make_stage("loss-sum", trainable="heads"), frozen_layers=2)
    made: list[int] = []

    def counting(recipe: Recipe) -> Any:
        encoder, tokenizer = tiny_encoder(recipe)
        encoder.layers[1].register_forward_pre_hook(lambda *_: made.append(1))
        return encoder, tokenizer

    plan = make_plan(tmp_path, recipe, make_encoder=counting)
    assert run(plan)
    texts = set()
    for split in Training(make_plan(tmp_path / "other", recipe)).splits.values():
        for index in range(len(split)):
            texts.add(split.batch(torch.tensor([index])).first.ids.numpy().tobytes())
    assert len(made) == len(texts)


@pytest.mark.parametrize(
    ("number", "fields", "most", "remedy"),
    [
        (3, {"pooling": "pooler"}, 2, "freeze fewer"),
        (3, {"pooling": "mean"}, 1, "freeze fewer"),
        (2, {"pooling": "mean"}, 1, "set trainable=heads"),
    ],
)
def test_more_than_there_are_is_refused(tmp_path, number, fields, most, remedy):
    recipe = make_recipe(frozen_layers=number, **fields)
    rule = rf"frozen_layers must be from 0 to {most} for this encoder of 2 layers, got {number}; "
    with pytest.raises(RecipeError, match=rule + remedy):
        Training(make_plan(tmp_path, recipe))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "two", "null"])
def test_no_number_of_layers_is_refused(value):
    with pytest.raises(RecipeError, match="frozen_layers"):
        override(find("smet-walker/v2-dropout-0.3"), [f"frozen_layers={value}"])


def test_it_is_a_deviation_and_older_records_stay_as_they_are():
    original = find("smet-walker/v2-dropout-0.3")
    recipe, changes = override(original, ["frozen_layers=4"])
    assert changes == ["frozen_layers set to 4 (recipe: 0)"]
    assert recipe.to_dict()["frozen_layers"] == 4
    assert Recipe.from_dict(copy.deepcopy(recipe.to_dict())) == recipe
    assert "frozen_layers" not in original.to_dict()
    assert override(recipe, ["frozen_layers=0"])[0] == original


def test_what_is_kept_is_said(tmp_path):
    recipe = replace(frozen_recipe(), pairs={"quora": "joint-sep", "sts": "joint-raw-ids"})
    parts = Parts(make_plan(tmp_path, recipe, kept=KeptOutputs(1024)))
    tokens = sum(
        int(split.lengths.sum()) for (task, _), split in parts.splits.items() if task != "sts"
    )
    assert parts.about_kept() == (
        f"frozen layers: outputs of at most {tokens * 64 * 4 / GIB:.2g} GiB, kept in up to "
        "9.53674e-07 GiB; the others are made again whenever they are needed (--kept-memory); "
        "sts: made in every step, for joint-raw-ids"
    )
    assert Parts(make_plan(tmp_path, make_recipe())).about_kept() == ""
    assert set(TASKS) == {task for task, _ in parts.splits}
