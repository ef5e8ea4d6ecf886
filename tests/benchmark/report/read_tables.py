"""Tables and figures read back from a report."""

from __future__ import annotations

import sys

from tests.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def tables_of(text: str) -> list[list[dict[str, str]]]:
    """Give the rows of every table by column; of a title of several lines, the metric's counts."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            header, _, *rows = (
                [cell.strip() for cell in line.strip("|").split(" | ")]
                for line in block.splitlines()
            )
            titles = [title.split(" │ ")[:2][-1] for title in header]
            found.append([dict(zip(titles, row, strict=True)) for row in rows])
    return found


def row_of(text: str, name: str, table: int = 0) -> dict[str, str]:
    """Give the cells of the row that begins with a name, by column."""
    rows = tables_of(text)[table]
    (row,) = [row for row in rows if next(iter(row.values())).split(" │ ")[0] == name]
    return row


PUBLISHED = tomllib.loads((ROOT / "benchmarks/multitask_bert/report/published.toml").read_text())
