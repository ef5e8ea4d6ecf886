"""All plots of a section, written: one file where its rows fit, else several for each report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.multitask_bert.claims.twins import twins_together
from benchmarks.multitask_bert.page.document import Figure as FigureBlock
from benchmarks.multitask_bert.page.plot_style import STYLE, write_svg
from benchmarks.multitask_bert.records.rows import Row, Section
from benchmarks.multitask_bert.report.groups import Group
from benchmarks.multitask_bert.report.plots.bars import draw_methods
from benchmarks.multitask_bert.report.plots.curves import (
    draw_conflict_rates,
    draw_learning_curves,
    draw_losses,
)
from benchmarks.multitask_bert.report.plots.forest import draw_differences
from benchmarks.multitask_bert.report.plots.heatmaps import draw_cosines, draw_layer_cosines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw: TypeAlias = Callable[[Section, Sequence[Row]], "Figure | None"]

MAX_ROWS = 8  # in one figure
UNCUT = ("differences",)  # a line for each pair, however many there are
PLOTS: Mapping[str, tuple[str, Draw]] = {
    "differences": ("Differences of rows that one setting tells apart", draw_differences),
    "methods": ("Methods side by side", draw_methods),
    "learning-curves": ("Dev metrics while training", draw_learning_curves),
    "training-losses": ("Training losses", draw_losses),
    "conflict-rates": ("Conflict rate of each pair of tasks", draw_conflict_rates),
    "cosines": ("Cosines between the tasks' gradients", draw_cosines),
    "layer-cosines": ("Cosines between the tasks' gradients by layer", draw_layer_cosines),
}


@dataclass(frozen=True)
class Share:
    """Rows that fit into one figure."""

    title: str  # empty where they are all of the section's
    slug: str
    rows: tuple[Row, ...]


def write_plots(
    section: Section, groups: Sequence[Group], folder: Path, prefix: str
) -> dict[str, dict[str, list[FigureBlock]]]:
    """Draw what the runs have data for, by name of the plot and title of the share of rows."""
    import matplotlib

    written: dict[str, dict[str, list[FigureBlock]]] = {}
    shares = list(_shares(groups))
    whole = [Share("", "", tuple(row for group in groups for row in group.rows))]
    with matplotlib.rc_context(dict(STYLE)):
        for name, (title, draw) in PLOTS.items():
            for share in whole if name in UNCUT else shares:
                figure = draw(section, share.rows)
                if figure is None:
                    continue
                path = Path("plots") / f"{prefix}{name}{share.slug}.svg"
                about = f"{title}: {share.title}" if share.title else title
                data = "SYNTHETIC data" if section.is_synthetic else section.title
                figure.suptitle(f"{about} ({data})", fontweight="bold")
                write_svg(figure, folder / path)
                recipes = ", ".join(row.label for row in share.rows)
                panels = ", ".join(filter(None, (axis.get_title() for axis in figure.axes)))
                shown = f" Panels: {' '.join(panels.split())}." if panels else ""
                block = FigureBlock(about, path, f"{about}.{shown} Recipes: {recipes}.")
                written.setdefault(name, {}).setdefault(share.title, []).append(block)
    return written


def remove_plots(folder: Path) -> None:
    """Remove what an earlier report drew."""
    names = "|".join(map(re.escape, PLOTS))
    for path in (folder / "plots").glob("*.[ps][nv]g"):  # earlier versions wrote PNG
        if re.fullmatch(rf"(\d+-)?({names})(--[a-z-]+-\d+)?", path.stem):
            path.unlink()


def _shares(groups: Sequence[Group]) -> Iterator[Share]:
    rows = [row for group in groups for row in group.rows]
    if len(rows) <= MAX_ROWS:
        yield Share("", "", tuple(rows))
        return
    by_report: dict[tuple[str, str], list[Row]] = {}
    for group in groups:
        key, name = (
            (group.report.key, group.report.name) if group.report else ("others", group.title)
        )
        by_report.setdefault((key, name), []).extend(group.rows)
    for (key, name), found in by_report.items():
        parts = list(_parts(found))
        for number, part in enumerate(parts, start=1):
            title = name if len(parts) == 1 else f"{name}, {number} of {len(parts)}"
            yield Share(title, f"--{key}-{number}", part)


def _parts(rows: Sequence[Row]) -> Iterable[tuple[Row, ...]]:
    """Cut rows into parts of about one size, twins together where they fit into one figure."""
    size = math.ceil(len(rows) / math.ceil(len(rows) / MAX_ROWS))
    part: list[Row] = []
    for twins in twins_together(rows):
        for row in twins:
            if len(part) >= MAX_ROWS or (
                row is twins[0] and part and len(part) + len(twins) > size
            ):
                yield tuple(part)
                part = []
            part.append(row)
    yield tuple(part)
