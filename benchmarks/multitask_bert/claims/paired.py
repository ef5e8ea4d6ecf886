"""The difference of two rows in a dev metric: seeds as pairs, and as strangers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.multitask_bert.claims.examples import difference_error, has_other_examples
from benchmarks.multitask_bert.intervals import Interval, interval
from benchmarks.multitask_bert.records.rows import OVERALL, Row, Run
from benchmarks.multitask_bert.records.run import SETTINGS
from benchmarks.multitask_bert.records.series import deviation
from benchmarks.multitask_bert.significance import Estimate
from benchmarks.multitask_bert.tasks import TASKS

# From this many on, the pairs alone decide. Of fewer, no exact test of their signs could: that all
# of five agree is chance once in 16 times.
MIN_PAIRS = 6
# What two runs of a seed must have in common besides, for their difference to be their recipes'.
_SAME = {"data": None, "version": None, "device": None, "num_processes": 1, **SETTINGS}


@dataclass(frozen=True)
class Pairs:
    """The runs of two rows that share their seed, and what kept others of a seed apart."""

    first: Row
    second: Row
    refused: tuple[str, ...]

    @classmethod
    def of(cls, first: Row, second: Row) -> Pairs | None:
        """Pair the runs of two rows; None where no seed is left."""
        others = {run.seed: run for run in second.runs}
        mine: list[Run] = []
        theirs: list[Run] = []
        refused = []
        for run in first.runs:
            if (other := others.get(run.seed)) is None:
                continue
            if reasons := list(_unlike(run, other)):
                refused.append(f"seed {run.seed}: {', '.join(reasons)}")
                continue
            mine.append(run)
            theirs.append(other)
        if not mine:
            return None
        rows = replace(first, runs=tuple(mine)), replace(second, runs=tuple(theirs))
        return cls(*rows, tuple(refused))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.first.runs)


@dataclass(frozen=True)
class Difference:
    """A dev metric, or an overall score, of one row less that of another.

    Arguments:
        means: Over all seeds of each row.
        unpaired: Takes the two rows' runs for strangers.
        unpaired_error: The standard error of that.
        paired: From the differences of the seeds that both rows have; None without one.
        paired_error: The standard error of that; of one pair, from the dev examples alone.
        by_seed: The difference of each such seed.
    """

    metric: str
    means: tuple[float, float]
    unpaired: Interval
    unpaired_error: float
    paired: Interval | None
    paired_error: float
    by_seed: tuple[float, ...]
    refused: tuple[str, ...]

    @property
    def best(self) -> Interval:
        """The one to go by: of the pairs, where there are any."""
        return self.paired or self.unpaired

    @property
    def paired_text(self) -> str:
        """Give the difference over the pairs beside its standard error."""
        if self.paired is None:
            return "no seed in common"
        found = Estimate(self.paired.value, self.paired_error).text("{:+.3f}")
        count = len(self.by_seed)
        return f"{found} over {count} pair{'' if count == 1 else 's'}"


def difference_of(metric: str, first: Row, second: Row) -> Difference | None:
    """Take the difference of two rows; None where they have not the metric in common.

    Its error is that over the seeds together with that from the choice of dev examples.
    """
    rows = (first, second)
    tasks = tasks_of(metric, *rows)
    values = [row.values(metric) for row in rows]
    if not tasks or not all(values):
        return None
    means = float(np.mean(values[0])), float(np.mean(values[1]))
    over_seeds = [(deviation(v) / math.sqrt(len(v)), len(v) - 1) for v in values]
    examples = _from_examples(metric, tasks, *rows)
    unpaired = interval(means[0] - means[1], *over_seeds, (examples, math.inf))
    unpaired_error = math.hypot(*(error for error, _ in over_seeds), examples)
    pairs = Pairs.of(first, second)
    if pairs is None:
        refused = tuple(_all_refused(first, second))
        return Difference(metric, means, unpaired, unpaired_error, None, math.nan, (), refused)
    mine, theirs = (row.values(metric) for row in (pairs.first, pairs.second))
    each = tuple(a - b for a, b in zip(mine, theirs, strict=True))
    examples = _from_examples(metric, tasks, pairs.first, pairs.second)
    error, count = deviation(each) / math.sqrt(len(each)), len(each)
    paired = interval(float(np.mean(each)), (error, count - 1), (examples, math.inf))
    paired_error = math.hypot(error, examples)
    return Difference(
        metric, means, unpaired, unpaired_error, paired, paired_error, each, pairs.refused
    )


def tasks_of(metric: str, *rows: Row) -> list[str]:
    """Give the tasks that a metric is made of in all runs; none where the runs differ in them."""
    known = {frozenset(run.metrics) for row in rows for run in row.runs}
    if metric in OVERALL:
        return [task for task in TASKS if task in next(iter(known))] if len(known) == 1 else []
    return [metric] if all(metric in tasks for tasks in known) else []


def _from_examples(metric: str, tasks: list[str], first: Row, second: Row) -> float:
    """Give the standard error of the difference from the choice of dev examples."""
    return math.hypot(
        *(_share(metric, task, tasks) * difference_error(task, first, second) for task in tasks)
    )


def _share(metric: str, task: str, tasks: list[str]) -> float:
    """How much of a task's metric goes into a score."""
    halved = metric == "normalised" and TASKS[task].metric == "pearson"
    return (0.5 if halved else 1.0) / len(tasks)


def _all_refused(first: Row, second: Row) -> Iterator[str]:
    others = {run.seed: run for run in second.runs}
    for run in first.runs:
        if run.seed in others:
            yield f"seed {run.seed}: {', '.join(_unlike(run, others[run.seed]))}"


def _unlike(a: Run, b: Run) -> Iterator[str]:
    """Say what two runs of one seed differ in besides their recipes."""
    for name, default in _SAME.items():
        values = [run.config.get(name, default) for run in (a, b)]
        if values[0] != values[1]:
            yield f"{name} {values[0]} and {values[1]}"
    sizes = a.sizes, b.sizes
    for task, split in sorted(sizes[0].keys() & sizes[1].keys()):
        numbers = [each[task, split] for each in sizes]
        if numbers[0] != numbers[1]:
            yield f"{numbers[0]:,} and {numbers[1]:,} {TASKS[task].title} {split} examples"
    for task in a.metrics.keys() & b.metrics.keys():
        if has_other_examples(a, b, task):
            yield f"other {TASKS[task].title} dev examples"
