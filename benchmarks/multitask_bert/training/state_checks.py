"""The form of a run's state: what is taken from a file, checked before any of it is taken.

A checksum finds damage, and the state of another run is refused by its origin. What is left is a
file that somebody wrote, or another version. Each function raises ``ValueError`` where it finds
what no run saves, or what Python raises where there is something else than a mapping or a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.records.format import is_count
from benchmarks.multitask_bert.training.progress import Progress
from benchmarks.multitask_bert.training.stage import Steps

# What a malformed state can raise on its way through these checks, and through torch's own.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_progress(progress: Progress, recipe: Recipe) -> None:
    """Checks that a run of the recipe can be so far."""
    _check(progress.stage < len(recipe.stages), "stage", progress.stage)
    _check(progress.epoch <= recipe.stages[progress.stage].epochs, "epoch", progress.epoch)
    best = progress.best_metrics
    _check(set(best) in (set(), set(recipe.tasks)), "best_metrics of", sorted(best))
    _check((progress.best_score is None) == (not best), "best_score", progress.best_score)
    _check(set(progress.best_legacy) <= set(recipe.tasks), "best_legacy of", progress.best_legacy)


def check_encoders(
    encoders: object, recipe: Recipe, stage: int, like: Mapping[str, Tensor]
) -> None:
    """Checks that they are those that the stages before have ended with.

    Args:
        encoders: their weights.
        recipe: whose stages these are.
        stage: the number of the stage that a run is in.
        like: the weights of an encoder.
    """
    number = 0
    for place, each in enumerate(recipe.stages[: stage + 1]):
        number = 0 if each.start == "average" else number
        number += each.start == "initial" and place < stage
    if not isinstance(encoders, list) or len(encoders) != number:
        raise ValueError(f"ended_encoders other than {number}")
    for encoder in encoders:
        check_tensors("ended_encoders", encoder, like)


def check_tensors(name: str, found: object, like: Mapping[str, Tensor]) -> None:
    """Checks that they are tensors of the same names, shapes and types."""
    _check(isinstance(found, Mapping), f"{name} that is a", type(found).__name__)
    assert isinstance(found, Mapping)
    _check(set(found) == set(like), f"{name} with other names, such as", set(found) ^ set(like))
    for key, tensor in like.items():
        _check(_is_like(found[key], tensor.shape, tensor.dtype), f"{name} with another", key)


def check_steps(state: Mapping[str, Any], steps: Steps) -> None:
    """Checks that they are the optimizer, the loader and the losses of the stage."""
    tasks = list(steps.num_batches)
    _check_optimizer(state["optimizer"], steps)
    for task, place in state["loader"]["loaders"].items():
        taken = place["batches"]
        fits = is_count(place["pass"]) and is_count(taken) and taken <= steps.num_batches[task]
        _check(fits, "loader of", (task, place))
    counts = state["loss_counts"]
    _check(set(counts) <= set(tasks), "loss_counts of", list(counts))
    for count in counts.values():
        _check(is_count(count) and count > 0, "loss_counts", count)
    if steps.proximity is not None:
        check_tensors("past", state["past"], dict(steps.proximity.state_dict()))


def check_losses(parts: Sequence[Mapping[str, Any]], counts: Collection[str]) -> None:
    """Checks that the processes have the losses that are counted.

    Args:
        parts: what each process saved of its own.
        counts: tasks whose losses are counted.
    """
    sums = [part["loss_sums"] for part in parts]
    _check({task for each in sums for task in each} == set(counts), "loss_sums of", sums)
    for each in sums:
        for total in each.values():
            _check(_is_like(total, torch.Size(), torch.float32), "loss_sums", total)


def _check_optimizer(state: Mapping[str, Any], steps: Steps) -> None:
    """Checks the base optimizer's state; ``gradsurgery`` checks its own when it is loaded."""
    fresh = steps.optimizer.state_dict()
    parameters = [p for group in steps.optimizer.param_groups for p in group["params"]]
    places = [group["params"] for group in state["param_groups"]]
    expected = [group["params"] for group in fresh["param_groups"]]
    _check(set(state) == set(fresh), "optimizer with", list(state))
    _check(places == expected, "optimizer of other parameters than", expected)
    for place, moments in state["state"].items():
        _check(is_count(place) and place < len(parameters), "optimizer of parameter", place)
        _check(set(moments) == {"step", "exp_avg", "exp_avg_sq"}, "optimizer with", list(moments))
        parameter = parameters[place]
        for name in ("exp_avg", "exp_avg_sq"):
            fits = _is_like(moments[name], parameter.shape, parameter.dtype)
            _check(fits, f"optimizer with another {name} of parameter", place)
        _check(_is_like(moments["step"], torch.Size(), torch.float32), "step of parameter", place)


def _is_like(found: object, shape: torch.Size, dtype: torch.dtype) -> bool:
    return (
        isinstance(found, Tensor)
        and (found.layout, found.dtype) == (torch.strided, dtype)
        and found.shape == shape
        and not found.is_meta
    )


def _check(holds: bool, name: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{name} {found!r}")
