"""Fields of a recipe set from the command line, and what was changed in words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.numbers import is_number
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError

OPTIONS = "method_options"


def override(recipe: Recipe, settings: Sequence[str]) -> tuple[Recipe, list[str]]:
    """A recipe with fields set from ``FIELD=VALUE`` strings, and a sentence for each change.

    A field is named by its path (``pooling``, ``pairs.sts``, ``stages.0.lr``). A field that stages
    alone have (``lr``, ``batch_size``, ``epochs``, ...) is set in each of them, and one value for a
    whole mapping goes to every entry. ``FIELD*=NUMBER`` multiplies a number that is there.
    ``method_options.NAME`` is an option of the method, in each stage whose method has it, whichever
    setting comes first.

    Raises:
        RecipeError: no such field, or a value that it cannot have.

    Example:
        >>> from benchmarks.multitask_bert.recipes.catalog import find
        >>> recipe, changes = override(find("smet-walker/v2-dropout-0.3"), ["lr=2e-5"])
        >>> recipe.stages[0].lr, changes
        (2e-05, ['lr set to 2e-05 (recipe: 1e-05)'])
    """
    original, fields = (
        {"frozen_layers": recipe.frozen_layers, **recipe.to_dict()} for _ in range(2)
    )
    paths: dict[str, None] = {}
    of_methods: dict[str, str] = {}
    for setting in sorted(settings, key=_names_an_option):  # the method first, then its options
        path, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: must be FIELD=VALUE, found no '='")
        value, factor = _parsed(text), path.endswith("*")
        path = path.removesuffix("*")
        keys = path.split(".")
        if keys[0] in ("id", "description", "assumed", "tasks"):
            raise RecipeError(f"--set {path}: names the recipe and cannot be set")
        if _names_an_option(setting):
            stages = zip(original["stages"], fields["stages"], strict=True)
            of_methods[path] = _set_option(list(stages), keys, value, setting, multiply=factor)
            continue
        for place in _places(fields, keys[0]):
            _set(place, keys, value, setting, multiply=factor)
        paths[path] = None
    deviations = []
    for path in paths:
        keys = path.split(".")
        before, after = (
            ", ".join(
                dict.fromkeys(in_words(_get(place, keys)) for place in _places(each, keys[0]))
            )
            for each in (original, fields)
        )
        if before != after:
            deviations.append(f"{path} set to {after} (recipe: {before})")
    deviations += [f"{path} {change}" for path, change in of_methods.items() if change]
    return Recipe.from_dict(fields), deviations


def _names_an_option(setting: str) -> bool:
    keys = setting.partition("=")[0].split(".")
    return OPTIONS in (keys[0], *keys[2:3])


def _set_option(
    stages: Sequence[tuple[dict[str, Any], dict[str, Any]]],  # as the recipe has it, and by now
    keys: Sequence[str],
    value: Any,
    setting: str,
    *,
    multiply: bool,
) -> str:
    """Sets an option of the stages' methods; returns the change in words, if it is one."""
    if keys[0] != OPTIONS:
        known = {f"{number}": stage for number, stage in enumerate(stages)}
        if keys[0] != "stages" or keys[1] not in known:
            raise RecipeError(f"--set {setting}: no field {'.'.join(keys[:2])}")
        stages, keys = [known[keys[1]]], keys[2:]
    if len(keys) < 2:
        raise RecipeError(f"--set {setting}: name the option, such as {OPTIONS}.every")
    name = keys[1]
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    options = {
        stage["method"]: METHODS[stage["method"]].own_options()
        for _, stage in stages
        if stage["method"] in METHODS  # which is checked once all is set
    }
    for original, stage in stages:
        own = options.get(stage["method"], {})
        if name not in own:
            continue
        defaults = {each: parameter.default for each, parameter in own.items()}
        given = {**defaults, **stage.get(OPTIONS, {})}
        if value is None and "None" in str(own[name].annotation):
            given[name] = None
        else:
            _set(given, keys[1:], value, setting, multiply=multiply)
        stage[OPTIONS] = {each: v for each, v in given.items() if v != defaults.get(each)}
        before[in_words({**defaults, **original.get(OPTIONS, {})}[name])] = None
        after[in_words(given[name])] = None
    if not after:
        known_names = dict.fromkeys(each for own in options.values() for each in own)
        close = difflib.get_close_matches(name, known_names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        there = "; ".join(f"{each} has {', '.join(own) or 'none'}" for each, own in options.items())
        raise RecipeError(f"--set {setting}: no option {name}; {hint}{there}")
    return "" if after == before else f"set to {', '.join(after)} (recipe: {', '.join(before)})"


def _places(fields: dict[str, Any], key: str) -> list[Any]:
    """Where a field is: in the recipe, or in each of its stages."""
    in_stages = key not in fields and key in fields["stages"][0]
    return fields["stages"] if in_stages else [fields]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def in_words(value: Any, of_one: Callable[[Any], str] = str) -> str:
    """Write a field's value: one text where all entries of a mapping are the same.

    Args:
        value: as JSON has it.
        of_one: writes what is no mapping.

    Example:
        >>> in_words({"sst": 16, "sts": 16}), in_words({"sst": 16, "sts": 8})
        ('16', 'sst 16, sts 8')
    """
    if isinstance(value, dict):
        texts = {key: in_words(each, of_one) for key, each in value.items()}
        same = set(texts.values())
        return same.pop() if len(same) == 1 else ", ".join(f"{k} {v}" for k, v in texts.items())
    return of_one(value)


def _get(place: Any, keys: Sequence[str]) -> Any:
    """An entry of nested dictionaries and lists."""
    for key in keys:
        place = place[int(key) if isinstance(place, list) else key]
    return place


def _set(
    place: Any, keys: Sequence[str], value: Any, setting: str, *, multiply: bool = False
) -> None:
    """Sets one entry of nested dictionaries and lists in place."""
    for depth, key in enumerate(keys):
        entries = dict(enumerate(place)) if isinstance(place, list) else place
        known = {str(name): name for name in entries} if isinstance(entries, dict) else {}
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there is {', '.join(known)}"
            raise RecipeError(f"--set {setting}: no field {'.'.join(keys[: depth + 1])}{hint}")
        index: Any = known[key]
        if depth < len(keys) - 1:
            place = place[index]
    old = place[index]
    if multiply:
        if not (is_number(old) and is_number(value)):
            raise RecipeError(
                f"--set {setting}: must multiply a number, got {old!r} times {value!r}"
            )
        # Twelve digits: the product as somebody would write it, without the last bit's noise.
        value = float(f"{old * value:.12g}") if isinstance(old * value, float) else old * value
    if isinstance(old, dict) and not isinstance(value, dict):
        if any(isinstance(each, (dict, list)) for each in old.values()):
            raise RecipeError(f"--set {setting}: set one of its fields, {', '.join(old)}")
        place[index] = {key: _like(each, value, setting) for key, each in old.items()}
    else:
        place[index] = _like(old, value, setting)


def _like(old: Any, value: Any, setting: str) -> Any:
    """The value in the type of the one it replaces."""
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if old is not None and type(value) is not type(old):
        raise RecipeError(
            f"--set {setting}: must be of type {type(old).__name__}, like {old!r}, got {value!r}"
        )
    return value
