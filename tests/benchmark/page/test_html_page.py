"""The HTML page against the blocks it is drawn from, and in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.page.document import (
    Block,
    Code,
    Details,
    Figure,
    Heading,
    Items,
    Paragraph,
    Stack,
    Table,
    code,
    quiet,
    strong,
    with_code,
)
from benchmarks.multitask_bert.page.html_page import POLICY, SORT, to_html
from benchmarks.multitask_bert.page.markdown import inline, to_markdown
from benchmarks.multitask_bert.report.build import report
from tests.benchmark.page.browser import BROWSER, needs_browser
from tests.benchmark.records.made_up_runs import COSINE, PCGRAD, write_run

EVIL = "</td></details><script>document.title='owned'</script><img src=x onerror=\"y()\">`*[a](b:c)"
SIZES = {"phone": 390, "tablet": 768, "desktop": 1400}  # CSS pixels
# Reads what a frame of each width made of the page, once all of them have loaded.
PROBE = """
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, window = frame.contentWindow;
    const wide = [...page.querySelectorAll("main > *, details > *")].filter(
      (each) => each.getBoundingClientRect().right > page.documentElement.clientWidth + 1);
    const table = page.querySelector(".frame");
    table.scrollLeft = 0;
    const decisive = [...table.querySelectorAll("thead th")].slice(0, 7).every(
      (each) => each.getBoundingClientRect().right <= table.getBoundingClientRect().right);
    table.scrollLeft = 200;
    const name = table.querySelector("tbody th").getBoundingClientRect().left;
    found[frame.id] = {
      title: page.title,
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      wide: wide.map((each) => each.tagName),
      images: [...page.images].map((image) => [image.complete, image.naturalWidth, image.alt]),
      tables: [...page.querySelectorAll("table")].map((each) => each.tBodies[0].rows.length),
      fetched: window.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith("data:")),
      scripts: page.scripts.length,
      handlers: page.querySelectorAll("[onerror], [onclick], [onload]").length,
      links: [...page.querySelectorAll("nav a")].map(
        (link) => page.getElementById(link.hash.slice(1)) !== null),
      scrolled: table.scrollLeft,
      stays: name - table.getBoundingClientRect().left,
      heading: window.getComputedStyle(table.querySelector("thead th")).position,
      decisive,
      method: table.querySelectorAll("thead th")[1].textContent,
      folded: [...page.querySelectorAll("details")].filter((each) => !each.open).length,
      back: window.getComputedStyle(page.body).backgroundColor,
      text: window.getComputedStyle(page.body).color,
    };
  }
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
});
"""
PROBE_OF_ORDER = """
const frame = document.createElement("iframe");
frame.srcdoc = PAGE;
frame.onload = () => {
  const table = frame.contentDocument.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const found = [names()];
  for (const turn of [1, 2]) {
    table.tHead.rows[0].cells[1].click();
    found.push(names());
  }
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
};
document.body.append(frame);
"""


def svg(width: int, height: int) -> bytes:
    """An empty picture, of so many CSS pixels."""
    box = f'viewBox="0 0 {0.75 * width} {0.75 * height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}></svg>'.encode()


def blocks_of(text: str) -> list[Block]:
    """Every kind of block with a text in every place that takes one."""
    cells = (Stack((code(text), quiet(text)), ("", text)), text, strong(text), with_code(text))
    table = Table((text, "b", "c", Stack(("d", text))), (cells, cells), caption=text)
    return [
        Heading(text, 1),
        Heading((code(text), text)),
        Paragraph((text, code(text), strong(text))),
        Items((text, code(text))),
        Items((text, "two"), first=7),
        table,
        Figure(text, Path("a.svg"), text),
        Code((text, "two")),
        Details(text, (Paragraph(text), table)),
    ]


def test_blocks_as_html(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(svg(30, 20))
    page = to_html(blocks_of("x & y"), "t <i>", tmp_path)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    for expected in (
        "<title>t &lt;i&gt;</title>",
        '<h1 id="x-y">x &amp; y</h1>',
        '<a href="#x-y">x &amp; y</a>',
        '<h2 id="x-yx-y"><code>x &amp; y</code>x &amp; y</h2>',
        "<p>x &amp; y<code>x &amp; y</code><strong>x &amp; y</strong></p>",
        '<ol start="7">\n<li>x &amp; y</li>\n<li>two</li>\n</ol>',
        '<p class="caption">x &amp; y</p>',
        '<th scope="col"><div>d</div><div>x &amp; y</div></th>',
        '<th scope="row"><div><code>x &amp; y</code></div>',
        '<div><span class="label">x &amp; y</span>\N{NO-BREAK SPACE}'
        '<span class="quiet">x &amp; y</span></div>',
        'width="30" height="20" alt="x &amp; y">',
        "<figcaption>x &amp; y</figcaption>",
        "<code>x &amp; y\ntwo</code>",
        "<details>\n<summary>x &amp; y</summary>\n<p>x &amp; y</p>",
    ):
        assert expected in page


def test_the_last_rows_are_references(tmp_path: Path) -> None:
    table = Table(("a", "b"), (("1", "2"), ("3", "4"), ("5", "6")), num_references=2)
    page = to_html([table], "t", tmp_path)
    assert page.count('<tr class="reference">') == 2
    assert page.index('<th scope="row">1</th>') < page.index('<tr class="reference">')


@pytest.mark.parametrize(
    "text", [EVIL, "a\n\n# no heading\n- no item", "| a | b |", "<!--", "&lt;"]
)
def test_no_text_becomes_markup(tmp_path: Path, text: str) -> None:
    """The page with the text has the tags of the page with a harmless one."""
    (tmp_path / "a.svg").write_bytes(svg(3, 2))

    def tags(blocks: list[Block]) -> list[str]:
        page = to_html(blocks, text, tmp_path)
        content = page.partition("<body>")[2]
        return re.findall(r"<[/!]?[a-z-]+", content.replace("<wbr>", ""))

    assert tags(blocks_of(text)) == tags(blocks_of("harmless"))


def test_a_text_stays_itself_in_markdown() -> None:
    expected = EVIL.replace("<", "\\<").replace("`", "\\`").replace("*", "\\*")
    expected = expected.replace("](", "\\](")
    assert inline(EVIL) == expected
    assert inline(strong(EVIL)) == f"**{expected}**"
    assert inline(code(EVIL)) == f"``{EVIL}``"
    assert inline(code("`a``")) == "``` `a`` ```"
    assert inline("a_b _c_ [x] a < b") == "a_b \\_c\\_ [x] a < b"
    text, bare = to_markdown(blocks_of(EVIL)), to_markdown(blocks_of("harmless"))
    assert text.count("\n") == bare.count("\n")
    assert f"<summary>{escape(EVIL)}</summary>" in text
    assert to_markdown(blocks_of("a\n\n# b\n- c")).count("\n") == bare.count("\n") + 3
    assert "| a \\| b |" in to_markdown([Table(("h",), (("a | b",),))])


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(svg(3, 2))
    page = to_html(blocks_of("text"), "t", tmp_path)
    assert escape(POLICY) in page
    assert page.count("<script") == 1
    assert f"<script>{SORT}</script>" in page
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"' )>]*)", page)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def frames(page: str) -> str:
    """The page in frames of several widths, and the script that looks at them.

    A frame of ``srcdoc`` keeps the page's own policy, under which none of its scripts may run.
    """
    drawn = "".join(
        f'<iframe id="{name}" width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
        for name, width in SIZES.items()
    )
    return f"<!DOCTYPE html><meta charset=utf-8><body>{drawn}<script>{PROBE}</script>"


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Load a file in a browser: the document as it ended up, and what the browser said."""

    def call(path: Path, *options: str) -> tuple[str, str]:
        assert BROWSER is not None
        done = subprocess.run(
            [
                BROWSER,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync"),
                "--host-resolver-rules=MAP * ~NOTFOUND",
                *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000"),
                *(f"--user-data-dir={tmp_path / 'profile'}", *options, "--dump-dom"),
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, done.stderr

    return call


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A report of three runs, of which one has a name that would be a script."""
    write_run(tmp_path / "runs", PCGRAD, num_steps=40)
    write_run(tmp_path / "runs", COSINE, num_steps=40, description=EVIL)
    folder = write_run(tmp_path / "runs", "some/own", num_steps=40, deviations=[EVIL])
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["id"] = f"some/{EVIL}"
    (folder / "config.json").write_text(json.dumps(config))
    report([tmp_path / "runs"])
    return (tmp_path / "runs/report.html").read_text(encoding="utf-8")


def seen(browse: Callable[..., tuple[str, str]], folder: Path, page: str, *options: str) -> Any:
    (folder / "frames.html").write_text(frames(page), encoding="utf-8")
    document, _ = browse(folder / "frames.html", *options)
    (answer,) = re.findall(r'<pre id="answer">(.*?)</pre>', document, flags=re.DOTALL)
    return json.loads(answer.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@needs_browser
def test_in_a_browser(browse: Callable[..., tuple[str, str]], tmp_path: Path, page: str) -> None:
    found: Mapping[str, Any] = seen(browse, tmp_path, page)
    assert found.keys() == SIZES.keys()
    for name, each in found.items():
        assert each["title"] == "Multi-task BERT on folder", name
        assert (each["overflow"], each["wide"]) == (0, []), name
        assert len(each["images"]) == page.count("<img ") >= 5
        assert all(done and width > 400 and len(alt) > 20 for done, width, alt in each["images"])
        # Two tables of results with their constant predictor, differences, a claim and 29 that are
        # not tested, conflicts, every run.
        assert each["tables"] == [3, 2, 2, 1, 29, 3, 3]
        assert (each["scripts"], each["handlers"], each["fetched"]) == (1, 0, [])
        assert len(each["links"]) >= 8
        assert all(each["links"])
        assert each["heading"] == "sticky"
        assert each["method"] == "method"
        assert each["folded"] >= 2
    # System, method, three metrics and both scores: nothing decisive is behind a scroll bar.
    assert found["desktop"]["decisive"]
    # The table is wider than a phone: it scrolls by itself, and the names of its rows stay.
    assert found["phone"]["scrolled"] == 200
    assert abs(found["phone"]["stays"]) <= 2


@needs_browser
def test_a_title_sorts_its_column(browse: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    cells = [("a", "0.5 ± 0.1"), ("b", "-0.25"), ("c", "≈ 1,234"), ("d", "-"), ("constant", "7")]
    table = Table.of(["name", "number"], cells)
    page = to_html([dataclasses.replace(table, num_references=1)], "t", tmp_path)
    probe = PROBE_OF_ORDER.replace("PAGE", json.dumps(page).replace("</", "<\\/"))
    (tmp_path / "sort.html").write_text(f"<meta charset=utf-8><body><script>{probe}</script>")
    document, _ = browse(tmp_path / "sort.html")
    (answer,) = re.findall(r'<pre id="answer">(.*?)</pre>', document, flags=re.DOTALL)
    assert json.loads(answer) == [
        ["a", "b", "c", "d", "constant"],
        ["c", "a", "b", "d", "constant"],
        ["b", "a", "c", "d", "constant"],
    ]


@needs_browser
def test_light_and_dark(browse: Callable[..., tuple[str, str]], tmp_path: Path, page: str) -> None:
    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    light = seen(browse, tmp_path, page, "--blink-settings=preferredColorScheme=1")["phone"]
    dark = seen(browse, tmp_path, page, "--blink-settings=preferredColorScheme=0")["phone"]
    assert brightness(light["back"]) > 230 > 60 > brightness(light["text"])
    assert brightness(dark["text"]) > 200 > 60 > brightness(dark["back"])


@needs_browser
def test_the_browser_has_nothing_to_say(
    browse: Callable[..., tuple[str, str]], tmp_path: Path, page: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    document, said = browse(path)
    assert "<title>Multi-task BERT on folder</title>" in document
    assert "CONSOLE" not in said
    # The browser would have told of a script, and of anything to fetch.
    for intruder in (
        "<script>1</script>",
        '<img src="http://localhost:9/a.svg" alt="">',
        '<iframe src="http://localhost:9/"></iframe>',
    ):
        path.write_text(page.replace("</main>", f"{intruder}</main>"), encoding="utf-8")
        _, said = browse(path)
        assert "Content Security Policy" in said
