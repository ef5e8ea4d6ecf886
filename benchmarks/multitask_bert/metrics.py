"""The metrics of the tasks, both overall scores, and what a metric must be read against.

A metric is always a finite number: a collapsed or diverged model scores 0, and
[`is_degenerate`][benchmarks.multitask_bert.metrics.is_degenerate] says that it collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert.tasks import TASKS

Values: TypeAlias = Sequence[float] | NDArray[Any]
Kind: TypeAlias = Literal["classes", "binary", "score"]
Range: TypeAlias = tuple[float, float]  # its two ends

_Z = NormalDist().inv_cdf(0.975)

# On the scale 0 to 5 of the labels, whose own standard deviation is about 1.5.
SCORE_SPREAD = 0.01


def accuracy(
    predictions: Values,  # [N] classes
    labels: Values,  # [N] classes
) -> float:
    """Give the share of predictions that equal their label.

    Raises:
        ValueError: The two differ in length, or are empty.

    Example:
        >>> accuracy([0, 1, 1, 4], [0, 1, 2, 4])
        0.75
    """
    predicted, expected = _aligned(predictions, labels)
    return float(np.mean(predicted == expected))


def pearson(
    predictions: Values,  # [N] scores
    labels: Values,  # [N] scores
) -> float:
    r"""Give Pearson's correlation, and 0 where it is not defined.

    $$r = \frac{\sum_n (x_n - \bar x)(y_n - \bar y)}
               {\sqrt{\sum_n (x_n - \bar x)^2 \, \sum_n (y_n - \bar y)^2}}$$

    It is not defined when either side is constant or holds a number that is not finite.

    Raises:
        ValueError: The two differ in length, or are empty.

    Example:
        >>> pearson([1.0, 2.0, 3.0], [0.5, 1.0, 1.5])
        1.0
        >>> pearson([2.5, 2.5, 2.5], [0.0, 3.0, 5.0])
        0.0
    """
    x, y = (_standardised(values) for values in _aligned(predictions, labels))
    if x is None or y is None:
        return 0.0
    return float(np.clip(x @ y, -1.0, 1.0))


def overall_mean(metrics: Mapping[str, float]) -> float:
    """Give the plain mean of the metrics of the tasks that are there.

    Arguments:
        metrics: Task name to metric, for any subset of the tasks.

    Raises:
        ValueError: There is no metric, or a name is not a task's.

    Example:
        >>> round(overall_mean({"sst": 0.5, "quora": 0.8, "sts": 0.8}), 3)
        0.7
    """
    _check_names(metrics)
    return math.fsum(metrics.values()) / len(metrics)


def overall_normalised(metrics: Mapping[str, float]) -> float:
    r"""Give the mean of the metrics once correlations are brought to the range 0 to 1.

    $$\tfrac{1}{3} \left( a_{sst} + a_{quora} + \tfrac{r_{sts} + 1}{2} \right)$$

    For other sets of tasks it is the mean over those that are there.

    Arguments:
        metrics: Task name to metric, for any subset of the tasks.

    Raises:
        ValueError: There is no metric, or a name is not a task's.

    Example:
        >>> round(overall_normalised({"sst": 0.5, "quora": 0.8, "sts": 0.8}), 3)
        0.733
    """
    _check_names(metrics)
    shares = [
        (value + 1) / 2 if TASKS[name].metric == "pearson" else value
        for name, value in metrics.items()
    ]
    return math.fsum(shares) / len(shares)


def constant_metric(task_kind: Kind, labels: Values) -> float:
    """Give the metric of the best predictor that ignores its input.

    That is the share of the commonest label for classes, and 0 for a correlation.

    Raises:
        ValueError: There are no labels.

    Example:
        >>> constant_metric("classes", [0, 1, 1, 3])
        0.5
        >>> constant_metric("score", [0.0, 2.5, 5.0])
        0.0
    """
    values, _ = _aligned(labels, labels)
    if task_kind == "score":
        return 0.0
    _, counts = np.unique(values, return_counts=True)
    return float(counts.max() / values.size)


def is_degenerate(predictions: Values, kind: Kind) -> bool:
    """Say whether predictions tell nothing about their inputs.

    So it is when all of them are one class, when the standard deviation of scores is below 0.01
    (on the labels' scale, 0 to 5), or when any of them is not finite.

    Raises:
        ValueError: There are no predictions.

    Example:
        >>> is_degenerate([1, 1, 1, 1], "binary")
        True
        >>> is_degenerate([2.1, 2.1001, 4.0], "score")
        False
    """
    values, _ = _aligned(predictions, predictions)
    if not np.isfinite(values).all():
        return True
    if kind == "score":
        scale = float(np.abs(values).max())
        # Divided by its largest value first: the square of a diverged score would overflow.
        return scale == 0 or float(np.std(values / scale)) * scale < SCORE_SPREAD
    return bool((values == values[0]).all())


def accuracy_standard_error(metric: float, num_examples: int) -> float:
    r"""Give the standard error that sampling the examples puts on an accuracy.

    $$\sqrt{a (1 - a) / N}$$

    Example:
        >>> round(accuracy_standard_error(0.5, 1101), 3)
        0.015
    """
    return math.sqrt(max(metric * (1 - metric), 0.0) / num_examples)


def pearson_standard_error(metric: float, num_examples: int) -> float:
    r"""Give the standard error that sampling the examples puts on a correlation.

    $$(1 - r^2) / \sqrt{N - 1}$$

    The large-sample value for a bivariate normal distribution; infinite for a single example.

    Example:
        >>> round(pearson_standard_error(0.87, 863), 3)
        0.008
    """
    if num_examples < 2:
        return math.inf
    return (1 - metric**2) / math.sqrt(num_examples - 1)


def interval(metric: Literal["accuracy", "pearson"], value: float, num_examples: int) -> Range:
    r"""Give the 95 % interval that sampling the examples puts on a metric.

    For an accuracy it is Wilson's, all $a$ with $|\hat a - a| \le z \sqrt{a (1 - a) / N}$; for a
    correlation Fisher's, $\tanh(\operatorname{artanh} r \pm z / \sqrt{N - 3})$, and -1 to 1
    where there are fewer than four examples.

    Example:
        >>> [round(end, 3) for end in interval("accuracy", 0.0, 10)]
        [0.0, 0.278]
        >>> [round(end, 3) for end in interval("pearson", 0.87, 863)]
        [0.853, 0.885]

    Edwin B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927;
    R. A. Fisher, "On the 'Probable Error' of a Coefficient of Correlation Deduced from a Small
    Sample", 1921.
    """
    if metric == "pearson":
        if num_examples < 4:
            return -1.0, 1.0
        if abs(value) == 1:
            return value, value
        centre, half = math.atanh(value), _Z / math.sqrt(num_examples - 3)
        return math.tanh(centre - half), math.tanh(centre + half)
    scale = 1 + _Z**2 / num_examples
    centre = (value + _Z**2 / (2 * num_examples)) / scale
    spread = value * (1 - value) / num_examples + (_Z / (2 * num_examples)) ** 2
    half = _Z * math.sqrt(spread) / scale
    return min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value)


def _aligned(predictions: Values, labels: Values) -> tuple[NDArray[Any], NDArray[Any]]:
    predicted = np.asarray(predictions, dtype=np.float64)
    expected = np.asarray(labels, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != expected.shape:
        raise ValueError(
            "predictions: must be one number for each label, found shapes "
            f"{list(predicted.shape)} and {list(expected.shape)}; pass two flat lists of one length"
        )
    if predicted.size == 0:
        raise ValueError("labels: must not be empty, found 0 examples; evaluate at least one")
    return predicted, expected


def _standardised(values: NDArray[Any]) -> NDArray[Any] | None:
    """Centre to mean 0 and scale to length 1; None when nothing is left of the values."""
    if not np.isfinite(values).all():
        return None
    scale = np.abs(values).max()
    if scale == 0:
        return None
    # Divided before the mean is taken, so that neither sums nor squares leave the range of float64.
    scaled = values / scale
    # Rounding alone leaves a constant vector a few units in the last place off its mean.
    if np.ptp(scaled) <= 4 * np.finfo(np.float64).eps:
        return None
    centred = scaled - scaled.mean()
    centred /= np.abs(centred).max()
    return np.asarray(centred / np.linalg.norm(centred))


def _check_names(metrics: Mapping[str, float]) -> None:
    if not metrics:
        raise ValueError(
            "metrics: must hold a task's metric, found none; evaluate at least one task"
        )
    unknown = sorted(set(metrics) - set(TASKS))
    if unknown:
        raise ValueError(
            f"metrics: must be named after tasks, found {unknown[0]!r}; use {', '.join(TASKS)}"
        )
