"""The table of how the tasks' gradients get on: cosines, conflicts, norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.multitask_bert.page.document import Cell, Stack, Table, code
from benchmarks.multitask_bert.records.rows import Row, Section, pair_title
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.records.series import NONE, finite, last, mean_text, number
from benchmarks.multitask_bert.report.tables import scale_note
from benchmarks.multitask_bert.tasks import TASKS

NORMS = "norm before → after"


def conflict_table(section: Section, rows: Iterable[Row]) -> Table | None:
    """Tell what is on record about gradients, a line for each row; None where nothing is."""
    events = {row: _events(row) for row in rows}
    events = {
        row: found
        for row, found in events.items()
        if any(event.get("cosines") or event.get("conflict_rate") for event in found)
    }
    if not events:
        return None
    logged = [event for found in events.values() for event in found]
    tasks = [task for task in section.tasks if any(task in _norms(e, "norms") for e in logged)]
    has_sum = any("norm_before" in event for event in logged)
    header: list[Cell] = ["recipe", "method"]
    header += [Stack((pair_title(p), "cosine", "in conflict")) for p in section.pairs]
    header += [Stack((f"{TASKS[task].title} gradient", NORMS)) for task in tasks]
    header += [Stack(("sum of the gradients", NORMS))] if has_sum else []
    body = []
    for row, found in events.items():
        cells: list[Cell] = [code(row.name), row.method]
        cells += [_pair(row, pair) for pair in section.pairs]
        for task in tasks:
            before = [number(_norms(event, "norms").get(task)) for event in found]
            after = [number(_norms(event, "norms_after").get(task)) for event in found]
            cells.append(_change(before, after))
        if has_sum:
            before = [number(event.get("norm_before")) for event in found]
            cells.append(_change(before, [number(event.get("norm_after")) for event in found]))
        body.append(tuple(cells))
    return Table(tuple(header), tuple(body), scale_note(list(events)))


def _events(row: Row) -> list[Json]:
    return [event for run in row.runs for event in run.by_step("train").values()]


def _norms(event: Json, key: str) -> Json:
    return event.get(key) or {}


def _pair(row: Row, pair: str) -> Cell:
    """Give the cosine ± std over logged steps, and the share of conflicts ± std over seeds."""
    cosines = finite(v for run in row.runs for v in run.pair_points("cosines", pair).values())
    rates = finite(last(run.pair_points("conflict_rate", pair)) for run in row.runs)
    if not cosines and not rates:
        return NONE
    return Stack((mean_text(cosines, "{:.3f}"), mean_text(rates, "{:.3f}")))


def _change(before: Sequence[float], after: Sequence[float]) -> str:
    """Give the mean over logged steps and seeds, before and after surgery."""
    means = [f"{np.mean(known):.3g}" if (known := finite(each)) else "" for each in (before, after)]
    return " → ".join(filter(None, means)) or NONE
