"""How far a run is: everything that its next step depends on, besides tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

_LARGEST = 2**53  # a number beyond it is none of a run's


@dataclass
class Progress:
    """The numbers of a run.

    Raises:
        ValueError: a field is no number or mapping of its kind.
    """

    stage: int = 0
    epoch: int = 0  # of the stage, counted from 0
    step: int = 0  # since the start, counted from 1 once done
    samples: int = 0
    seconds: float = 0.0  # spent training
    eval_seconds: float = 0.0
    eval_samples: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    num_epochs: int = 0  # over all stages
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_legacy: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not _KINDS[str(each.type)](value):
                raise ValueError(f"progress with {each.name} {value!r}")


def is_count(value: object) -> bool:
    """Whether it can be a number of things.

    >>> is_count(3), is_count(-1), is_count(True), is_count(10**30)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is_duration(value: object) -> bool:
    return is_count(value) or (isinstance(value, float) and 0 <= value < math.inf)


def _is_score(value: object) -> bool:
    is_small = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return is_small or isinstance(value, float)


def _is_by_name(value: object, is_kind: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and is_kind(each) for name, each in value.items()
    )


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "int": is_count,
    "float": _is_duration,
    "float | None": lambda value: value is None or _is_score(value),
    "dict[str, float]": lambda value: _is_by_name(value, _is_score),
    "dict[str, dict[str, float]]": lambda value: _is_by_name(
        value, lambda each: _is_by_name(each, _is_score)
    ),
}
