"""Differences of two recipes in a dev metric, in their conflicts or in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.multitask_bert.claims.comparable import find_pair
from benchmarks.multitask_bert.claims.examples import difference_error
from benchmarks.multitask_bert.claims.logged import conflict_rate, over_runs
from benchmarks.multitask_bert.claims.verdicts import Measured, UntestedError
from benchmarks.multitask_bert.records.rows import OVERALL, Row, Run, Section, metric_title
from benchmarks.multitask_bert.records.series import deviation, number
from benchmarks.multitask_bert.significance import Estimate, difference
from benchmarks.multitask_bert.tasks import TASKS

# What a machine must have in common with another for their seconds to compare.
MACHINE = ("platform", "cpu", "gpu", "num_threads", "torch")


@dataclass(frozen=True)
class MetricDifference:
    """A dev metric, or an overall score, of one recipe less that of another.

    Its standard error is that over the seeds together with that from the choice of dev examples.
    """

    metric: str
    first: str
    second: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def __call__(self, section: Section) -> Measured:
        pair = find_pair(section, self.first, self.second)
        rows = (pair.first, pair.second)
        tasks = _tasks(self.metric, *rows)
        values = [row.values(self.metric) for row in rows]
        if not tasks or not all(values):
            raise UntestedError(
                f"`{self.first}` and `{self.second}` have no {_title(self.metric)} in common"
            )
        means = [float(np.mean(each)) for each in values]
        seeds = [deviation(each) / math.sqrt(len(each)) for each in values]
        dev = [_share(self.metric, task, tasks) * difference_error(task, *rows) for task in tasks]
        constant = sorted({task for row in rows for run in row.runs for task in run.degenerate})
        names = [TASKS[task].title for task in constant if task in tasks]
        return Measured(
            f"{_title(self.metric)} of `{pair.first.name}` less `{pair.second.name}`",
            Estimate(means[0] - means[1], math.hypot(*seeds, *dev)),
            min(map(len, values)),
            (f"{means[0]:.3f} and {means[1]:.3f}", *pair.details),
            f"degenerate {' and '.join(names)} predictions" if names else "",
        )


@dataclass(frozen=True)
class ConflictDifference:
    """How much more often one recipe's STS gradient conflicts with the others than another's."""

    first: str
    second: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def __call__(self, section: Section) -> Measured:
        pair = find_pair(section, self.first, self.second)
        pairs = ("sst~sts", "quora~sts")
        found = [
            [rate for run in row.runs if (rate := conflict_rate(run, pairs)) is not None]
            for row in (pair.first, pair.second)
        ]
        if not all(found):
            raise UntestedError(f"`{self.first}` and `{self.second}` have no conflicts on record")
        rates = [over_runs(each) for each in found]
        return Measured(
            f"share of steps at which STS conflicts in `{pair.first.name}` less "
            f"`{pair.second.name}`",
            difference(*rates),
            min(map(len, found)),
            (f"{rates[0].value:.3f} and {rates[1].value:.3f}", *pair.details),
        )


@dataclass(frozen=True)
class TimeRatio:
    """Seconds a step of one recipe over those of another that keeps no gradients apart."""

    first: str
    second: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def __call__(self, section: Section) -> Measured:
        find_pair(section, self.first, self.second)
        plain = tuple(row for row in section.rows if not _is_monitored(row))
        try:
            pair = find_pair(replace(section, rows=plain), self.first, self.second)
        except UntestedError as error:
            raise UntestedError(
                f"`{self.second}` watched its conflicts, which costs what PCGrad does; run both "
                "with `--set monitored=false`"
            ) from error
        rows = (pair.first, pair.second)
        if len({_machine(run) for row in rows for run in row.runs}) > 1:
            raise UntestedError(f"`{self.first}` and `{self.second}` ran on different machines")
        seconds = [[_seconds_per_step(run) for run in row.runs] for row in rows]
        means = [float(np.mean(each)) for each in seconds]
        if not all(math.isfinite(mean) and mean > 0 for mean in means):
            raise UntestedError(f"`{self.first}` and `{self.second}` have no times on record")
        relative = [
            deviation(each) / math.sqrt(len(each)) / mean
            for each, mean in zip(seconds, means, strict=True)
        ]
        ratio = means[0] / means[1]
        return Measured(
            f"seconds a step of `{pair.first.name}` over `{pair.second.name}`",
            Estimate(ratio, ratio * math.hypot(*relative)),
            pair.num_seeds,
            (f"{means[0]:.3f} and {means[1]:.3f} s", *pair.details),
            pattern="{:.2f}",
        )


def _title(metric: str) -> str:
    return f"{metric} score" if metric in OVERALL else metric_title(metric)


def _tasks(metric: str, *rows: Row) -> list[str]:
    """The tasks that a metric is made of in all runs; none where the runs differ in them."""
    known = {frozenset(run.metrics) for row in rows for run in row.runs}
    if metric in OVERALL:
        return [task for task in TASKS if task in next(iter(known))] if len(known) == 1 else []
    return [metric] if all(metric in tasks for tasks in known) else []


def _share(metric: str, task: str, tasks: list[str]) -> float:
    """How much of a task's metric goes into a score."""
    halved = metric == "normalised" and TASKS[task].metric == "pearson"
    return (0.5 if halved else 1.0) / len(tasks)


def _is_monitored(row: Row) -> bool:
    """Tells whether any stage logged conflicts for their own sake, as all once had to."""
    return any(stage.get("monitored", True) for stage in row.runs[0].recipe.get("stages") or ())


def _machine(run: Run) -> tuple[str, ...]:
    told = [run.environment.get(key) for key in MACHINE]
    return tuple(map(str, [run.config.get("device"), *told]))


def _seconds_per_step(run: Run) -> float:
    seconds = number((run.end or {}).get("train_seconds"))
    return seconds / run.step if run.step else math.nan
