"""Markdown, line by line: tables that line up as plain text too, and quoted examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_TEXT = 400  # characters of a quoted text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns line up as plain text too."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""]


def bullets(texts: Iterable[str]) -> list[str]:
    """Lines of a list."""
    return [*(f"- {text}" for text in texts), ""]


@dataclass
class Page:
    """Lines of Markdown, and the cells of their tables.

    Example:
        >>> page = Page()
        >>> page.table(["a", "b"], [["1", "2 | 3"]])
        >>> page.lines[2]
        '| 1 | 2 \\\\| 3 |'
    """

    lines: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    def add(self, page: Page) -> None:
        self.lines += page.lines
        self.cells += page.cells

    def heading(self, title: str, level: int = 2) -> None:
        self.lines += ["#" * level + " " + title, ""]

    def paragraph(self, text: str) -> None:
        self.lines += [text, ""]

    def bullets(self, texts: Iterable[str]) -> None:
        self.lines += bullets(texts)

    def image(self, title: str, path: Path) -> None:
        self.lines += [f"![{title}]({path.as_posix()})", ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.cells += [cell for row in rows for cell in row]
        self.lines += table(header, rows)

    def examples(self, title: str, found: Sequence[tuple[str, Sequence[str]]], total: int) -> None:
        """Quote texts below a line each, as they are and folded away; nothing where there is none.

        Args:
            title: seen while they are folded.
            found: a line about each example, and its texts.
            total: the number that these were chosen from.
        """
        lines = []
        for remark, texts in found:
            lines.append(remark)
            # Indented by four, no text can close the block, whatever it holds.
            lines += [f"    {_shortened(text)}" for text in texts]
        if lines:
            summary = f"{title[:1].upper()}{title[1:]}: {len(found)} of {total}"
            self.lines += ["<details>", f"<summary>{summary}</summary>", "", "```text"]
            self.lines += [*lines, "```", "", "</details>", ""]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."
