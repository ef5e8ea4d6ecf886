"""Differences of two recipes in a dev metric, in their conflicts or in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.multitask_bert.claims.comparable import find_pair
from benchmarks.multitask_bert.claims.logged import conflict_rate, over_runs
from benchmarks.multitask_bert.claims.paired import MIN_PAIRS, difference_of, tasks_of
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
    Where there are pairs enough, runs of one seed are taken together, and decide.
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
        found = difference_of(self.metric, *rows)
        if found is None:
            raise UntestedError(
                f"`{self.first}` and `{self.second}` have no {_title(self.metric)} in common"
            )
        constant = sorted({task for row in rows for run in row.runs for task in run.degenerate})
        tasks = tasks_of(self.metric, *rows)
        names = [TASKS[task].title for task in constant if task in tasks]
        unpaired = Estimate(found.unpaired.value, found.unpaired_error)
        is_paired = found.paired is not None and len(found.by_seed) >= MIN_PAIRS
        if is_paired and found.paired is not None:
            estimate, beside = Estimate(found.paired.value, found.paired_error), unpaired
            how = f"paired by {len(found.by_seed)} seeds; unpaired {beside.text('{:+.3f}')}"
        else:
            estimate = unpaired
            how = f"unpaired; paired by seed {found.paired_text}"
        return Measured(
            f"{_title(self.metric)} of `{pair.first.name}` less `{pair.second.name}`",
            estimate,
            min(len(row.values(self.metric)) for row in rows),
            (
                how,
                *(f"no pair is {reason}" for reason in found.refused),
                "{:.3f} and {:.3f}".format(*found.means),
                *pair.details,
            ),
            f"degenerate {' and '.join(names)} predictions" if names else "",
            reach=found.paired.reach if is_paired and found.paired is not None else None,
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
        plain = tuple(row for row in section.rows if not is_monitored(row))
        try:
            pair = find_pair(replace(section, rows=plain), self.first, self.second)
        except UntestedError as error:
            raise UntestedError(
                f"`{self.second}` watched its conflicts, which costs what PCGrad does; run both "
                "with `--set monitored=false`"
            ) from error
        rows = (pair.first, pair.second)
        if len({machine_of(run) for row in rows for run in row.runs}) > 1:
            raise UntestedError(f"`{self.first}` and `{self.second}` ran on different machines")
        seconds = [[seconds_per_step(run) for run in row.runs] for row in rows]
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


def is_monitored(row: Row) -> bool:
    """Tells whether any stage logged conflicts for their own sake, as all once had to."""
    return any(stage.get("monitored", True) for stage in row.runs[0].recipe.get("stages") or ())


def machine_of(run: Run) -> tuple[str, ...]:
    """Give what a run's seconds depend on besides its recipe."""
    told = [run.environment.get(key) for key in MACHINE]
    return tuple(map(str, [run.config.get("device"), *told]))


def seconds_per_step(run: Run) -> float:
    """Give a step's mean time; NaN where it is not on record."""
    seconds = number((run.end or {}).get("train_seconds"))
    return seconds / run.step if run.step else math.nan
