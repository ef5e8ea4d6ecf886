"""One HTML page from blocks: all it shows is inside the file, and it runs one script, ours."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path

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
    plain,
    spans,
)

SORT = Path(__file__).with_name("sort.js").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode("ascii")
# Whatever a text smuggles in, the browser then neither runs nor fetches anything: it runs a script
# of this digest alone.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; img-src data:; "
    "style-src 'unsafe-inline'; base-uri 'none'"
)


def to_html(
    blocks: Sequence[Block],
    title: str,
    folder: Path,
) -> str:
    """Draw blocks as a page with a table of contents.

    Arguments:
        blocks: What the page shows; its headings make the table of contents.
        title: Of the window.
        folder: Where the figures are, SVG files whose bytes go into the page.

    Raises:
        OSError: The file of a figure cannot be read.

    Example:
        >>> "&lt;b&gt;" in to_html([Heading("A <b>")], "a page", Path("."))
        True
    """
    writer = _Writer(folder)
    body = "\n".join(writer.lines(blocks))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    contents = "\n".join(_contents(writer.headings))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<nav aria-label="Contents">
<p>Contents</p>
{contents}
</nav>
<main id="content">
{body}
</main>
<script>{SORT}</script>
</body>
</html>
"""


class _Writer:
    """Blocks to lines of HTML; keeps the headings for the table of contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headings: list[tuple[int, str, str]] = []  # level, anchor, title

    def lines(self, blocks: Iterable[Block]) -> Iterator[str]:
        for block in blocks:
            match block:
                case Heading(title, level):
                    yield self._heading(title, level)
                case Paragraph(text):
                    yield f"<p>{inline(text)}</p>"
                case Items():
                    yield from _items(block)
                case Table():
                    yield from _table(block)
                case Figure():
                    yield from _figure(block, self.folder)
                case Code(lines):
                    yield f'<pre tabindex="0"><code>{escape(chr(10).join(lines))}</code></pre>'
                case Details(summary, inside, is_open):
                    yield f"<details{' open' if is_open else ''}>"
                    yield f"<summary>{escape(summary)}</summary>"
                    yield from self.lines(inside)
                    yield "</details>"

    def _heading(self, title: Text, level: int) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", plain(title).lower()).strip("-")[:60] or "part"
        taken = {anchor for _, anchor, _ in self.headings}
        anchor = next(a for n in count(1) if (a := f"{slug}-{n}" if n > 1 else slug) not in taken)
        self.headings.append((level, anchor, plain(title)))
        return f'<h{level} id="{anchor}">{inline(title)}</h{level}>'


def inline(text: Text) -> str:
    """Draw a text with its styles.

    Example:
        >>> inline(("a <b> ", Span("x & y", "code")))
        'a &lt;b&gt; <code>x &amp; y</code>'
    """
    return "".join(_span(part) for part in spans(text))


def _span(part: str | Span) -> str:
    if isinstance(part, str):
        return _escaped(part)
    if part.style == "code":
        # An id or a path may go on in the next line where it has a slash.
        return f"<code>{escape(part.text).replace('/', '/<wbr>')}</code>"
    tag = "strong" if part.style == "strong" else f'span class="{part.style}"'
    return f"<{tag}>{_escaped(part.text)}</{tag.partition(' ')[0]}>"


def _escaped(text: str) -> str:
    # A number stays on one line with its deviation, and both ends of an interval with each other.
    text = re.sub(r"(\[\S+,) (\S+\])", "\\1\N{NO-BREAK SPACE}\\2", escape(text))
    return re.sub(" ([±→]) | (?=[≠†])", lambda m: m[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Stack):
        return inline(cell)
    labels = (*cell.labels, *[""] * len(cell.lines))
    lines = []
    for line, label in zip(cell.lines, labels, strict=False):
        before = f'<span class="label">{escape(label)}</span>\N{NO-BREAK SPACE}' if label else ""
        lines.append(f"<div>{before}{inline(line)}</div>")
    return "".join(lines)


def _items(block: Items) -> Iterator[str]:
    tag, start = ("ul", "") if block.first is None else ("ol", f' start="{block.first}"')
    yield f"<{tag}{start}>"
    for text in block.texts:
        yield f"<li>{inline(text)}</li>"
    yield f"</{tag}>"


def _table(block: Table) -> Iterator[str]:
    if block.caption:
        yield f'<p class="caption">{inline(block.caption)}</p>'
    # The frame scrolls, by keyboard too, so that the header and the names of the rows can stay.
    yield '<div class="frame" tabindex="0">'
    yield '<table class="prose">' if block.is_prose else "<table>"
    yield "<thead><tr>"
    for cell in block.header:
        yield f'<th scope="col">{_cell(cell)}</th>'
    yield "</tr></thead>"
    yield "<tbody>"
    for number, (name, *cells) in enumerate(block.rows):
        is_reference = number >= len(block.rows) - block.num_references
        yield '<tr class="reference">' if is_reference else "<tr>"
        yield f'<th scope="row">{_cell(name)}</th>'
        for cell in cells:
            yield f"<td>{_cell(cell)}</td>"
        yield "</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</div>"


def _figure(block: Figure, folder: Path) -> Iterator[str]:
    content = (folder / block.path).read_bytes()
    # As a picture, a drawing can run nothing, and its names cannot meet those of the page.
    data = base64.b64encode(content).decode("ascii")
    found = re.search(rb'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', content)
    width, height = (round(float(points) / 0.75) for points in found.groups()) if found else (0, 0)
    yield "<figure>"
    yield (
        f'<img src="data:image/svg+xml;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(block.description)}">'
    )
    yield f"<figcaption>{escape(block.title)}</figcaption>"
    yield "</figure>"


def _contents(headings: Sequence[tuple[int, str, str]]) -> Iterator[str]:
    yield "<ul>"
    for level, anchor, title in headings:
        yield f'<li class="level-{level}"><a href="#{anchor}">{escape(title)}</a></li>'
    yield "</ul>"
