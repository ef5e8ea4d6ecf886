"""Blocks as Markdown, in which tables line up as plain text too."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from benchmarks.multitask_bert.page.document import (
    Block,
    Cell,
    Code,
    Details,
    Figure,
    Heading,
    Items,
    Paragraph,
    Span,
    Stack,
    Table,
    Text,
    spans,
)


def to_markdown(blocks: Iterable[Block]) -> str:
    """Draw blocks as Markdown in which no text can become markup.

    Example:
        >>> to_markdown([Heading("A <b>", 2), Paragraph(("of ", Span("x|y", "code")))])
        '## A \\\\<b>\\n\\nof `x|y`\\n'
    """
    return "\n".join(line for block in blocks for line in _lines(block))


def _lines(block: Block) -> list[str]:
    match block:
        case Heading(title, level):
            return ["#" * level + " " + inline(title), ""]
        case Paragraph(text):
            return [inline(text), ""]
        case Items(texts, first):
            marks = ("-" if first is None else f"{first + i}." for i in range(len(texts)))
            return [*(f"{m} {inline(t)}" for m, t in zip(marks, texts, strict=True)), ""]
        case Table(header, rows, caption):
            drawn = table([_cell(c) for c in header], [[_cell(c) for c in row] for row in rows])
            return [*([inline(caption), ""] if caption else []), *drawn]
        case Figure(title, path):
            return [f"![{inline(title)}]({path.as_posix()})", ""]
        case Code(lines):
            # Indented by four, no line can close the block, whatever it holds.
            return [*(f"    {part}" for line in lines for part in line.splitlines()), ""]
        case Details(summary, blocks):
            inside = [line for each in blocks for line in _lines(each)]
            # A blank line would end the HTML.
            line = html.escape(" ".join(summary.split()))
            fold = ["<details>", f"<summary>{line}</summary>", ""]
            return [*fold, *inside, "</details>", ""]


def inline(text: Text) -> str:
    """Draw a text on one line.

    Example:
        >>> inline(("a_b * c ", Span("x`y", "code")))
        'a_b \\\\* c ``x`y``'
    """
    return "".join(_span(part) for part in spans(text))


def _cell(cell: Cell) -> str:
    if isinstance(cell, Stack):
        return " │ ".join(inline(line) for line in cell.lines)
    return inline(cell)


def _span(part: str | Span) -> str:
    text = part if isinstance(part, str) else part.text
    style = "" if isinstance(part, str) else part.style
    if style == "code":
        text = re.sub(r"\s+", " ", text)
        fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
        pad = " " if text.startswith("`") or text.endswith("`") else ""
        return f"{fence}{pad}{text}{pad}{fence}"
    return f"**{_escaped(text)}**" if style == "strong" else _escaped(text)


def _escaped(text: str) -> str:
    # A bracket alone is harmless: it takes `](`, `][` or `]:` to make a link.
    markup = r"[\\`*~]|\](?=[(\[:])|<(?=\S)|(?<!\w)_|_(?!\w)"
    return re.sub(markup, r"\\\g<0>", re.sub(r"\s+", " ", text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Draw lines whose columns line up as plain text too."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""]
