"""The gradients that AdamW gets against those of the options' definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import (
    Recipe,
)
from benchmarks.multitask_bert.training.loop import Training, run
from tests.benchmark.training.small_runs import (
    TASKS,
    assert_same,
    by_hand,
    initial_weights,
    make_plan,
    make_recipe,
    make_stage,
    steps_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


def gradients_of(recipe: Recipe, folder: Path) -> list[Tensor]:
    """The gradient of the whole model as AdamW gets it, in every step."""
    found: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if type(optimizer) is torch.optim.AdamW:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
            found.append(torch.cat([g.flatten() for g in grads if g is not None]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        assert run(make_plan(folder, recipe, max_steps=3))
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].weighs_losses])
def test_methods_that_weigh_losses_train_and_learn(tmp_path, method):
    training = Training(make_plan(tmp_path, make_recipe(make_stage(method)), max_steps=3))
    assert training.finish(lambda: False)
    diagnostics = training._parts.steps.optimizer.diagnostics
    assert diagnostics.num_surgeries == 3
    learned = {"uncertainty": "log_variance", "imtl-l": "log_scale", "famo": "logit"}
    if method in learned:
        assert diagnostics.numbers[learned[method]].all()


@pytest.mark.parametrize("method", ["pcgrad", "loss-sum"])
def test_the_combined_gradient_is_clipped(tmp_path, method):
    stage = make_stage(method)
    free = gradients_of(make_recipe(stage), tmp_path / "free")
    clipped = gradients_of(make_recipe(stage, grad_clip=0.01), tmp_path / "clipped")
    assert len(free) == len(clipped) == 3
    assert min(grad.norm() for grad in free) > 0.1
    assert [grad.norm().item() for grad in clipped] == pytest.approx([0.01] * 3, rel=1e-3)
    # In the first step the weights are equal still.
    torch.testing.assert_close(clipped[0] / clipped[0].norm(), free[0] / free[0].norm())


def test_a_high_limit_clips_nothing(tmp_path):
    for name, limit in (("none", None), ("high", 1e6)):
        assert run(make_plan(tmp_path / name, make_recipe(grad_clip=limit)))
    assert_same(weights_of(tmp_path / "high"), weights_of(tmp_path / "none"))


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_the_mean_is_the_sum_divided_by_the_tasks(tmp_path, scope):
    """On the encoder; a head has its gradient from one task."""
    grads = {}
    for reduction in ("sum", "mean"):
        recipe = make_recipe(make_stage(reduction=reduction, scope=scope))
        grads[reduction] = gradients_of(recipe, tmp_path / reduction)[0]
    weights = initial_weights(make_recipe())
    num_heads = sum(x.numel() for name, x in weights.items() if name.startswith("heads."))
    total, mean = (grads[reduction][:-num_heads] for reduction in ("sum", "mean"))
    assert total.norm() > 0.1
    torch.testing.assert_close(mean * len(TASKS), total)


def test_every_sample_of_the_same_weight(tmp_path):
    """The gradient of the sum over all samples, whichever task has how many of them."""
    sizes = {"sst": 8, "quora": 12, "sts": 4}
    calm = {"encoder_dropout": 0.0, "head_dropout": 0.0}
    recipe = make_recipe(make_stage("loss-sum", batch_size=sizes, weighting="sample"), **calm)
    training = Training(make_plan(tmp_path / "by hand", recipe))
    (step, *_) = steps_of(training, 0)
    for task, batch in step:
        assert len(batch) == sizes[task]
        # Times 3 tasks / 24 samples: a task of the average size keeps its mean.
        (by_hand(training.model(batch), batch.labels, task) * len(batch) * 3 / 24).backward()
    grads = [p.grad.flatten() for p in training.model.parameters() if p.grad is not None]
    found = gradients_of(recipe, tmp_path / "run")[0]
    torch.testing.assert_close(found, torch.cat(grads))


def test_scopes_differ(tmp_path):
    found = [
        gradients_of(make_recipe(make_stage(scope=scope)), tmp_path / scope)[0]
        for scope in ("shared", "all")
    ]
    assert not torch.allclose(*found)
