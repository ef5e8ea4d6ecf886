"""The systems of the reports, each as a recipe; a variant says what it changes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from benchmarks.multitask_bert.recipe import Head, Recipe, RecipeError, Stage

# Smet and Walker, "BERT Multi-Task Cosine Surgery". Fields listed as assumed are not in the report
# and follow the starter code of the course that it was written in.
_SMET_WALKER_ASSUMED = (
    "pooling",
    "encoder_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "selection",
    "max_length",
    "stages.0.lr",
    "stages.0.batch_size",
    "stages.0.sampling.epoch",
)
_THREE_TASKS = ("sst", "quora", "sts")


def smet_walker_general_linear_loss_sum() -> Recipe:
    """The report's starting point, of which it prints no number."""
    return Recipe(
        id="smet-walker/general-linear-loss-sum",
        description="linear heads on joint pairs, sum of the losses, 10 epochs",
        tasks=_THREE_TASKS,
        pairs={"quora": "joint-raw-ids", "sts": "joint-raw-ids"},
        heads=dict.fromkeys(_THREE_TASKS, Head()),
        losses={"sst": "cross-entropy", "quora": "bce", "sts": "mse"},
        stages=(Stage(batch_size=dict.fromkeys(_THREE_TASKS, 8)),),
        assumed=(*_SMET_WALKER_ASSUMED, "head_dropout", "stages.0.epochs"),
    )


def smet_walker_v1_dropout_03() -> Recipe:
    """Variation 1."""
    general = smet_walker_general_linear_loss_sum()
    return replace(
        general,
        id="smet-walker/v1-dropout-0.3",
        description="variation 1: cosine of two embeddings for STS, sum of the losses, 10 epochs",
        pairs={**general.pairs, "sts": "siamese-cos"},
        heads={**general.heads, "sts": Head(layers=(), output="relu-cos-5")},
        assumed=_SMET_WALKER_ASSUMED,
    )


def smet_walker_v2_dropout_03() -> Recipe:
    """Variation 2."""
    return _with_surgery(
        smet_walker_general_linear_loss_sum(),
        id="smet-walker/v2-dropout-0.3",
        description="variation 2: linear heads on joint pairs, PCGrad, 10 epochs",
    )


def smet_walker_v3_cosine_pcgrad() -> Recipe:
    """Variation 3."""
    return _with_surgery(
        smet_walker_v1_dropout_03(),
        id="smet-walker/v3-cosine-pcgrad",
        description="variation 3: cosine of two embeddings for STS, PCGrad, 10 epochs",
    )


def _with_surgery(recipe: Recipe, id: str, description: str) -> Recipe:
    """The same with PCGrad, in the form of the implementation that the report names: the mean, over
    the vector of all parameters."""
    stages = tuple(
        replace(stage, method="pcgrad", reduction="mean", scope="all") for stage in recipe.stages
    )
    return replace(
        recipe,
        id=id,
        description=description,
        stages=stages,
        assumed=(*_SMET_WALKER_ASSUMED, "stages.0.reduction", "stages.0.scope"),
    )


SYSTEMS: tuple[Callable[[], Recipe], ...] = (
    smet_walker_general_linear_loss_sum,
    smet_walker_v1_dropout_03,
    smet_walker_v2_dropout_03,
    smet_walker_v3_cosine_pcgrad,
)
# What `run` does when nobody names a recipe: one model, with and without surgery.
SIDE_BY_SIDE = ("smet-walker/general-linear-loss-sum", "smet-walker/v2-dropout-0.3")


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by its id."""
    return {recipe.id: recipe for recipe in (system() for system in SYSTEMS)}


def find(id: str) -> Recipe:
    """The recipe of an id.

    Raises:
        RecipeError: there is none.

    Example:
        >>> find("smet-walker/v3-cosine-pcgrad").stages[0].method
        'pcgrad'
    """
    recipes = all_recipes()
    if id not in recipes:
        close = difflib.get_close_matches(id, recipes, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `list`"
        raise RecipeError(
            f"recipe: must be one of the {len(recipes)} known ids, got {id!r}; {hint}"
        )
    return recipes[id]
