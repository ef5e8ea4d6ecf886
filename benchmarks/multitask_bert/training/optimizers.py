"""The optimizer of a stage: AdamW as the recipe has it, and the stage's method around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Recipe, Stage
from gradsurgery import MultiTaskOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def make_adamw(recipe: Recipe, stage: Stage, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Makes the optimizer that takes the combined gradient."""
    return torch.optim.AdamW(
        parameters,
        lr=stage.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def make_optimizer(
    stage: Stage,
    base: torch.optim.Optimizer,
    tasks: tuple[str, ...],
    seed: int,
    process_group: ProcessGroup | None = None,
) -> MultiTaskOptimizer:
    """Puts the stage's method around an optimizer; a sum monitors conflicts where tasks meet."""
    method = METHODS[stage.method]
    options: dict[str, Any] = {name: getattr(stage, name) for name in method.options}
    if method.is_surgery or method.weighs_losses:
        options["seed"] = seed
        options["warn"] = False  # published recipes have one task a step
    else:
        several = len(tasks) > 1 and stage.sampling.name == "joint"
        options["monitor"] = stage.monitored and several
    optimizer: MultiTaskOptimizer = method.make(
        base, tasks=tasks, process_group=process_group, **options, **stage.method_options
    )
    return optimizer
