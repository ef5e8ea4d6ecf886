"""The files about a run against its recipe and machine."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.multitask_bert.recipes.recipe import (
    Recipe,
)
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import SAMPLED_SECOND, make_plan, make_recipe

pytestmark = pytest.mark.usefixtures("short_intervals")


def test_config_and_environment(tmp_path):
    recipe = make_recipe(*SAMPLED_SECOND, grad_clip=1.0)
    assert run(make_plan(tmp_path, recipe, max_steps=1))
    config = json.loads((tmp_path / "config.json").read_text())
    assert Recipe.from_dict(config["recipe"]) == recipe
    assert json.loads((tmp_path / "environment.json").read_text())["torch"] == torch.__version__
