"""Examples quoted in an analysis: a line about each, and its texts as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.multitask_bert.page.document import Block, Code, Details

MAX_TEXT = 400  # characters of a quoted text


def quote(title: str, found: Sequence[tuple[str, Sequence[str]]], total: int) -> Iterator[Block]:
    """Quote texts below a line each, folded away; nothing where there is none.

    Args:
        title: seen while they are folded.
        found: a line about each example, and its texts.
        total: the number that these were chosen from.

    Example:
        >>> next(quote("worst", [("id 1", ["A text."])], 7)).summary
        'Worst: 1 of 7'
    """
    lines: list[str] = []
    for remark, texts in found:
        lines.append(remark)
        lines += [f"    {_shortened(text)}" for text in texts]
    if lines:
        summary = f"{title[:1].upper()}{title[1:]}: {len(found)} of {total}"
        yield Details(summary, (Code(tuple(lines)),))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."
