"""What one setting changes: rows that differ in it alone, paired by seed and unpaired."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.multitask_bert.claims.paired import MIN_PAIRS, Difference, difference_of
from benchmarks.multitask_bert.claims.twins import METHOD, Contrast, contrasts, near_twins
from benchmarks.multitask_bert.intervals import Interval
from benchmarks.multitask_bert.page.document import (
    Cell,
    Span,
    Stack,
    Table,
    Text,
    code,
    quiet,
    strong,
    with_code,
)
from benchmarks.multitask_bert.records.rows import Row, Section, metric_title
from benchmarks.multitask_bert.records.series import NONE
from benchmarks.multitask_bert.significance import Verdict
from benchmarks.multitask_bert.tasks import TASKS

OVER_ALL = "mean"
MAX_NAMED = 6  # pairs that are none, in one list


@dataclass(frozen=True)
class Compared:
    """Two rows that one setting tells apart, and their difference in each metric."""

    contrast: Contrast
    by_metric: Mapping[str, Difference]

    @property
    def main(self) -> Difference | None:
        """The one that the two are judged by: of the mean, or of the one metric there is."""
        found = self.by_metric.get(OVER_ALL)
        return found or next(iter(self.by_metric.values()), None)

    def constant(self, metric: str) -> list[str]:
        """Name the tasks behind a metric whose predictions are one constant in some run."""
        runs = [run for row in (self.contrast.first, self.contrast.second) for run in row.runs]
        tasks = [metric] if metric in TASKS else list(TASKS)
        return [TASKS[t].title for t in tasks if any(t in run.degenerate for run in runs)]

    def answer(self, metric: str) -> str:
        """Say whether the runs decide the sign of a difference, and why if they do not."""
        found = self.by_metric[metric]
        if constant := self.constant(metric):
            return f"not decided: constant {' and '.join(constant)} predictions"
        count = len(found.by_seed)
        if found.paired is not None and count < MIN_PAIRS:
            return f"not decided: {'a single seed' if count == 1 else f'{count} seeds are too few'}"
        verdict = found.best.verdict
        if verdict is Verdict.TOO_FEW:
            return "not decided: a single seed"
        return "not decided" if verdict is Verdict.NOISE else f"decided: {verdict.value}"

    def is_decided(self, metric: str) -> bool:
        return self.answer(metric).startswith("decided")


def compare_twins(section: Section, rows: Sequence[Row]) -> list[Compared]:
    """Compare all rows that differ in one setting, in every metric that they have in common."""
    found = []
    for contrast in contrasts(rows):
        tasks = [task for task in section.tasks if contrast.first.values(task)]
        metrics = [*([OVER_ALL] if len(tasks) > 1 else []), *tasks]
        measured = {m: difference_of(m, contrast.first, contrast.second) for m in metrics}
        known = {metric: each for metric, each in measured.items() if each is not None}
        if known:
            found.append(Compared(contrast, known))
    return found


def difference_table(compared: Sequence[Compared]) -> Table:
    """Put the paired difference of each two rows above the unpaired one, a column a metric."""
    metrics = [
        metric
        for metric in (OVER_ALL, *TASKS)
        if any(metric in each.by_metric for each in compared)
    ]
    header: list[Cell] = ["first less second", "differ in"]
    header += [metric_title(metric) for metric in metrics]
    rows = [
        (
            Stack((code(each.contrast.first.name), code(each.contrast.second.name))),
            _setting(each.contrast),
            *(_cell(each, metric) for metric in metrics),
        )
        for each in compared
    ]
    return Table(tuple(header), tuple(rows))


def assumptions(compared: Sequence[Compared], rows: Sequence[Row]) -> Iterator[Text]:
    """Say what each kind of difference takes for granted, and which pairs were refused."""
    yield (
        strong("Paired"),
        ": runs of one seed share initial weights and batches, so each seed gives one difference. "
        "The interval of 95 % takes these for independent draws from about a normal distribution "
        "(Student's t, one degree of freedom less than pairs).",
    )
    yield (
        strong("Unpaired"),
        ": the runs of the two rows are taken for strangers. That holds whatever they share, and "
        "is wider where good seeds are good for both.",
    )
    yield (
        "Both add the error from the choice of dev examples: of the differences example by "
        "example where both rows' predictions are on record, elsewhere as if each row had had "
        "examples of its own, which is too wide."
    )
    num_compared = sum(len(each.by_metric) for each in compared)
    yield (
        f"Decided is a difference whose paired interval leaves zero out, over at least {MIN_PAIRS} "
        f"seeds. Of the {num_compared} differences here, chance alone would decide about one in 20."
    )
    refused = [
        f"`{each.contrast.first.name}` and `{each.contrast.second.name}`, {reason}"
        for each in compared
        if (found := each.main) is not None
        for reason in found.refused
    ]
    for text in _some([*refused, *near_twins(rows)]):
        yield ("No pair: ", *with_code(text), ".")


def _some(texts: Sequence[str]) -> list[str]:
    rest = len(texts) - MAX_NAMED
    return [*texts[:MAX_NAMED], *([f"and {rest} more"] if rest > 0 else [])]


def _setting(contrast: Contrast) -> Text:
    if contrast.setting == METHOD:
        return f"{contrast.first.method}, not {contrast.second.method}"
    return contrast.setting.replace("_", " ")


def _cell(each: Compared, metric: str) -> Cell:
    if metric not in each.by_metric:
        return NONE
    found = each.by_metric[metric]
    answer = each.answer(metric)
    style: Text = quiet(answer)
    if each.is_decided(metric):
        style = Span(answer, "good" if found.best.value > 0 else "bad")
    paired = NONE if found.paired is None else found.paired.text()
    return Stack((paired, found.unpaired.text(), style), ("", "unpaired"))


def plain_interval(found: Interval) -> str:
    """Say in words between which two numbers a difference lies.

    Example:
        >>> plain_interval(Interval(0.02, 0.03))
        'anything from -0.010 to +0.050'
    """
    if not math.isfinite(found.reach):
        return "anything"
    return f"anything from {found.value - found.reach:+.3f} to {found.value + found.reach:+.3f}"
