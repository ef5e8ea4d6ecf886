"""The site of `make docs` against the Markdown and the library, link by link and in a browser."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import gradsurgery
from tests.benchmark.page.browser import answer_of, needs_browser
from tests.paths import ROOT

SIZES = {"phone": 390, "desktop": 1440}  # CSS pixels
LOOKED_AT = (
    "index",
    "getting-started",
    "which-method",
    "methods",
    "coming-from",
    "guides/amp",
    "api",
    "mathematics",
    "performance",
    "benchmark",
)
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("furo", "myst_parser", "sphinx"))),
    reason="the extra `docs` is not installed; `make setup` does",
)
# Reads every frame once all of them have loaded and the search has had time to answer.
PROBE = """
const scrolls = (each) => ["auto", "scroll"].includes(getComputedStyle(each).overflowX);
const held = (each) =>
  each && each.tagName !== "BODY" && (scrolls(each) || held(each.parentElement));
addEventListener("load", () => setTimeout(() => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    found[frame.id] = {
      title: page.title,
      overflow: page.documentElement.scrollWidth - width,
      wide: [...page.querySelectorAll("article *")].filter(
        (each) => each.getBoundingClientRect().right > width + 1 && !held(each)
      ).map((each) => each.outerHTML.slice(0, 80)),
      hosts: frame.contentWindow.performance.getEntriesByType("resource")
        .map((entry) => new URL(entry.name).host).filter((host) => host),
      results: [...page.querySelectorAll("ul.search li a")].map((link) => link.textContent),
    };
  }
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
}, 5000));
"""


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, from one folder to another."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t\$\(BIN\)/python (-m sphinx .*)$", makefile, re.MULTILINE)
    *options, docs, site = shlex.split(line)
    assert (docs, site) == ("docs", "site")
    options[options.index("--doctree-dir") + 1] = f"{target}-read"
    options += ["--conf-dir", str(ROOT / "docs"), str(source), str(target)]
    return subprocess.run([sys.executable, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "docs", folder)
    return folder, done.stdout + done.stderr, done.returncode


@pytest.fixture
def site(built: tuple[Path, str, int]) -> Path:
    return built[0]


class Page(HTMLParser):
    """The anchors of a page, and what it refers to: (element, its attributes, address)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors = {""}
        self.references: list[tuple[str, Mapping[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of_tag = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := of_tag.get(name))}
        for name in ("href", "src", "srcset", "data", "poster", "action"):
            if (address := of_tag.get(name)) is not None:
                self.references.append((tag, of_tag, address))


@cache
def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_it_builds_without_a_warning(built: tuple[Path, str, int]) -> None:
    folder, said, status = built
    assert (said, status) == ("", 0)
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    written = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    assert {path.with_suffix(".html").as_posix() for path in written} <= pages
    assert {f"results/{name}.html" for name in ("two-by-two", "sweep", "epochs")} <= pages


def test_the_reports_are_whole_pages(site: Path) -> None:
    """The site has what `report` writes: nothing squeezed into a column, and no more than 3 MB."""
    for path in (site / "results").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "<title>Multi-task BERT on data</title>" in page
        assert "Does it help here?" in page
        assert 'src="data:image/svg+xml' in page
        assert path.stat().st_size < 3_000_000


def test_faults_fail_the_build(tmp_path: Path) -> None:
    faults = {
        "[away](nowhere.md)": "nowhere.md",
        "[to](page.md#no-such-heading)": "no-such-heading",
        "$\\nonsense$": "nonsense",
        "![](nowhere.png)": "nowhere.png",
        "```{eval-rst}\n:func:`gradsurgery.nothing`\n```": "gradsurgery.nothing",
        "```{eval-rst}\n.. autofunction:: gradsurgery.missing\n```": "missing",
        "```{unheard}\n```": "unheard",
    }
    source = tmp_path / "docs"
    source.mkdir()
    (source / "index.md").write_text("# Title\n\n" + "\n\n".join(faults), encoding="utf-8")
    (source / "page.md").write_text("---\norphan:\n---\n\n# Page\n", encoding="utf-8")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    for said in faults.values():
        assert said in done.stderr


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    broken, num_links = [], 0
    for path in site.rglob("*.html"):
        for _, _, address in page_of(path).references:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            num_links += 1
            is_page = target.suffix == ".html"
            if not target.is_file() or (
                is_page and unquote(parts.fragment) not in page_of(target).anchors
            ):
                broken.append((path.name, address))
    assert broken == []
    assert num_links > 1000


def test_pages_link_to_pages(site: Path) -> None:
    """No link of the text leads to a file that a reader would have to download."""
    for path in site.rglob("*.html"):
        assert not [
            address for _, _, address in page_of(path).references if "_downloads" in address
        ]
    links = {address for _, _, address in page_of(site / "index.html").references}
    assert {
        "getting-started.html",
        "guides/index.html",
        "changelog.html",
        "contributing.html",
    } <= links


@pytest.mark.parametrize("name", gradsurgery.__all__)
def test_every_public_name_is_described(site: Path, name: str) -> None:
    anchors = page_of(site / "api.html").anchors
    assert f"gradsurgery.{name}" in anchors
    described = getattr(gradsurgery, name)
    if inspect.isclass(described):
        bases = [
            each.__name__ for each in described.__mro__ if each.__name__ in gradsurgery.__all__
        ]
        for member in set(public_members(described)):
            assert any(f"gradsurgery.{base}.{member}" in anchors for base in bases), member


def public_members(described: type) -> Iterator[str]:
    """Methods and properties of ours that have a docstring."""
    for name, value in inspect.getmembers(described):
        function = value.fget if isinstance(value, property) else value
        is_ours = (getattr(function, "__module__", None) or "").startswith("gradsurgery")
        if is_ours and not name.startswith("_") and inspect.getdoc(function):
            yield name


def test_docstrings_are_rendered(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    (described,) = re.findall(
        r'<dt[^>]* id="gradsurgery.PCGrad">.*?(?=<dt[^>]* id="grad)', page, re.S
    )
    for part in ("Parameters", "Raises", "Example", "<math", "Source: Tianhe Yu", "&gt;&gt;&gt;"):
        assert part in described
    for path in site.rglob("*.html"):
        if "_modules" not in path.parts:
            text = re.sub(
                r"<(pre|code)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S
            )
            assert not re.findall(r":(?:math|class|func|meth):|\\frac|\\sum|^Args:|\$\$", text), (
                path
            )


def test_nothing_comes_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        for tag, attributes, address in page_of(path).references:
            is_link = tag == "a" or (tag == "link" and attributes.get("rel") in ("next", "prev"))
            assert is_link or not (urlsplit(address).netloc), (path, address)
    for path in [*site.rglob("*.css"), *site.rglob("*.html")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            text = " ".join(re.findall(r"<style.*?</style>|style=\"[^\"]*\"", text, re.DOTALL))
        outside = re.findall(r"(?:url\(|@import\s)\s*[\"']?((?:\w+:)?//[^\"')\s;]+)", text)
        assert outside == [], path


@needs_browser
def test_in_a_browser(site: Path, tmp_path: Path) -> None:
    pages = {name: f"{name}.html" for name in LOOKED_AT} | {
        "search": "search.html?q=pcgrad_weights"
    }
    frames = "".join(
        f'<iframe id="{name} {size}" width="{width}" height="900" src="{site.as_uri()}/{page}">'
        "</iframe>"
        for name, page in pages.items()
        for size, width in SIZES.items()
    )
    html = f"<!DOCTYPE html><meta charset=utf-8><body>{frames}<script>{PROBE}</script>"
    found: dict[str, Any]
    found, said = answer_of(html, tmp_path)
    assert "CONSOLE" not in said
    assert len(found) == len(pages) * len(SIZES)
    for name, each in found.items():
        assert gradsurgery.__name__ in each["title"], name
        assert (each["overflow"], each["wide"], each["hosts"]) == (0, [], []), name
    assert any("pcgrad_weights" in result for result in found["search phone"]["results"])
