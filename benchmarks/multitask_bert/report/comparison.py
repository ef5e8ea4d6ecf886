"""Our metrics against the published ones, and how much of a difference is noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.records.rows import OVERALL, Row, Section
from benchmarks.multitask_bert.records.series import deviation
from benchmarks.multitask_bert.report.published import is_other_split, printed_metrics
from benchmarks.multitask_bert.significance import NUM_ERRORS
from benchmarks.multitask_bert.tasks import TASKS

STANDARD_ERRORS = {
    "accuracy": metrics.accuracy_standard_error,
    "pearson": metrics.pearson_standard_error,
}


@dataclass(frozen=True)
class Comparison:
    """One metric of the runs of a row beside the published number.

    ``standard_error`` is that of our mean: over the seeds, where there are several, and from the
    choice of dev examples. It is NaN where the number of examples is not on record.
    """

    ours: tuple[float, ...]  # one value a seed
    published: float | None
    is_other_split: bool
    standard_error: float

    @property
    def difference(self) -> float:
        """Our mean less the published number; NaN where the two do not compare."""
        if self.published is None or self.is_other_split or not self.ours:
            return math.nan
        return float(np.mean(self.ours)) - self.published

    @property
    def is_noise(self) -> bool:
        """Tells whether the difference is within two standard errors."""
        return abs(self.difference) <= NUM_ERRORS * self.standard_error


def compare(section: Section, row: Row, column: str) -> Comparison:
    """Put a task's metric, or an overall score, beside the published one."""
    values = tuple(row.values(column))
    published = printed_metrics(row.recipe_id)
    tasks = [task for task in published if task in TASKS] if column in OVERALL else [column]
    over_seeds = deviation(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Comparison(
        ours=values,
        published=published.get(column),
        is_other_split=any(is_other_split(section, task) for task in tasks),
        standard_error=math.hypot(over_seeds, _from_examples(section, row, column)),
    )


def task_standard_error(section: Section, task: str, metric: float) -> float:
    """Give the standard error from the choice of dev examples; NaN where it is not known."""
    examples = section.dev_data.get(task, {}).get("examples")
    if not examples or not math.isfinite(metric):
        return math.nan
    return STANDARD_ERRORS[TASKS[task].metric](metric, examples)


def _from_examples(section: Section, row: Row, column: str) -> float:
    tasks = [column] if column in TASKS else [task for task in TASKS if row.values(task)]
    squares = []
    for task in tasks:
        # The normalised score brings a correlation from [-1, 1] to [0, 1].
        share = 0.5 if column == "normalised" and TASKS[task].metric == "pearson" else 1.0
        values = row.values(task)
        mean = float(np.mean(values)) if values else math.nan
        squares.append((share * task_standard_error(section, task, mean) / len(tasks)) ** 2)
    return math.sqrt(math.fsum(squares)) if squares else math.nan
