"""Quoted examples against the lines that a reader should see of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.multitask_bert.errors.quotes import MAX_TEXT, quote
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown


def test_quoted_texts_cannot_leave_their_block() -> None:
    blocks = list(quote("worst of all", [("id 1", ("```", "</details>\n# no heading"))], total=7))
    assert to_markdown(blocks).split("\n") == [
        "<details>",
        "<summary>Worst of all: 1 of 7</summary>",
        "",
        "    id 1",
        "        ```",
        "        </details> # no heading",
        "",
        "</details>",
        "",
    ]
    page = to_html(blocks, "a page", Path())
    assert page.count("</details>") == 1
    assert "    &lt;/details&gt; # no heading" in page


def test_long_texts_are_shortened_and_missing_ones_left_out() -> None:
    assert list(quote("none", [], total=0)) == []
    blocks = quote("long", [("id", ("x" * (MAX_TEXT + 1),))], total=1)
    (line,) = [line.strip() for line in to_markdown(blocks).split("\n") if "xxx" in line]
    assert len(line) == MAX_TEXT
    assert line.endswith("...")
