"""The form of what a run folder tells: which events and configurations can be a run's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# A number beyond it is none of a run's, and overflows where it becomes a float or a date.
_LARGEST = 2**53
_COUNTS = (
    *("step", "stage", "epoch", "epochs", "best_epoch", "samples", "eval_samples"),
    *("examples", "skipped", "peak_bytes"),
)
_NUMBERS = (
    *("seconds", "eval_seconds", "train_seconds", "samples_per_second"),
    *("eval_samples_per_second", "constant_metric", "mean", "normalised"),
    *("norm_before", "norm_after"),
)
_BY_NAME = ("losses", "cosines", "conflict_rate", "norms", "norms_after", "metrics")
_BY_TWO_NAMES = ("layer_cosines", "legacy")
# The id becomes a path below the folder that a command writes into, and must not lead out of it.
_ID = re.compile(r"(?!\.\.?(/|$))[^/\\\0-\x1f]+(/(?!\.\.?(/|$))[^/\\\0-\x1f]+)*")


def is_event(content: object) -> bool:
    """Tells whether it is an event: what it has of the known entries, each of its kind.

    >>> is_event({"event": "dev", "step": 7, "metrics": {"sst": 0.5}})
    True
    >>> is_event({"event": "dev", "step": "7"})
    False
    """
    if not isinstance(content, dict) or not isinstance(content.get("event"), str):
        return False
    kinds: Mapping[tuple[str, ...], Callable[[object], bool]] = {
        _COUNTS: is_count,
        _NUMBERS: is_number,
        _BY_NAME: lambda value: is_by_name(value, _is_number_or_null),
        _BY_TWO_NAMES: lambda value: is_by_name(
            value, lambda each: each is None or is_by_name(each, _is_number_or_null)
        ),
    }
    return all(
        content.get(name) is None or is_kind(content[name])
        for names, is_kind in kinds.items()
        for name in names
    )


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Read a line of ``metrics.jsonl``; None where it holds no event."""
    try:
        event: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if is_event(event) else None


def config_fault(content: Mapping[str, Any]) -> str | None:
    """Says what keeps it from being a configuration, as "rule, found what"; None where it is one.

    >>> config_fault({"recipe": {"id": "../../home"}, "seed": 5})
    "recipe.id must be names with a slash between them, found '../../home'"
    """
    recipe = content.get("recipe")
    if not isinstance(recipe, dict) or "id" not in recipe or not is_count(content.get("seed")):
        return "must name a recipe's id and a seed, found other keys"
    id = recipe["id"]
    if not isinstance(id, str) or _ID.fullmatch(id) is None:
        return f"recipe.id must be names with a slash between them, found {str(id)[:60]!r}"
    lists = {
        "recipe.tasks": (recipe.get("tasks"), str),
        "recipe.stages": (recipe.get("stages"), dict),
        "recipe.assumed": (recipe.get("assumed"), str),
        "deviations": (content.get("deviations"), str),
        "command": (content.get("command"), str),
    }
    for name, (value, kind) in lists.items():
        if value is not None and not _is_list_of(value, kind):
            return f"{name} must be a list of {_TITLES[kind]}, found {_shown(value)}"
    for name in ("data", "data_notice", "encoder", "version", "device", "precision"):
        if not isinstance(content.get(name, ""), str):
            return f"{name} must be a text, found {_shown(content[name])}"
    if not (content.get("max_steps") is None or is_count(content["max_steps"])):
        return f"max_steps must be a whole number or null, found {_shown(content['max_steps'])}"
    scale = content.get("scale", 1.0)
    if not (is_number(scale) and 0 < scale <= 1):
        return f"scale must be a number above 0 and at most 1, found {_shown(scale)}"
    return None


_TITLES = {str: "texts", dict: "objects"}


def is_count(value: object) -> bool:
    """Tell whether a value can be a number of things.

    >>> is_count(3), is_count(-1), is_count(True), is_count(10**30)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def is_duration(value: object) -> bool:
    """Tell whether a value can be a number of seconds."""
    return is_count(value) or (isinstance(value, float) and 0 <= value < math.inf)


def is_number(value: object) -> bool:
    """Tell whether a value can be a number of a run's; it may be NaN."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_by_name(value: object, is_kind: Callable[[object], bool]) -> bool:
    """Tell whether a value maps names to values of a kind."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and is_kind(each) for name, each in value.items()
    )


def _is_number_or_null(value: object) -> bool:
    return value is None or is_number(value)


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _shown(value: object) -> str:
    return repr(value)[:60]
