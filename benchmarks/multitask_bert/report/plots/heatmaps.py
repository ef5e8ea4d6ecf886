"""Heat maps of the cosines between the tasks' gradients, of the whole encoder and by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks.multitask_bert.page.plot_style import FAINT, grid
from benchmarks.multitask_bert.records.rows import Row, Section
from benchmarks.multitask_bert.records.series import finite, mean_text, number
from benchmarks.multitask_bert.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cells: TypeAlias = Mapping[tuple[str, str], list[float]]  # row, column -> cosines

MIN_LIMIT = 0.1  # of the colours, so that no noise around 0 looks strong


def draw_cosines(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw the mean cosine of each pair of tasks, a panel for each row."""
    cells = {row: _by_pair(row, section.tasks) for row in section.rows}
    limit = _limit(cells.values())
    shown = [row for row in rows if any(map(finite, cells[row].values()))]
    if not shown:
        return None
    tasks = [task for task in section.tasks if any(_has(cells[row], task) for row in shown)]
    names = [TASKS[task].title for task in tasks]
    figure, axes = grid(len(shown), size=(3.9, 3.5))
    for axis, row in zip(axes, shown, strict=True):
        image = _draw(axis, cells[row], tasks, tasks, limit, has_deviation=True)
        axis.set_title(row.label.replace(" (", "\n("))
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, shrink=0.8, label="mean cosine ± std over logged steps")
    return figure


def draw_layer_cosines(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw the mean cosine of each pair by layer, a panel for each row."""
    cells = {row: _by_layer(row, section.pairs) for row in section.rows}
    limit = _limit(cells.values())
    shown = [row for row in rows if any(map(finite, cells[row].values()))]
    pairs = [p for p in section.pairs if any(_has(cells[row], p) for row in shown)]
    if not pairs:
        return None
    layers = sorted({layer for row in shown for layer, _ in cells[row]}, key=_depth)
    names = ["\n".join(TASKS[task].title for task in pair.split("~")) for pair in pairs]
    size = (max(3.4, 0.75 * len(pairs) + 1.4), 0.27 * len(layers) + 1.1)
    figure, axes = grid(len(shown), size=size)
    for axis, row in zip(axes, shown, strict=True):
        image = _draw(axis, cells[row], layers, pairs, limit, has_deviation=False)
        axis.set_title(row.label.replace(" (", "\n("))
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(layers)), layers)
    figure.colorbar(image, ax=axes, shrink=0.8, label="mean cosine over logged steps and seeds")
    return figure


def _draw(
    axis: Axes,
    cells: Cells,
    lines: Sequence[str],
    columns: Sequence[str],
    limit: float,
    has_deviation: bool,
) -> Any:
    """Colour each cell by the mean of its cosines, and write it there."""
    means = np.array([[_mean(cells.get((a, b), [])) for b in columns] for a in lines])
    image = axis.imshow(means, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for i, j in np.argwhere(np.isfinite(means)):
        colour = "white" if abs(means[i, j]) > 0.6 * limit else "black"
        found = finite(cells[lines[i], columns[j]])
        text = mean_text(found, "{:.3f}").replace(" ±", "\n±") if has_deviation else ""
        text = text or f"{means[i, j]:.3f}"
        axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_facecolor(FAINT)
    return image


def _by_pair(row: Row, tasks: Sequence[str]) -> Cells:
    """Give the cosines of all logged steps and seeds by pair of tasks; none with itself."""
    cells: dict[tuple[str, str], list[float]] = {}
    for a, b in combinations(tasks, 2):
        points = (run.pair_points("cosines", f"{a}~{b}").values() for run in row.runs)
        cells[a, b] = cells[b, a] = [value for values in points for value in values]
    return cells


def _by_layer(row: Row, pairs: Sequence[str]) -> Cells:
    """Give the cosines of all logged steps and seeds by layer and pair of tasks."""
    cells: dict[tuple[str, str], list[float]] = {}
    for layer, pair, value in _layer_cosines(row):
        turned = "~".join(reversed(pair.split("~")))
        cells.setdefault((layer, pair if pair in pairs else turned), []).append(value)
    return cells


def _layer_cosines(row: Row) -> Iterator[tuple[str, str, float]]:
    for run in row.runs:
        for event in run.by_step("train").values():
            for layer, cosines in (event.get("layer_cosines") or {}).items():
                for pair, value in cosines.items():
                    yield layer, pair, number(value)


def _depth(layer: str) -> tuple[int, int, str]:
    """Order layers from the embeddings to the pooler."""
    ends = {"embeddings": 0, "pooler": 2}
    last = layer.rpartition(" ")[2]
    return ends.get(layer, 1), int(last) if last.isdecimal() else 0, layer


def _has(cells: Cells, column: str) -> bool:
    return any(finite(values) for (_, name), values in cells.items() if name == column)


def _mean(values: Iterable[float]) -> float:
    known = finite(values)
    return float(np.mean(known)) if known else math.nan


def _limit(panels: Iterable[Cells]) -> float:
    """Give one end of the colours for all panels of a section, so that they compare."""
    means = finite(abs(_mean(values)) for cells in panels for values in cells.values())
    return max(MIN_LIMIT, *means) if means else MIN_LIMIT
