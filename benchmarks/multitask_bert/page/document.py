"""Blocks of a page, which Markdown and HTML can both draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Span:
    """A stretch of text in a style of its own; only ``code`` and ``strong`` show in Markdown."""

    text: str
    style: Literal["code", "strong", "quiet", "good", "bad"]


Text: TypeAlias = str | Span | Sequence[str | Span]


@dataclass(frozen=True)
class Stack:
    """The cell of a table with several lines; one line with ``│`` between them in Markdown.

    HTML, where there is room, puts a label before each line that has one.
    """

    lines: tuple[Text, ...]
    labels: tuple[str, ...] = ()


Cell: TypeAlias = Text | Stack


@dataclass(frozen=True)
class Heading:
    title: Text
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: Text


@dataclass(frozen=True)
class Items:
    """A list, numbered from ``first`` where that is given."""

    texts: tuple[Text, ...]
    first: int | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    The last ``num_references`` rows are there to read the others against. ``is_prose`` marks a last
    column of running text.
    """

    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: Text = ""
    num_references: int = 0
    is_prose: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows)

    @classmethod
    def of(cls, header: Iterable[Cell], rows: Iterable[Iterable[Cell]]) -> Table:
        """Take a header and rows of any kind.

        Example:
            >>> Table.of(["", "count"], [["all", "7"]]).rows
            (('all', '7'),)
        """
        return cls(tuple(header), tuple(tuple(row) for row in rows))


@dataclass(frozen=True)
class Figure:
    """A picture: a path relative to the page, and what it shows, for those who cannot see it."""

    title: str
    path: Path
    description: str


@dataclass(frozen=True)
class Code:
    """Lines that are drawn as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Details:
    """Blocks folded away behind a line."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False


Block: TypeAlias = Heading | Paragraph | Items | Table | Figure | Code | Details


def code(text: object) -> Span:
    return Span(str(text), "code")


def strong(text: object) -> Span:
    return Span(str(text), "strong")


def quiet(text: object) -> Span:
    return Span(str(text), "quiet")


def joined(texts: Iterable[Text], separator: str = ", ") -> tuple[str | Span, ...]:
    """Put texts after each other.

    Example:
        >>> joined(["a", code("b")])
        ('a', ', ', Span(text='b', style='code'))
    """
    parts: list[str | Span] = []
    for text in texts:
        if parts:
            parts.append(separator)
        parts += spans(text)
    return tuple(parts)


def spans(text: Text) -> tuple[str | Span, ...]:
    """Take a text apart.

    Example:
        >>> spans("plain")
        ('plain',)
    """
    return (text,) if isinstance(text, str | Span) else tuple(text)


def plain(text: Text) -> str:
    """Give a text without its styles.

    Example:
        >>> plain(("recipe ", code("a/b")))
        'recipe a/b'
    """
    return "".join(part if isinstance(part, str) else part.text for part in spans(text))


def with_code(text: str) -> tuple[str | Span, ...]:
    """Take the stretches between backticks as code.

    Example:
        >>> with_code("needs `a/b`.")
        ('needs ', Span(text='a/b', style='code'), '.')
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return (text,)
    found = (code(part) if number % 2 else part for number, part in enumerate(parts))
    return tuple(part for part in found if part)
