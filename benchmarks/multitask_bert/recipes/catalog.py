"""The systems of the five reports, the controls that they lack, and one model with every method."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import chain

from benchmarks.multitask_bert.recipes import (
    benton,
    chada_jolly,
    controls,
    jiang_yu,
    methods,
    smet_walker,
    xu,
)
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError

# What `run` does when nobody names a recipe: one model, with and without surgery.
SIDE_BY_SIDE = ("smet-walker/general-linear-loss-sum", "smet-walker/v2-dropout-0.3")


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by its id."""
    reports = (smet_walker, chada_jolly, benton, xu, jiang_yu)
    systems = {
        recipe.id: recipe for recipe in chain.from_iterable(each.recipes() for each in reports)
    }
    further = (*controls.recipes(systems), *methods.recipes())
    return {**systems, **{recipe.id: recipe for recipe in further}}


def find_all(patterns: Iterable[str]) -> list[Recipe]:
    """The recipes of ids and of patterns such as ``benton/*``, each once.

    Raises:
        RecipeError: an id or pattern of none.

    Example:
        >>> [recipe.id for recipe in find_all(["xu/dense-tuned*"])][:2]
        ['xu/dense-tuned', 'xu/dense-tuned-smart']
    """
    found: dict[str, Recipe] = {}
    for pattern in patterns:
        matching = {id: recipe for id, recipe in all_recipes().items() if fnmatchcase(id, pattern)}
        found.update(matching or {pattern: find(pattern)})
    return list(found.values())


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
