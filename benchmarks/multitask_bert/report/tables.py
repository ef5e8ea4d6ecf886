"""The tables of results: ours beside the published numbers, and as older evaluations had them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.multitask_bert.page.document import (
    Cell,
    Span,
    Stack,
    Table,
    Text,
    code,
    joined,
    quiet,
    strong,
)
from benchmarks.multitask_bert.records.rows import (
    CONSTANT,
    OVERALL,
    Row,
    Run,
    Section,
    metric_title,
)
from benchmarks.multitask_bert.records.series import NONE, finite, mean_text
from benchmarks.multitask_bert.report.comparison import Comparison, compare
from benchmarks.multitask_bert.report.deviations import Deviation, ranges, row_deviations
from benchmarks.multitask_bert.report.groups import Group, controlled_id
from benchmarks.multitask_bert.report.published import is_other_split, printed_metrics
from benchmarks.multitask_bert.tasks import TASKS

SPEEDS = "samples/s (training / evaluation)"
SINGLE_SEED = Span("single seed", "bad")
CELL_LABELS = ("", "published", "difference")
LEGACY_TITLES: Mapping[str, Mapping[str, str]] = {
    "sts": {
        "sigmoid": "outputs through a sigmoid",
        "integer-labels": "labels cut to integers",
        "both": "both",
    },
    "quora": {"double-sigmoid": "two sigmoids before rounding"},
}


def result_table(section: Section, group: Group, numbers: Mapping[Deviation, int]) -> Table:
    """Put the rows of a report's table beside what it prints, in its order of columns."""
    columns = group.columns(section)
    rows = [
        (
            _name(group, row),
            row.method,
            *(_result(section, row, column) for column in columns),
            _seeds(row),
            _speeds(row),
            ranges(numbers[each] for each in row_deviations(section, row)) or "none",
        )
        for row in group.rows
    ]
    constants = {task: value for task, value in section.constants.items() if task in columns}
    if constants:
        values = {**constants, **{name: score(constants) for name, score in OVERALL.items()}}
        cells = [f"{values[c]:.3f}" if c in values else NONE for c in columns]
        rows.append((CONSTANT, NONE, *cells, *[NONE] * 3))
    header = [_column_title(section, group, column) for column in columns]
    return Table(
        header=("system", "method", *header, "seeds", SPEEDS, "deviations"),
        rows=tuple(rows),
        caption=scale_note(group.rows),
        num_references=1 if constants else 0,
    )


def legacy_table(section: Section, rows: Iterable[Row]) -> Table | None:
    """Put each metric beside what the starter code's older evaluations would have printed."""
    rows = [row for row in rows if any(run.legacy for run in row.runs)]
    used = [
        (task, name)
        for task, names in LEGACY_TITLES.items()
        for name in names
        if any(name in run.legacy.get(task, {}) for row in rows for run in row.runs)
    ]
    tasks = [task for task in LEGACY_TITLES if any(task == each for each, _ in used)]
    header: list[Cell] = ["system"]
    for task in tasks:
        header += [
            Stack((metric_title(task), "as it is now")),
            *(Stack((metric_title(t), LEGACY_TITLES[t][n])) for t, n in used if t == task),
            Stack((metric_title(task), "published")),
        ]
    body = []
    for row in rows:
        cells: list[Cell] = [code(row.name)]
        for task in tasks:
            cells.append(mean_text(row.values(task), "{:.3f}"))
            for name in (name for each, name in used if each == task):
                old = [run.legacy.get(task, {}).get(name) for run in row.runs]
                cells.append(mean_text([v for v in old if v is not None], "{:.3f}"))
            printed = printed_metrics(row.recipe_id).get(task)
            mark = " ≠" if is_other_split(section, task) else ""
            cells.append(NONE if printed is None else f"{printed:.3f}{mark}")
        body.append(tuple(cells))
    return Table(tuple(header), tuple(body), scale_note(rows)) if used else None


def seeds_text(row: Row) -> str:
    """List the seeds that count, and those that do not."""

    def name(run: Run) -> str:
        return f"{run.seed}" if run.end else f"{run.seed} (unfinished, step {run.step})"

    counted = ", ".join(map(name, row.runs))
    if not row.uncounted:
        return counted
    return f"{counted}; not counted: {', '.join(map(name, row.uncounted))}"


def _seeds(row: Row) -> Cell:
    text = seeds_text(row)
    return Stack((text, SINGLE_SEED)) if len(row.runs) == 1 else text


def scale_note(rows: Sequence[Row]) -> Text:
    """Say which rows had their epochs shortened; empty where none had."""
    by_scale: dict[float, list[Row]] = {}
    for row in rows:
        by_scale.setdefault(float(row.runs[0].settings["scale"]), []).append(row)
    notes: list[Text] = []
    for scale, found in by_scale.items():
        if scale != 1:
            whose = ("all rows",) if len(by_scale) == 1 else joined(code(row.name) for row in found)
            option = strong(f"--scale {scale:g}")
            notes.append((option, ": the epochs of ", *whose, " are shortened by that factor."))
    return joined(notes, " ") if notes else ""


def _name(group: Group, row: Row) -> Cell:
    printed = group.table.systems.get(row.recipe_id, "") if group.table else ""
    if printed:
        return Stack((code(row.name), quiet(printed)))
    description = str(row.runs[0].recipe.get("description") or "")
    kind = "control: " if controlled_id(row) else ""
    return Stack((code(row.name), quiet(f"{kind}{description}"))) if description else code(row.name)


def _column_title(section: Section, group: Group, column: str) -> Cell:
    printed = group.table.columns.get(column) if group.table else None
    lines: list[Text] = [printed] if printed else []
    lines.append(metric_title(column))
    if column in section.constants:
        kind = "constant" if TASKS[column].metric == "pearson" else "majority"
        lines.append(quiet(f"{kind} {section.constants[column]:.3f}"))
    return Stack(tuple(lines))


def _result(section: Section, row: Row, column: str) -> Cell:
    """Give "ours ± std (n seeds) │ published │ difference", with the marks explained above."""
    found = compare(section, row, column)
    ours = mean_text(found.ours, "{:.3f}")
    if found.ours:
        ours += f" ({len(found.ours)} seed{'s' if len(found.ours) > 1 else ''})"
    if any(column in run.degenerate for run in row.runs):
        ours += " †"
    if found.published is None:
        return Stack((ours, NONE), CELL_LABELS)
    if found.is_other_split:
        return Stack((ours, f"{found.published:.3f} ≠"), CELL_LABELS)
    return Stack((ours, f"{found.published:.3f}", _difference(found)), CELL_LABELS)


def _difference(found: Comparison) -> Text:
    if not math.isfinite(found.difference):
        return NONE
    text = f"{found.difference:+.3f}"
    if not math.isfinite(found.standard_error):
        return f"{text} ?"
    return quiet(f"≈ {text}") if found.is_noise else text


def _speeds(row: Row) -> str:
    speeds = [run.speeds() for run in row.runs]
    return " / ".join(_rate(column) for column in zip(*speeds, strict=True))


def _rate(speeds: Sequence[float]) -> str:
    known = finite(speeds)
    return f"{np.mean(known):.0f}" if known else NONE
