"""How far a run is: everything that its next step depends on, besides tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from benchmarks.multitask_bert.records.format import is_by_name, is_count, is_duration, is_number


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
    num_epochs: int = 0  # over all stages, begun when last evaluated
    evaluated_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_legacy: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not _KINDS[str(each.type)](value):
                raise ValueError(f"progress with {each.name} {value!r}")


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "int": is_count,
    "float": is_duration,
    "float | None": lambda value: value is None or is_number(value),
    "dict[str, float]": lambda value: is_by_name(value, is_number),
    "dict[str, dict[str, float]]": lambda value: is_by_name(
        value, lambda each: is_by_name(each, is_number)
    ),
}
