"""How a recipe's curves go on late in its training: from its third quarter to its last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.multitask_bert.claims.logged import InRuns
from benchmarks.multitask_bert.claims.verdicts import Measured
from benchmarks.multitask_bert.metrics import overall_mean
from benchmarks.multitask_bert.records.rows import Run, Section, metric_title
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.records.series import deviation, number
from benchmarks.multitask_bert.significance import UNKNOWN, Estimate
from benchmarks.multitask_bert.tasks import TASKS

# Of fewer evaluations, a quarter of the training would have none.
MIN_EVALUATIONS = 4


@dataclass(frozen=True)
class LateMetric:
    """The change of a dev metric late in the last stage; "mean" for their mean.

    The evaluations have their examples in common, so whose choice is no part of its error.
    """

    metric: str
    recipe: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        def change(run: Run) -> Estimate | None:
            values = list(_metrics(run, self.metric))
            if len(values) < MIN_EVALUATIONS:
                return None
            return late_change(dict(enumerate(values, start=1)))

        title = f"late change of the dev {metric_title(self.metric)} of"
        tasks = tuple(TASKS) if self.metric == "mean" else (self.metric,)
        return _measure(section, self.recipe, title, change, tasks)


@dataclass(frozen=True)
class LateLoss:
    """The relative change of the training loss late in the last stage, mean over the tasks."""

    recipe: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        def change(run: Run) -> Estimate | None:
            if len(list(_metrics(run, "mean"))) < MIN_EVALUATIONS:
                return None
            curves: dict[str, dict[int, float]] = {}
            events = list(_last_stage(run, "train"))
            start = number(events[0].get("step")) if events else 0.0
            for event in events:
                for task, loss in (event.get("losses") or {}).items():
                    steps = int(number(event.get("step")) - start) + 1
                    curves.setdefault(task, {})[steps] = number(loss)
            changes = [late_change(curve, relative=True) for curve in curves.values()]
            if not changes:
                return None
            error = math.hypot(*(each.error for each in changes)) / len(changes)
            return Estimate(float(np.mean([each.value for each in changes])), error)

        return _measure(section, self.recipe, "late relative change of the loss of", change)


def late_change(curve: Mapping[int, float], *, relative: bool = False) -> Estimate:
    """The mean of a curve's last quarter less that of the quarter before.

    Its standard error comes from how much the curve goes up and down within each quarter.

    Args:
        curve: position, counted from 1, to value.
        relative: to the quarter before.

    Returns:
        Unknown where a quarter has no value.

    Example:
        >>> late_change({1: 0.1, 2: 0.4, 3: 0.5, 4: 0.7}).text("{:.1f}")
        '0.2 ± 0.0'
    """
    end = max(curve)
    third = [value for at, value in curve.items() if end / 2 < at <= 0.75 * end]
    fourth = [value for at, value in curve.items() if at > 0.75 * end]
    if not third or not fourth:
        return UNKNOWN
    before, after = float(np.mean(third)), float(np.mean(fourth))
    error = math.hypot(*(deviation(each) / math.sqrt(len(each)) for each in (third, fourth)))
    unit = before if relative else 1.0
    return Estimate((after - before) / unit, error / unit)


def _measure(
    section: Section,
    recipe: str,
    title: str,
    change: Callable[[Run], Estimate | None],
    tasks: tuple[str, ...] = (),
) -> Measured:
    lacks = f"fewer than {MIN_EVALUATIONS} dev evaluations in its last stage"
    found = InRuns.of(section, recipe, change, lacks)
    doubt = _degenerate(found.row.runs, tasks)
    return found.measured(title, "third quarter to last", doubt=doubt, pattern="{:+.3f}")


def _degenerate(runs: tuple[Run, ...], tasks: tuple[str, ...]) -> str:
    constant = {task for run in runs for task in run.degenerate}
    names = [TASKS[task].title for task in tasks if task in constant]
    return f"degenerate {' and '.join(names)} predictions" if names else ""


def _metrics(run: Run, metric: str) -> Iterator[float]:
    for event in _last_stage(run, "dev"):
        found = {task: number(v) for task, v in (event.get("metrics") or {}).items()}
        if metric == "mean" and found:
            yield overall_mean(found)
        elif metric in found:
            yield found[metric]


def _last_stage(run: Run, kind: str) -> Iterator[Json]:
    last = len(run.recipe.get("stages") or [0]) - 1
    return (event for event in run.by_step(kind).values() if event.get("stage", 0) == last)
