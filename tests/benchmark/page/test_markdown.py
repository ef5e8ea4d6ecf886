"""Pages of Markdown against the lines that a reader should see."""

from __future__ import annotations

from pathlib import Path

from benchmarks.multitask_bert.page.markdown import MAX_TEXT, Page


def test_a_table_lines_up() -> None:
    page = Page()
    page.table(["pairs", "n"], [["all", "1234"], ["a | b", "5"]])
    assert page.lines == [
        "| pairs  | n    |",
        "|--------|------|",
        "| all    | 1234 |",
        "| a \\| b | 5    |",
        "",
    ]
    assert page.cells == ["all", "1234", "a | b", "5"]


def test_lines_in_their_order() -> None:
    page, other = Page(), Page()
    page.heading("Title", 1)
    other.paragraph("Text.")
    other.bullets(["one", "two"])
    other.image("a plot", Path("plots") / "a.png")
    page.add(other)
    expected = ["# Title", "", "Text.", "", "- one", "- two", "", "![a plot](plots/a.png)", ""]
    assert page.lines == expected


def test_quoted_texts_cannot_leave_their_block() -> None:
    page = Page()
    page.examples("worst of all", [("id 1", ("```", "</details>\n# no heading"))], total=7)
    assert page.lines == [
        "<details>",
        "<summary>Worst of all: 1 of 7</summary>",
        "",
        "```text",
        "id 1",
        "    ```",
        "    </details> # no heading",
        "```",
        "",
        "</details>",
        "",
    ]


def test_long_texts_are_shortened_and_missing_ones_left_out() -> None:
    page = Page()
    page.examples("none", [], total=0)
    assert page.lines == []
    page.examples("long", [("id", ("x" * (MAX_TEXT + 1),))], total=1)
    (line,) = [line.strip() for line in page.lines if "xxx" in line]
    assert len(line) == MAX_TEXT
    assert line.endswith("...")
