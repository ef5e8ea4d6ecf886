"""Metrics of a finished run's model on any labelled rows, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.multitask_bert.data.corpus import absent_file, load_labelled
from benchmarks.multitask_bert.metrics import accuracy, constant_metric, interval, pearson
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.kept_model import KeptModel, none_of


@dataclass(frozen=True)
class Score:
    """One task's metric on some rows, and what it is to be read against."""

    task: str
    metric: float
    low: float
    high: float
    constant: float  # the metric of the best predictor that ignores its input
    num_examples: int
    num_skipped: int  # rows without a label

    def __str__(self) -> str:
        task = TASKS[self.task]
        name = "Pearson r" if task.metric == "pearson" else "accuracy"
        skipped = f", {self.num_skipped} without a label skipped" if self.num_skipped else ""
        return (
            f"{task.title} {name} {self.metric:.3f}, 95 % interval {self.low:.3f} to "
            f"{self.high:.3f} ({self.num_examples} examples{skipped}; constant predictor "
            f"{self.constant:.3f})"
        )


def score(
    kept: KeptModel,
    data: str | None,
    split: str = "dev",
    tasks: Sequence[str] | None = None,
) -> tuple[list[Score], list[Path]]:
    """Evaluates a run's best checkpoint on the rows of a folder that have labels.

    Args:
        kept: the model of a complete run.
        data: where the data are; where the run had them by default.
        split: whose files they are: ``train``, ``dev`` or ``test``.
        tasks: of the run's; all by default.

    Returns:
        The tasks' metrics, and the data files that are not there.

    Raises:
        RecordError: a file of the run is damaged.
        DataError: a data file is damaged or without labels, or all of them are missing.
        ValueError: the run does not have a task.
    """
    source = data or kept.data
    asked = kept.tasks(tasks)
    absent = {
        task: path for task in asked if (path := absent_file(source, task, split)) is not None
    }
    if len(absent) == len(asked):
        raise none_of(source, list(absent.values()))
    present = [task for task in asked if task not in absent]
    return list(_scores(kept, source, split, present)), list(absent.values())


def _scores(kept: KeptModel, source: str, split: str, tasks: Sequence[str]) -> Iterator[Score]:
    for rows in [load_labelled(source, task, split) for task in tasks]:
        task = TASKS[rows.task]
        labels = [example.label for example in rows.examples if example.label is not None]
        predictions = kept.predict(rows)
        metric = (accuracy if task.metric == "accuracy" else pearson)(predictions, labels)
        low, high = interval(task.metric, metric, len(labels))
        constant = constant_metric(task.kind, labels)
        yield Score(task.name, metric, low, high, constant, len(labels), rows.num_skipped)
