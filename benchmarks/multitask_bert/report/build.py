"""Run folders to a report: our metrics beside the published ones, as Markdown and as a page.

It derives everything from what the runs left in their folders, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.multitask_bert.claims.findings import Finding, findings
from benchmarks.multitask_bert.claims.paired import MIN_PAIRS
from benchmarks.multitask_bert.claims.verdicts import MIN_SEEDS
from benchmarks.multitask_bert.page.document import (
    Block,
    Details,
    Figure,
    Heading,
    Items,
    Paragraph,
    Span,
    Table,
    Text,
    strong,
    with_code,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.records.rows import Row, Section, find_runs, group_by_data
from benchmarks.multitask_bert.report.appendix import appendix
from benchmarks.multitask_bert.report.conflicts import conflict_table
from benchmarks.multitask_bert.report.deviations import KINDS, Deviation, number_deviations
from benchmarks.multitask_bert.report.differences import (
    Compared,
    assumptions,
    compare_twins,
    difference_table,
)
from benchmarks.multitask_bert.report.groups import Group, group_rows
from benchmarks.multitask_bert.report.plots.all import remove_plots, write_plots
from benchmarks.multitask_bert.report.remarks import about_report, gravest, reading
from benchmarks.multitask_bert.report.summary import INDENT, summary
from benchmarks.multitask_bert.report.tables import legacy_table, result_table, scale_note
from benchmarks.multitask_bert.significance import NUM_ERRORS

TITLE = "Multi-task BERT"
VERDICT_STYLES: Mapping[str, Span] = {
    "supported": Span("supported", "good"),
    "contradicted": Span("contradicted", "bad"),
    "not tested": Span("not tested", "quiet"),
}
GRADIENT_PLOTS = ("conflict-rates", "cosines", "layer-cosines")


@dataclass(frozen=True)
class Report:
    """The summary of a report, and where its files are.

    Arguments:
        summary: About ten plain lines for each source of data.
        markdown: All of it, as in the file.
    """

    summary: str
    markdown: str
    page: Path
    text_page: Path


def report(directories: Sequence[Path], out: Path | None = None) -> Report:
    """Write ``report.md``, ``report.html`` and ``plots/*.svg`` from run folders.

    The HTML page holds its plots and needs no other file.

    Arguments:
        directories: Folders that hold run folders, at any depth, or are run folders.
        out: Where to write; the first of the directories by default.

    Raises:
        ValueError: A directory is missing, or no run in any of them can be read.
    """
    runs, complaints = find_runs(directories)
    folder = Path(directories[0] if out is None else out)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    remove_plots(folder)
    sections = group_by_data(runs)
    blocks: list[Block] = []
    told: list[str] = [f"not read: {complaint}" for complaint in complaints]
    if len(sections) > 1:
        text = f"{len(sections)} sources of data: compare no number across them."
        blocks.append(Paragraph(strong(text)))
        told.append(text)
    for index, section in enumerate(sections):
        prefix = f"{index + 1}-" if len(sections) > 1 else ""
        groups = group_rows(section)
        rows = [row for group in groups for row in group.rows]
        compared = compare_twins(section, rows)
        lines = summary(section, rows, compared)
        told += [line.replace("`", "") for line in lines]
        found = Found(section, groups, rows, compared, lines)
        blocks += _section(found, complaints if index == 0 else [], folder, prefix)
    markdown = to_markdown(blocks)
    text_page, page = folder / "report.md", folder / "report.html"
    text_page.write_text(markdown, encoding="utf-8")
    title = f"{TITLE} on {', '.join(each.title for each in sections)}"
    page.write_text(to_html(blocks, title, folder), encoding="utf-8")
    return Report("\n".join(told), markdown, page, text_page)


@dataclass(frozen=True)
class Found:
    """A source of data with all that a report says of it."""

    section: Section
    groups: Sequence[Group]
    rows: Sequence[Row]
    compared: Sequence[Compared]
    summary: Sequence[str]


def _section(found: Found, complaints: Sequence[str], folder: Path, prefix: str) -> Iterator[Block]:
    section, groups = found.section, found.groups
    plots = write_plots(section, groups, folder, prefix)
    numbers = number_deviations(section)
    notice = section.notice[:1].upper() + section.notice[1:].rstrip(".") + "."
    if section.is_synthetic:
        yield Paragraph((strong("SYNTHETIC DATA, NOT SST, QUORA AND STS."), f" {notice}"))
    else:
        yield Paragraph(notice if notice.startswith("Data") else f"Data: {notice}")
    yield Heading(f"{TITLE} on {section.title}: dev metrics", 1)
    *lines, answer = found.summary
    yield Paragraph(strong(answer))
    yield Items(tuple(with_code(line) for line in lines if not line.startswith(INDENT)))
    if inner := tuple(with_code(line.strip()) for line in lines if line.startswith(INDENT)):
        yield Items(inner)
    yield from _figures(plots.get("differences", {}))
    if texts := tuple(gravest(section, complaints)):
        yield Items(texts)
    yield Heading("Results beside the published numbers")
    yield Items(tuple(reading(section)))
    for group in groups:
        yield Heading(group.title, 3)
        if texts := tuple(about_report(group)):
            yield Items(texts)
        yield result_table(section, group, numbers)
    yield from _figures(plots.get("methods", {}))
    if found.compared:
        yield Heading("Differences, paired by seed")
        yield Items(tuple(assumptions(found.compared, found.rows)))
        yield difference_table(found.compared)
    yield from _claims(section)
    yield from _deviations(numbers)
    yield from _gradients(section, groups, plots)
    if curves := [plots[name] for name in ("learning-curves", "training-losses") if name in plots]:
        yield Heading("Curves")
        yield from _figures(*curves)
    if legacy := legacy_table(section, [row for group in groups for row in group.rows]):
        yield Heading("As older evaluation code would have it")
        yield Paragraph(
            "Until February 2023 the starter code evaluated STS with a sigmoid on the outputs, "
            "with labels cut to integers, or with both. A model that gives a probability where a "
            "logit is asked for has its Quora outputs go through two sigmoids."
        )
        yield legacy
    yield Heading("Runs")
    yield appendix(section)


def _claims(section: Section) -> Iterator[Block]:
    found = findings(section)
    if not found:
        return
    yield Heading("What the reports claim")
    yield Paragraph(
        f"± is the standard error. A number decides where it lies more than {NUM_ERRORS:g} of them "
        f"within or outside of what is claimed, over at least {MIN_SEEDS} seeds. A difference of "
        f"{MIN_PAIRS} pairs of seeds or more is decided by their interval of 95 %."
    )
    tested = [each for each in found if each.verdict != "not tested"]
    if tested:
        yield _claim_table(tested, scale_note(section.rows))
    if rest := [each for each in found if each.verdict == "not tested"]:
        title = f"{len(rest)} of {len(found)} claims not tested"
        yield Details(title, (_claim_table(rest, scale_note(section.rows)),))


def _claim_table(found: Sequence[Finding], caption: Text) -> Table:
    rows = tuple(
        (
            each.id,
            with_code(each.claim),
            each.source,
            VERDICT_STYLES.get(each.verdict, each.verdict),
            with_code(each.evidence),
        )
        for each in found
    )
    return Table(("no.", "claim", "of", "verdict", "evidence"), rows, caption, is_prose=True)


def _deviations(numbers: Mapping[Deviation, int]) -> Iterator[Block]:
    if not numbers:
        return
    yield Heading("Deviations from the published systems")
    for kind, title in KINDS.items():
        texts = tuple(each.text for each in numbers if each.kind == kind)
        if texts:
            first = min(number for each, number in numbers.items() if each.kind == kind)
            yield Paragraph(f"{title}:")
            yield Items(texts, first)


def _gradients(
    section: Section, groups: Sequence[Group], plots: Mapping[str, Mapping[str, list[Figure]]]
) -> Iterator[Block]:
    yield Heading("Conflicts between the tasks' gradients")
    table = conflict_table(section, [row for group in groups for row in group.rows])
    if table is None:
        yield Paragraph("None on record: it takes PCGrad, or a loss sum that monitors.")
        return
    yield Paragraph(
        "Of a pair of tasks: the cosine of their gradients over the shared parameters, mean ± "
        "standard deviation over logged steps │ the share of steps in conflict, mean ± standard "
        "deviation over seeds. Norms are means over logged steps, before PCGrad → after it."
    )
    yield table
    yield from _figures(*(plots[name] for name in GRADIENT_PLOTS if name in plots))


def _figures(*kinds: Mapping[str, list[Figure]]) -> Iterator[Block]:
    """Show figures, folded away by share of the rows where there are several."""
    titles = dict.fromkeys(title for kind in kinds for title in kind)
    for title in titles:
        blocks = tuple(figure for kind in kinds for figure in kind.get(title, []))
        if title:
            yield Details(blocks[0].title if len(kinds) == 1 else title, blocks)
        else:
            yield from blocks
