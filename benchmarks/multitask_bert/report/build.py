"""Run folders to a report: our metrics beside the published ones, as Markdown and as a page.

It derives everything from what the runs left in their folders, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.multitask_bert.claims.findings import findings
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
    strong,
    with_code,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data
from benchmarks.multitask_bert.report.appendix import appendix
from benchmarks.multitask_bert.report.conflicts import conflict_table
from benchmarks.multitask_bert.report.deviations import KINDS, Deviation, number_deviations
from benchmarks.multitask_bert.report.groups import Group, group_rows
from benchmarks.multitask_bert.report.plots.all import remove_plots, write_plots
from benchmarks.multitask_bert.report.remarks import about_report, gravest, reading
from benchmarks.multitask_bert.report.tables import legacy_table, result_table, scale_note
from benchmarks.multitask_bert.significance import NUM_ERRORS

TITLE = "Multi-task BERT"
VERDICT_STYLES: Mapping[str, Span] = {
    "supported": Span("supported", "good"),
    "contradicted": Span("contradicted", "bad"),
    "not tested": Span("not tested", "quiet"),
}
GRADIENT_PLOTS = ("conflict-rates", "cosines", "layer-cosines")


def report(directories: Sequence[Path], out: Path | None = None) -> str:
    """Write ``report.md``, ``report.html`` and ``plots/*.png`` from run folders.

    The HTML page holds its plots and needs no other file.

    Arguments:
        directories: Folders that hold run folders, at any depth, or are run folders.
        out: Where to write; the first of the directories by default.

    Returns:
        The Markdown.

    Raises:
        ValueError: A directory is missing, or no run in any of them can be read.
    """
    runs, complaints = find_runs(directories)
    folder = Path(directories[0] if out is None else out)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    remove_plots(folder)
    sections = group_by_data(runs)
    blocks: list[Block] = []
    if len(sections) > 1:
        text = f"{len(sections)} sources of data: compare no number across them."
        blocks.append(Paragraph(strong(text)))
    for index, section in enumerate(sections):
        prefix = f"{index + 1}-" if len(sections) > 1 else ""
        blocks += _section(section, complaints if index == 0 else [], folder, prefix)
    text = to_markdown(blocks)
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = to_html(blocks, f"{TITLE} on {', '.join(each.data for each in sections)}", folder)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return text


def _section(
    section: Section, complaints: Sequence[str], folder: Path, prefix: str
) -> Iterator[Block]:
    groups = group_rows(section)
    plots = write_plots(section, groups, folder, prefix)
    numbers = number_deviations(section)
    notice = section.notice[:1].upper() + section.notice[1:].rstrip(".") + "."
    if section.is_synthetic:
        yield Paragraph((strong("SYNTHETIC DATA, NOT SST, QUORA AND STS."), f" {notice}"))
    else:
        yield Paragraph(notice if notice.startswith("Data") else f"Data: {notice}")
    yield Heading(f"{TITLE} on {section.data}: dev metrics", 1)
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
        f"within or outside of what is claimed, over at least {MIN_SEEDS} seeds."
    )
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
    header = ("no.", "claim", "of", "verdict", "evidence")
    yield Table(header, rows, scale_note(section.rows), is_prose=True)


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
