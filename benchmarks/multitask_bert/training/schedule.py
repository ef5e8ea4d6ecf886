"""A stage's batches in their order, and the length of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.multitask_bert.batches.loader import BatchLoader
from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.recipes.recipe import Recipe, Stage
from gradsurgery import (
    Annealed,
    MultiTaskLoader,
    Proportional,
    RoundRobin,
    Sequential,
    TaskSampler,
)


def steps_per_epoch(stage: Stage, lengths: Sequence[int], scale: float = 1.0) -> int:
    """Optimizer steps an epoch.

    Args:
        stage: whose epochs these are.
        lengths: numbers of batches that the tasks have.
        scale: shortens every epoch, of every task where they follow one another.

    Example:
        >>> from benchmarks.multitask_bert.recipes.recipe import Sampling
        >>> stage = Stage(sampling=Sampling("joint", "largest"))
        >>> steps_per_epoch(stage, [10, 95]), steps_per_epoch(stage, [10, 95], scale=0.1)
        (95, 10)
    """
    sampling = stage.sampling
    if sampling.name == "sequential":
        return sum(scaled(length, scale) for length in lengths)
    if sampling.num_batches is not None:
        return scaled(sampling.num_batches, scale)
    length = scaled(min(lengths) if sampling.epoch == "smallest" else max(lengths), scale)
    return length if sampling.name == "joint" else length * len(lengths)


def total_steps(
    recipe: Recipe, sizes: Mapping[str, int], scale: float, max_steps: int | None
) -> int:
    """Optimizer steps of a run, as :func:`stage_steps` counts them."""
    return sum(stage_steps(recipe, sizes, scale, max_steps))


def stage_steps(
    recipe: Recipe, sizes: Mapping[str, int], scale: float, max_steps: int | None
) -> list[int]:
    """Optimizer steps of each stage.

    Args:
        recipe: whose stages these are.
        sizes: numbers of examples that the tasks have.
        scale: as in :func:`steps_per_epoch`.
        max_steps: at most so many in all.
    """
    found: list[int] = []
    for stage in recipe.stages:
        tasks = stage.tasks or recipe.tasks
        lengths = [-(-sizes[task] // stage.batch_size[task]) for task in tasks]
        steps = stage.epochs * steps_per_epoch(stage, lengths, scale)
        found.append(steps if max_steps is None else min(steps, max_steps - sum(found)))
    return found


def scaled(number: int, scale: float) -> int:
    """A shortened number of batches, at least one."""
    return max(1, math.ceil(number * scale))


def make_loader(
    stage: Stage, loaders: Mapping[str, BatchLoader], seed: int, scale: float = 1.0
) -> MultiTaskLoader[Batch]:
    """The tasks' batches in the order of the stage's sampler."""
    num_batches = {task: len(loader) for task, loader in loaders.items()}
    num_examples = {task: len(loader.tokenized) for task, loader in loaders.items()}
    sampling = stage.sampling
    steps = steps_per_epoch(stage, list(num_batches.values()), scale)
    sampler: TaskSampler
    if sampling.name == "sequential":
        sampler = Sequential({task: scaled(n, scale) for task, n in num_batches.items()})
    elif sampling.name == "proportional":
        sampler = Proportional(num_examples, num_steps=steps, seed=seed)
    elif sampling.name == "annealed":
        epochs = sampling.num_epochs or stage.epochs
        sampler = Annealed(num_examples, epochs, num_steps=steps, seed=seed)
    else:
        draws = steps * len(loaders) if sampling.name == "joint" else steps
        sampler = RoundRobin(num_batches, num_steps=draws)
    return MultiTaskLoader(loaders, sampler)
