"""The standard error that the choice of dev examples puts on the difference of two rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.records.rows import Row, Run
from benchmarks.multitask_bert.tasks import TASKS

STANDARD_ERRORS = {
    "accuracy": metrics.accuracy_standard_error,
    "pearson": metrics.pearson_standard_error,
}


@dataclass(frozen=True)
class Predictions:
    """The columns of a run's prediction file."""

    ids: tuple[str, ...]  # N
    predictions: NDArray[Any]  # [N]
    labels: NDArray[Any]  # [N]


def read_predictions(run: Run, task: str) -> Predictions | None:
    """A run's dev predictions; None where the file is missing, damaged or cut."""
    path = run.folder / f"predictions/{task}-dev.csv"
    if not path.is_file():
        return None
    found = _read(path, path.stat().st_mtime_ns)
    known = run.dev_data().get(task, {}).get("examples")
    return found if found is not None and known in (None, len(found.ids)) else None


def has_other_examples(a: Run, b: Run, task: str) -> bool:
    """Tells whether two runs are known to have been evaluated on other examples of a task."""
    mine, others = read_predictions(a, task), read_predictions(b, task)
    return mine is not None and others is not None and not _agree(mine, others)


def difference_error(task: str, a: Row, b: Row) -> float:
    r"""The standard error of one row's metric less another's, from the choice of dev examples.

    Where all predictions are on record, that of the mean of the examples' own differences: both
    rows had the same examples, and what is hard for one is hard for the other. Elsewhere the two
    rows' errors are taken for independent, $\sqrt{s_a^2 + s_b^2}$, which is too large. NaN where
    the number of examples is not on record either.
    """
    mine, others = (_row_contributions(row, task) for row in (a, b))
    if mine is not None and others is not None and _agree(mine[0], others[0]):
        each = mine[1] - others[1]
        if each.size > 1:
            return float(np.std(each, ddof=1)) / math.sqrt(each.size)
    return math.hypot(*(_row_error(row, task) for row in (a, b)))


def contributions(task: str, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    r"""How far each example moves the metric, so that their mean's error is the metric's.

    An accuracy is the mean of the right answers. Of a correlation it is, with both sides
    standardised, $x_n y_n - \tfrac{r}{2} (x_n^2 + y_n^2)$.

    Example:
        >>> r = contributions("sts", np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
        >>> [round(float(value), 3) for value in r]
        [0.75, -0.375, -0.375]
    """
    if TASKS[task].metric == "accuracy":
        return np.asarray(predictions == labels, dtype=np.float64)
    x, y = ((values - values.mean()) / values.std() for values in (predictions, labels))
    return np.asarray(x * y - np.mean(x * y) / 2 * (x**2 + y**2))


def _row_contributions(row: Row, task: str) -> tuple[Predictions, NDArray[Any]] | None:
    found = [read_predictions(run, task) for run in row.runs]
    read = [each for each in found if each is not None]
    usable = len(read) == len(row.runs) and all(_agree(read[0], each) for each in read)
    if not usable or any(not np.std(p.predictions) or not np.std(p.labels) for p in read):
        return None
    shares = [contributions(task, each.predictions, each.labels) for each in read]
    return read[0], np.mean(shares, axis=0)


def _agree(a: Predictions, b: Predictions) -> bool:
    return a.ids == b.ids and bool(np.array_equal(a.labels, b.labels))


def _row_error(row: Row, task: str) -> float:
    sizes: Sequence[object] = [run.dev_data().get(task, {}).get("examples") for run in row.runs]
    size = sizes[0]
    if not isinstance(size, int) or size < 1:
        return math.nan
    return STANDARD_ERRORS[TASKS[task].metric](float(np.mean(row.values(task))), size)


@lru_cache(maxsize=512)
def _read(path: Path, modified: int) -> Predictions | None:
    """The columns of a file as it was at a time."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        predictions = np.array([float(row["prediction"]) for row in rows])
        labels = np.array([float(row["label"]) for row in rows])
        ids = tuple(row["id"] for row in rows)
    except (ValueError, KeyError, TypeError, csv.Error):
        return None
    finite = bool(np.isfinite(predictions).all() and np.isfinite(labels).all())
    return Predictions(ids, predictions, labels) if rows and finite else None
