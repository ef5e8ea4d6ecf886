"""The final metrics as bars: recipes that differ in their method alone, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.multitask_bert.claims.twins import twins_together
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.page.plot_style import INK, PAPER, colour, finish, grid
from benchmarks.multitask_bert.records.rows import CONSTANT, OVERALL, Row, Section, metric_title
from benchmarks.multitask_bert.records.series import finite
from benchmarks.multitask_bert.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SURGERY = {name for name, method in METHODS.items() if method.is_surgery}
MIN_FLAT_WIDTH = 0.21  # of a bar, for its number to lie flat above it


def draw_methods(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw every metric of the rows, with a dot for each seed."""
    together = [row for twins in twins_together(rows) for row in twins]
    shown = [row for row in together if finite(row.values("mean"))]
    if not shown:
        return None
    measured = {task for row in shown for task in TASKS if row.values(task)}
    columns = [column for column in section.columns if column in OVERALL or column in measured]
    figure, (axis,) = grid(1, size=(max(8.0, (0.9 + 0.2 * len(shown)) * len(columns)), 4.8))
    width = 0.8 / len(shown)
    for index, row in enumerate(shown):
        offset = (index - (len(shown) - 1) / 2) * width
        _draw_row(axis, row, columns, offset, width, colour(rows.index(row)))
    _draw_constants(axis, section, columns)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(columns)), [metric_title(column) for column in columns])
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("dev metric of the best checkpoint")
    axis.set_ylim(top=1.05)
    finish(figure, [axis], "Bar: mean over seeds, hatched for gradient surgery. Dot: one seed.")
    return figure


def _draw_row(
    axis: Axes, row: Row, columns: Sequence[str], offset: float, width: float, filling: str
) -> None:
    found = {at: v for at, column in enumerate(columns) if (v := finite(row.values(column)))}
    axis.bar(
        [at + offset for at in found],
        [float(np.mean(values)) for values in found.values()],
        width=0.92 * width,
        color=filling,
        edgecolor=PAPER,
        hatch="///" if any(name in _SURGERY for name in row.methods) else None,
        label=row.label,
    )
    for at, values in found.items():
        seeds = at + offset + np.linspace(-0.25, 0.25, len(values) + 2)[1:-1] * width
        axis.scatter(seeds, values, s=14, color=INK, edgecolor=PAPER, lw=0.6, zorder=3)
        mean, top = float(np.mean(values)), max(0.0, *values) + 0.02
        turn = 90 if width < MIN_FLAT_WIDTH else 0
        axis.text(at + offset, top, f"{mean:.3f}", ha="center", fontsize=8, rotation=turn)


def _draw_constants(axis: Axes, section: Section, columns: Sequence[str]) -> None:
    constants = {task: value for task, value in section.constants.items() if task in columns}
    if not constants:
        return
    levels = {**constants, **{name: score(constants) for name, score in OVERALL.items()}}
    label = CONSTANT
    for at, column in enumerate(columns):
        if column in levels:
            ends = (at - 0.46, at + 0.46)
            axis.hlines(
                levels[column], *ends, color=INK, ls=":", lw=1.4, label=label, clip_on=False
            )
            label = "_later ones"
