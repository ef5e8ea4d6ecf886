"""Stages whose method does nothing, because no two tasks' gradients meet in them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError, Stage


def why_void(stage: Stage, tasks: Iterable[str]) -> str:
    """Says why a stage's method does nothing; empty where it does something.

    Args:
        stage: a stage of a recipe.
        tasks: those of the recipe.

    Example:
        >>> why_void(Stage(method="pcgrad", trainable="heads"), ("sst", "sts"))
        'the encoder is frozen, and heads share nothing'
    """
    if stage.method == "none":
        return "the sum of the losses would train it" if stage.epochs else ""
    if not METHODS[stage.method].is_surgery:
        return ""
    if stage.epochs == 0:
        return "it has no epochs"
    if len(stage.tasks or tuple(tasks)) < 2:
        return "it has one task"
    if stage.sampling.name != "joint":
        return f"a step has one task where sampling is {stage.sampling.name}"
    if stage.trainable == "heads":
        return "the encoder is frozen, and heads share nothing"
    return ""


def void_stages(recipe: Recipe) -> dict[int, str]:
    """Gives the reason for each stage, by its number, whose method does nothing."""
    reasons = (why_void(stage, recipe.tasks) for stage in recipe.stages)
    return {number: reason for number, reason in enumerate(reasons) if reason}


def check_not_void(recipe: Recipe, original: Recipe | None) -> None:
    """Refuses methods that do nothing, unless it is so in the recipe of a report.

    Args:
        recipe: with what was set.
        original: without it; None for a recipe of the user's own.

    Raises:
        RecipeError: a stage's method does nothing.
    """
    known = {} if original is None else void_stages(original)
    for number, reason in void_stages(recipe).items():
        if number not in known:
            raise RecipeError(
                f"recipe {recipe.id}: stages.{number}.method must be one that does something here, "
                f"got {recipe.stages[number].method}, but {reason}; choose loss-sum, or set the "
                "other field"
            )


def check_steps(recipe: Recipe, num_steps: Iterable[int]) -> None:
    """Refuses surgery that begins after the end of its stage, or is done once for all of it.

    Args:
        recipe: with what was set.
        num_steps: of each stage in this run.

    Raises:
        RecipeError: ``start_step`` or ``every`` is not below the steps of the stage.
    """
    for number, (stage, steps) in enumerate(zip(recipe.stages, num_steps, strict=True)):
        for option in ("start_step", "every"):
            found = stage.method_options.get(option, 0)
            if steps and found >= max(steps, 2):
                raise RecipeError(
                    f"recipe {recipe.id}: stages.{number}.method_options.{option} must be below "
                    f"the {steps} steps of the stage, got {found}; lower it, or train for longer"
                )
