"""Recipes that cannot be run against the line that refuses each."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.tiny import tiny_encoder
from benchmarks.multitask_bert.recipes.recipe import (
    Recipe,
    RecipeError,
    Regulariser,
)
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import make_plan, make_recipe, make_stage

pytestmark = pytest.mark.usefixtures("short_intervals")


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (
            lambda: make_recipe(losses={"sst": "cross-entropy", "quora": "bce", "sts": "mnr"}),
            "losses.sts",
        ),
        (lambda: make_recipe(losses={"sst": "bce", "quora": "bce", "sts": "mse"}), "losses.sst"),
        (lambda: make_recipe(losses={"sst": "mse", "quora": "bce", "sts": "mse"}), "losses.sst"),
        (
            lambda: make_recipe(
                losses={"sst": "cross-entropy", "quora": "cross-entropy", "sts": "mse"}
            ),
            "losses.quora",
        ),
        (lambda: make_recipe(make_stage(losses={"sts": "mnr"})), "losses.sts"),
        (lambda: make_recipe(make_stage(), make_stage(losses={"sts": "mnr"})), "losses.sts"),
        (
            lambda: make_recipe(regularisers=(Regulariser("smart", {"strength": 1.0}),)),
            "regularisers",
        ),
        (
            lambda: make_recipe(pairs={"quora": "joint-sep", "sts": "siamese-cos"}),
            "heads.sts.output",
        ),
        (lambda: make_recipe(selection="cfimdb"), "selection"),
        (
            lambda: make_recipe(make_stage(trainable="heads"), id="smet-walker/v3-cosine-pcgrad"),
            "sts",  # whose head has nothing to train
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path, recipe, field):
    folder = tmp_path / "out" / "run"
    with pytest.raises(RecipeError, match=field) as refused:
        run(make_plan(folder, recipe()))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_inputs_longer_than_the_encoder_takes_are_refused_before_anything_is_written(tmp_path):
    def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
        _, tokenizer = tiny_encoder(recipe)
        config = EncoderConfig(tokenizer.get_vocab_size(), 8, 1, 2, 8, max_positions=10)
        return MinBert(config), tokenizer

    with pytest.raises(ValueError, match=r"max_length|max_positions"):
        run(make_plan(tmp_path / "run", make_recipe(), make_encoder=make_encoder))
    assert not (tmp_path / "run").exists()
