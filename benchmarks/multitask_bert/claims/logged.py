"""Numbers that a recipe's training logged about the tasks' gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.multitask_bert.claims.comparable import find_row, seeds_text, steps_text
from benchmarks.multitask_bert.claims.verdicts import Measured, UntestedError
from benchmarks.multitask_bert.records.rows import Row, Run, Section, pair_title
from benchmarks.multitask_bert.records.series import last
from benchmarks.multitask_bert.significance import Estimate, difference, mean_estimate
from benchmarks.multitask_bert.tasks import TASKS

PAIRS = ("sst~quora", "sst~sts", "quora~sts")


@dataclass(frozen=True)
class LargestCosine:
    """Mean size of the cosine between two tasks' gradients, of the pair that has the largest."""

    recipe: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        row, num_rows = find_row(section, self.recipe)
        found = {
            pair: [mean_estimate(np.abs(c)) for run in row.runs if (c := _cosines(run, pair))]
            for pair in PAIRS
        }
        means = {pair: over_runs(each) for pair, each in found.items() if each}
        if not means:
            raise UntestedError(f"`{self.recipe}` has no cosines on record")
        largest = max(means, key=lambda pair: means[pair].value)
        layers = _largest_layer(row)
        return Measured(
            f"mean |cosine| of {pair_title(largest)} in `{row.name}`, the largest of its pairs,",
            means[largest],
            len(found[largest]),
            (*([layers] if layers else []), *row_details(row, num_rows)),
            pattern="{:.3f}",
        )


@dataclass(frozen=True)
class KeptNorm:
    """The share of a task's gradient, in norm, that PCGrad's projection leaves."""

    recipe: str
    task: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        def share(run: Run) -> Estimate | None:
            kept = list(_kept(run, self.task))
            return mean_estimate(kept) if kept else None

        found = InRuns.of(section, self.recipe, share, "no norms after the projection on record")
        least = min(min(_kept(run, self.task), default=math.inf) for run in found.row.runs)
        return found.measured(
            f"share of the {TASKS[self.task].title} gradient's norm left in",
            f"at least {least:.3f} at every logged step",
        )


@dataclass(frozen=True)
class LongestGradient:
    """The share of logged steps at which a task's gradient is the longest of all."""

    recipe: str
    task: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        def share(run: Run) -> Estimate | None:
            longest = [max(each, key=lambda t: each[t]) for each in _norms(run)]
            return mean_estimate([task == self.task for task in longest]) if longest else None

        found = InRuns.of(section, self.recipe, share, "no norms by task on record")
        steps = [each for run in found.row.runs for each in _norms(run)]
        means = ", ".join(
            f"{TASKS[task].title} {np.mean([each[task] for each in steps]):.2f}"
            for task in TASKS
            if all(task in each for each in steps)
        )
        title = TASKS[self.task].title
        return found.measured(
            f"share of steps at which {title} has the longest gradient in", f"mean norms {means}"
        )


@dataclass(frozen=True)
class ConflictExcess:
    """How much more often a recipe's small tasks conflict with Quora than with each other."""

    recipe: str

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        def excess(run: Run) -> Estimate | None:
            with_quora = conflict_rate(run, ("sst~quora", "quora~sts"))
            others = conflict_rate(run, ("sst~sts",))
            return with_quora and others and difference(with_quora, others)

        return InRuns.of(section, self.recipe, excess, "no conflicts on record").measured(
            "share of steps at which SST and STS conflict with Quora less that at which they do "
            "with each other in",
            pattern="{:+.3f}",
        )


@dataclass(frozen=True)
class InRuns:
    """An estimate from each run of a recipe's row that has one."""

    row: Row
    num_rows: int
    estimates: tuple[Estimate, ...]

    @staticmethod
    def of(
        section: Section, recipe: str, of_run: Callable[[Run], Estimate | None], lacks: str
    ) -> InRuns:
        """The estimates.

        Raises:
            UntestedError: the recipe was not run, or no run has one, which is put as ``lacks``.
        """
        row, num_rows = find_row(section, recipe)
        found = [estimate for run in row.runs if (estimate := of_run(run)) is not None]
        if not found or not all(math.isfinite(each.value) for each in found):
            raise UntestedError(f"`{recipe}` has {lacks}")
        return InRuns(row, num_rows, tuple(found))

    def measured(
        self, title: str, *details: str, doubt: str = "", pattern: str = "{:.3f}"
    ) -> Measured:
        """Their mean, under a title that ends before the row's name."""
        return Measured(
            f"{title} `{self.row.name}`",
            over_runs(self.estimates),
            len(self.estimates),
            (*details, *row_details(self.row, self.num_rows)),
            doubt,
            pattern,
        )


def conflict_rate(run: Run, pairs: Sequence[str]) -> Estimate | None:
    r"""The mean over some pairs of the share of steps at which the two conflict.

    The standard error is $\sqrt{q (1 - q) / N}$ with the steps $N$ as independent draws.
    """
    rates = [last(run.pair_points("conflict_rate", pair)) for pair in pairs]
    if not all(map(math.isfinite, rates)) or not run.step:
        return None
    errors = [math.sqrt(max(rate * (1 - rate), 0.0) / run.step) for rate in rates]
    return Estimate(float(np.mean(rates)), math.hypot(*errors) / len(rates))


def over_runs(found: Sequence[Estimate]) -> Estimate:
    """The mean over seeds; its error is that over the seeds with that within each run.

    Example:
        >>> over_runs([Estimate(0.2, 0.0), Estimate(0.4, 0.0)]).text("{:.2f}")
        '0.30 ± 0.10'
    """
    values = [each.value for each in found]
    within = [each.error for each in found if math.isfinite(each.error)]
    seeds = mean_estimate(values).error if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), math.hypot(seeds, math.hypot(*within) / len(values)))


def row_details(row: Row, num_rows: int) -> tuple[str, ...]:
    choice = [f"the most seeds of {num_rows} settings"] if num_rows > 1 else []
    return (seeds_text([len(row.runs)]), steps_text(row), *choice)


def _cosines(run: Run, pair: str) -> list[float]:
    return [value for value in run.pair_points("cosines", pair).values() if math.isfinite(value)]


def _largest_layer(row: Row) -> str:
    """The layer and pair with the largest mean |cosine| over all logged steps of all runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in row.runs:
        for event in run.by_step("train").values():
            for layer, cosines in (event.get("layer_cosines") or {}).items():
                for pair, value in (cosines or {}).items():
                    if isinstance(value, int | float) and math.isfinite(value):
                        found.setdefault((layer, pair), []).append(abs(value))
    if not found:
        return ""
    layer, pair = max(found, key=lambda key: float(np.mean(found[key])))
    return f"largest of its layers {np.mean(found[layer, pair]):.3f}, {layer}, {pair_title(pair)}"


def _kept(run: Run, task: str) -> Iterator[float]:
    for event in run.by_step("train").values():
        before = (event.get("norms") or {}).get(task)
        after = (event.get("norms_after") or {}).get(task)
        if before and after is not None:
            yield after / before


def _norms(run: Run) -> Iterator[dict[str, float]]:
    for event in run.by_step("train").values():
        norms = event.get("norms")
        if norms and all(isinstance(value, int | float) for value in norms.values()):
            yield norms
