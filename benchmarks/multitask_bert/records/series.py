"""Numbers of runs: curves over the steps, means and deviations over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Points: TypeAlias = Mapping[int, float]  # step -> value

NONE = "-"  # a cell without a number


def mean_text(values: Sequence[float], pattern: str) -> str:
    """Give "mean ± standard deviation", the mean alone of one value, and a dash of none."""
    if not values:
        return NONE
    if not all(map(math.isfinite, values)):
        return "NaN"
    mean = pattern.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {pattern.format(deviation(values))}"


def deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def finite(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def last(points: Points) -> float:
    return list(points.values())[-1] if points else math.nan


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
