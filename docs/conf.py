"""The site: `make docs` builds it from the Markdown here and the docstrings, and any warning fails.

A page in the repository's root becomes one of the site by an `include` in the page of `ROOT_PAGES`,
so that it is written once and its links work in both places. Formulas become MathML while the site
is built. Nothing is fetched, neither by the build nor by a reader.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import gradsurgery

project = "gradsurgery"
release = gradsurgery.__version__
html_title = f"gradsurgery {release}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = html_use_index = False
smartquotes = False  # they make a dash of the two before an option

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["static"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# A reference that leads nowhere is a warning. These lead to other projects, whose indices would
# have to be fetched, and to what a signature alone names.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:\w+", r"(torch|collections|contextlib|typing|matplotlib)\..*"),
    (r"py:class", r"Optimizer|ProcessGroup|Axes|gradsurgery\.[\w.]+\.Batch"),
    (
        r"py:class",
        r"Granularity|Memory|Monitor|OnNonfinite|Reduction|Scope|Shared|Weighting|Options|SumOptions|Normalizer|Length|.*\.TaskBlock|.*Method",
    ),  # their choices stand beside the argument
]

DOCS = Path(__file__).parent
RECORDS = DOCS.parent / "benchmarks" / "multitask_bert" / "results"
REPORTS = ("two-by-two", "sweep", "epochs")
sys.path.insert(0, str(DOCS.parent))  # for the benchmark, which no wheel holds
ROOT_PAGES = {
    DOCS.parent / "README.md": DOCS / "index.md",
    DOCS.parent / "CHANGELOG.md": DOCS / "changelog.md",
    DOCS.parent / "CONTRIBUTING.md": DOCS / "contributing.md",
}


def with_links_of_the_site(text: str, written_in: Path, shown_in: Path) -> str:
    """Markdown whose links lead from the page of the site to pages and pictures of the site."""

    def moved(link: re.Match[str]) -> str:
        target = (written_in.parent / link[1]).resolve()
        return "](" + os.path.relpath(ROOT_PAGES.get(target, target), shown_in.parent)

    return re.sub(r"\]\(([\w./-]+\.(?:md|png))(?=[#)])", moved, text)


def read_page(app: Sphinx, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    content[0] = with_links_of_the_site(content[0], page, page)


def read_include(app: Sphinx, included: Path, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    content[0] = with_links_of_the_site(content[0], (DOCS / included).resolve(), page)


def write_dashes(app: Sphinx, page: nodes.document) -> None:
    """Between an argument and what it is."""
    for text in list(page.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def look_in_base(app: Sphinx, env: Any, node: Any, text: nodes.Node) -> nodes.Node | None:
    """A method that a subclass speaks of is its own, though it is described at the base class."""
    if node["reftype"] != "meth":
        return None
    target = f"gradsurgery.MultiTaskOptimizer.{node['reftarget']}"
    python = env.get_domain("py")
    found: nodes.Node | None = python.resolve_xref(
        env, node["refdoc"], app.builder, "meth", target, node, text
    )
    return found


def write_reports(app: Sphinx, error: Exception | None) -> None:
    """Make the benchmark's reports of its records, as pages of their own beside the site's."""
    if error is not None or app.builder.name != "html" or Path(app.srcdir) != DOCS:
        return
    from benchmarks.multitask_bert.report.build import report

    for name in REPORTS:
        with tempfile.TemporaryDirectory() as folder:
            page = report([RECORDS / name], Path(folder)).page
            (Path(app.outdir) / "results").mkdir(exist_ok=True)
            shutil.copyfile(page, Path(app.outdir) / "results" / f"{name}.html")


def write_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    is_block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=is_block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        formula = ""
    translator.body.append(f'<div class="formula">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("source-read", read_page)
    app.connect("include-read", read_include)
    app.connect("doctree-read", write_dashes)
    app.connect("missing-reference", look_in_base)
    app.connect("build-finished", write_reports)


html_math_renderer = "mathml"
