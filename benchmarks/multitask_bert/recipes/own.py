"""A recipe of the user's own, from a JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.multitask_bert.recipes.catalog import all_recipes
from benchmarks.multitask_bert.recipes.recipe import (
    Head,
    Recipe,
    RecipeError,
    Regulariser,
    Sampling,
    Stage,
)

# It becomes a path below the folder that a run writes into.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe as :meth:`Recipe.to_dict` writes it; fields with a default may be left out.

    Raises:
        RecipeError: the file is no JSON object, a field is missing, unknown or out of its range, or
            the id is that of a recipe that there is.
        OSError: the file cannot be read.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: must be JSON, found {error}; see `list RECIPE --json`"
        ) from error
    try:
        _check_names(Recipe, fields, "")
        for number, stage in enumerate(fields["stages"]):
            _check_names(Stage, stage, f"stages.{number}.")
            _check_names(Sampling, stage.get("sampling", {}), f"stages.{number}.sampling.")
        for task, head in fields["heads"].items():
            _check_names(Head, head, f"heads.{task}.")
        for number, regulariser in enumerate(fields.get("regularisers", ())):
            _check_names(Regulariser, regulariser, f"regularisers.{number}.")
        if not _ID.fullmatch(str(fields["id"])):
            raise RecipeError(f"id must be two names such as mine/first, got {fields['id']!r}")
        if fields["id"] in all_recipes():
            raise RecipeError(f"id must be a new one, got {fields['id']}, which `list` has")
        return Recipe.from_dict(fields)
    except (RecipeError, TypeError, AttributeError, KeyError) as error:
        reason = error if isinstance(error, RecipeError) else f"not of a recipe's form ({error})"
        raise RecipeError(f"{path}: {reason}") from error


def _check_names(kind: Any, fields: Any, where: str) -> None:
    """Refuses fields that a part of a recipe does not have, and the lack of one that it needs."""
    if not isinstance(fields, dict):
        found = type(fields).__name__
        raise RecipeError(f"{where or 'the file'} must be an object, got a {found}")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
            raise RecipeError(f"no field {where}{name}; {hint}")
    for name, field in known.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in fields:
            raise RecipeError(f"{where}{name} must be there, found {', '.join(fields) or 'none'}")
