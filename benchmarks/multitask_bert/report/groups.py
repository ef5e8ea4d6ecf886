"""Rows put where they belong: in the tables of the report whose systems they are, or control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.multitask_bert.records.rows import OVERALL, Row, Section
from benchmarks.multitask_bert.report.published import PrintedTable, Report, reports


@dataclass(frozen=True)
class Group:
    """The rows of one table of a report, controls below what they control.

    ``report`` and ``table`` are None for rows that belong to no report.
    """

    report: Report | None
    table: PrintedTable | None
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        if self.report is None:
            are_methods = all(row.recipe_id.startswith("method/") for row in self.rows)
            return "One model, every method" if are_methods else "Recipes of no report"
        part = f": {self.table.title}" if self.table and self.table.title else ""
        return f"{self.report.name}{part}"

    def columns(self, section: Section) -> list[str]:
        """Give the tasks and scores in the order of the report, then those that it lacks."""
        printed = list(self.table.columns) if self.table else []
        measured = {task for row in self.rows for run in row.runs for task in run.metrics}
        asked = {task for row in self.rows for task in row.runs[0].recipe.get("tasks") or ()}
        tasks = [task for task in section.tasks if task in measured | asked]
        return list(dict.fromkeys([*printed, *tasks, *OVERALL]))


def group_rows(section: Section) -> list[Group]:
    """Put the rows of a section into the tables of the reports, in the reports' order."""
    places = _places()
    controlled = {row.recipe_id: controlled_id(row) for row in section.rows}
    found: dict[tuple[str, int], list[tuple[int, bool, int, Row]]] = {}
    for row in section.rows:
        key, number, position = places.get(_root(row.recipe_id, controlled), ("", 0, 0))
        is_control = row.recipe_id not in places
        found.setdefault((key, number), []).append((position, is_control, row.index, row))
    return [
        Group(report, table, tuple(row for *_, row in sorted(found[at], key=lambda e: e[:3])))
        for at, report, table in _tables()
        if at in found
    ]


def controlled_id(row: Row) -> str:
    """Give the id of the recipe that a control changes, which its description begins with.

    A control is a recipe that is in no table of a report; empty for any other.
    """
    first = str(row.runs[0].recipe.get("description") or "").partition(" ")[0]
    return first if row.recipe_id not in _places() and "/" in first else ""


def _root(id: str, controlled: dict[str, str]) -> str:
    """Follow a control of a control to the system of a report."""
    seen = set()
    while id not in seen and controlled.get(id):
        seen.add(id)
        id = controlled[id]
    return id


def _places() -> dict[str, tuple[str, int, int]]:
    """Where each system stands: its report, the number of the table, the number of the row."""
    return {
        id: (report.key, number, position)
        for report in reports().values()
        for number, table in enumerate(report.tables)
        for position, id in enumerate(table.systems)
    }


def _tables() -> Iterator[tuple[tuple[str, int], Report | None, PrintedTable | None]]:
    for report in reports().values():
        for number, table in enumerate(report.tables):
            yield (report.key, number), report, table
    yield ("", 0), None, None
