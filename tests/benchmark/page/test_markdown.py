"""Blocks drawn as Markdown against the lines that a reader should see."""

from __future__ import annotations

from pathlib import Path

from benchmarks.multitask_bert.page.document import Figure, Heading, Items, Paragraph, Table
from benchmarks.multitask_bert.page.markdown import to_markdown


def test_a_table_lines_up() -> None:
    table = Table.of(["pairs", "n"], [["all", "1234"], ["a | b", "5"]])
    assert to_markdown([table]).split("\n") == [
        "| pairs  | n    |",
        "|--------|------|",
        "| all    | 1234 |",
        "| a \\| b | 5    |",
        "",
    ]
    assert table.rows == (("all", "1234"), ("a | b", "5"))


def test_lines_in_their_order() -> None:
    blocks = [
        Heading("Title", 1),
        Paragraph("Text."),
        Items(("one", "two")),
        Figure("a plot", Path("plots") / "a.png", "what it shows"),
    ]
    expected = ["# Title", "", "Text.", "", "- one", "- two", "", "![a plot](plots/a.png)", ""]
    assert to_markdown(blocks).split("\n") == expected
