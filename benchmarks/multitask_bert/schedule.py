"""What a stage trains with: its optimizer, its batches in order, the length of its epochs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.multitask_bert.batches import Batch, BatchLoader
from benchmarks.multitask_bert.recipe import Stage
from gradsurgery import (
    Annealed,
    LossSum,
    MultiTaskLoader,
    MultiTaskOptimizer,
    PCGrad,
    Proportional,
    RoundRobin,
    Sequential,
)


def make_optimizer(
    stage: Stage, base: torch.optim.Optimizer, tasks: tuple[str, ...], seed: int
) -> MultiTaskOptimizer:
    """The stage's method around an optimizer; a sum monitors conflicts where tasks meet."""
    if stage.method == "pcgrad":
        return PCGrad(
            base,
            tasks=tasks,
            reduction=stage.reduction,
            scope=stage.scope,
            seed=seed,
        )
    return LossSum(base, tasks=tasks, monitor=len(tasks) > 1 and stage.sampling.name == "joint")


def steps_per_epoch(stage: Stage, lengths: list[int]) -> int:
    """Optimizer steps an epoch, of the numbers of batches that the tasks have."""
    sampling = stage.sampling
    if sampling.name == "sequential":
        return sum(lengths)
    if sampling.num_batches is not None:
        return sampling.num_batches
    length = min(lengths) if sampling.epoch == "smallest" else max(lengths)
    return length if sampling.name == "joint" else length * len(lengths)


def make_loader(
    stage: Stage, loaders: Mapping[str, BatchLoader], seed: int
) -> MultiTaskLoader[Batch]:
    """The tasks' batches in the order of the stage's sampler."""
    sizes = {task: len(loader) for task, loader in loaders.items()}
    name = stage.sampling.name
    num_steps = steps_per_epoch(stage, list(sizes.values()))
    if name == "sequential":
        return MultiTaskLoader(loaders, Sequential(sizes))
    if name == "proportional":
        return MultiTaskLoader(loaders, Proportional(sizes, num_steps=num_steps, seed=seed))
    if name == "annealed":
        sampler = Annealed(sizes, stage.epochs, num_steps=num_steps, seed=seed)
        return MultiTaskLoader(loaders, sampler)
    draws = num_steps * len(sizes) if name == "joint" else num_steps
    return MultiTaskLoader(loaders, RoundRobin(sizes, num_steps=draws))
