"""Sentences that a reader of the tables needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.multitask_bert.page.document import Span, Text, code, joined, spans, strong
from benchmarks.multitask_bert.records.rows import Section
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.records.series import finite
from benchmarks.multitask_bert.report.comparison import task_standard_error
from benchmarks.multitask_bert.report.groups import Group
from benchmarks.multitask_bert.report.published import caution, is_other_split, printed_metrics
from benchmarks.multitask_bert.tasks import TASKS

MAX_NAMED = 6  # recipes in one sentence
SCORES = {"mean": "the plain mean", "normalised": "the normalised mean"}


def gravest(section: Section, complaints: Sequence[str]) -> Iterator[Text]:
    """Tell of what is missing from the numbers, or wrong with them."""
    for complaint in complaints:
        yield (strong("Not read"), f", and missing below: {complaint}")
    for run in section.runs:
        if run.num_unreadable:
            lines = "line" if run.num_unreadable == 1 else "lines"
            text = f": {run.num_unreadable} damaged {lines} of metrics.jsonl left out."
            yield (code(run.folder), text)
    for row in section.rows:
        for run in row.uncounted:
            reason = "its seed is there twice" if run.end else f"unfinished, step {run.step}"
            yield ("Not counted: ", code(run.folder), f" ({reason}).")


def reading(section: Section) -> Iterator[Text]:
    """Tell how to read a cell of the tables."""
    yield (
        "A cell is ours ± standard deviation over the seeds (number of seeds) │ the published "
        "number │ our mean less the published number. Ours is the best checkpoint's; of an "
        "unfinished run, the best so far."
    )
    yield (
        "≈ The difference is noise: within two standard errors of our mean, over the seeds and "
        "from the choice of dev examples together. Of one seed the first is not known, and the "
        "published numbers are of one run each, so more of the differences may be noise than are "
        "marked."
    )
    yield from _other_splits(section)
    yield (
        "Overall scores: mean is the plain mean of the metrics; normalised "
        "brings the correlation from [-1, 1] to [0, 1] first. The one that a report does not print "
        "is computed from its metrics."
    )
    settings: dict[tuple[str | Span, ...], list[str]] = {}
    for row in section.rows:
        settings.setdefault(settings_text(row.runs[0].settings), []).append(row.name)
    for text, names in settings.items():
        yield text if len(settings) == 1 else (*_named(names), ": ", *spans(text))
    errors = [
        f"{TASKS[task].title} {error:.3f} ({section.dev_data[task]['examples']:,} examples)"
        for task in section.dev_data
        if math.isfinite(error := _standard_error(section, task))
    ]
    if errors:
        yield f"Standard error of one run from the choice of dev examples: {'; '.join(errors)}."


def about_report(group: Group) -> Iterator[Text]:
    """Name the report of a table, and what is odd about its numbers and ours."""
    if group.report is not None:
        yield (
            f"{' and '.join(group.report.authors)}, {group.report.title}. It prints "
            f"{SCORES[group.report.overall]} as its overall score."
        )
    for id in dict.fromkeys(row.recipe_id for row in group.rows):
        if caution(id):
            yield (code(id), f" as published: {caution(id)}")
    yield from _degenerate(group)


def _degenerate(group: Group) -> Iterator[Text]:
    """Name the predictions of a table's rows that tell nothing about their inputs, by task."""
    for name, task in TASKS.items():
        found: list[Text] = []
        for row in group.rows:
            seeds = [str(run.seed) for run in row.runs if name in run.degenerate]
            numbers = f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})"
            if seeds:
                found.append((code(row.name), numbers if len(seeds) < len(row.runs) else ""))
        if found:
            start = f"† Degenerate: the {task.title} predictions of "
            yield joined((start, joined(found), " are all one value or not finite."), "")


def _other_splits(section: Section) -> Iterator[Text]:
    if not any(printed_metrics(row.recipe_id) for row in section.rows):
        return
    others = [task for task in section.tasks if is_other_split(section, task)]
    if section.is_synthetic:
        yield "≠ Published for SST, Quora and STS, which these data are not: do not compare."
    elif others:
        sizes = ", ".join(
            f"{TASKS[task].title} (here {section.dev_data[task]['examples']:,} examples)"
            for task in others
        )
        yield f"≠ Published for another dev split, so do not compare: {sizes}."


def settings_text(settings: Json) -> tuple[str | Span, ...]:
    """Tell what a row was run with, besides its recipe."""
    steps, scale = settings["max_steps"], settings["scale"]
    length = "all steps of the epochs" if scale == 1 else f"epochs shortened by {scale:g}"
    return (
        "Encoder ",
        code(settings["encoder"] or "unknown"),
        f", precision {settings['precision'] or '?'}, {length}",
        "." if steps is None else f", at most {steps} steps.",
    )


def _named(names: Sequence[str]) -> tuple[str | Span, ...]:
    rest = len(names) - MAX_NAMED
    shown = joined(code(name) for name in names[:MAX_NAMED])
    return (*shown, f" and {rest} more") if rest > 0 else shown


def _standard_error(section: Section, task: str) -> float:
    """Give the standard error of one run, at the mean metric of the rows."""
    values = finite(value for row in section.rows for value in row.values(task))
    return task_standard_error(section, task, float(np.mean(values)) if values else math.nan)
