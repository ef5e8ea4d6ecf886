"""The pictures: contours with paths, and arrows; small multiples, one panel a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.landscape.paths import ARROWS, CROSSINGS, STARTS, Trail, losses
from benchmarks.multitask_bert.page.plot_style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey words and lines on nothing: to be read on white and on black pages.
INK = "#808080"
FIRST, SECOND, THIRD, UPDATE = COLOURS[5], COLOURS[4], COLOURS[3], COLOURS[2]
_STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "font.size": 12,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_COLUMNS = 4
_PANEL = 2.05  # inches
_REACH = ((-2.1, 2.1), (-0.4, 2.55))  # of arrows, in x and y
_SPAN = ((-3.9, 3.9), (-2.0, 2.0))  # of x and y
_DPI = 150
_NUM_COLOURS = 128  # in a file


def draw_landscape(
    trails: Mapping[str, Sequence[Trail]], file: Path, num_columns: int = _COLUMNS
) -> None:
    """Draws both losses, and the paths of each method over their contours."""
    with _style():
        figure, axes = _panels(len(trails) + 2, num_columns, ratio=0.62)
        for axis, title, index in zip(axes, ("first loss", "second loss"), (0, 1), strict=False):
            _contours(axis, (index,), levels=7)
            axis.set_title(title, color=(FIRST, SECOND)[index])
        for axis, (title, found) in zip(axes[2:], trails.items(), strict=True):
            _trails(axis, found)
            axis.set_title(title)
        for axis in axes:
            _signs(axis)
        _save(figure, file)


def draw_arrows(updates: Mapping[str, Mapping[str, tuple[float, float]]], file: Path) -> None:
    """Draws what each method makes of each group of arrows; it raises no loss where it is grey."""
    with _style():
        figure, axes = _panels(len(updates) * len(ARROWS), _COLUMNS, ratio=0.7)
        for place, (title, made) in enumerate(updates.items()):
            for offset, (group, arrows) in enumerate(ARROWS.items()):
                axis = axes[place * len(ARROWS) + offset]
                _arrows(axis, arrows, made[group])
                axis.set_title(title if offset == 0 else "")
        _save(figure, file)


def draw_method(
    trails: Sequence[Trail], made: Mapping[str, tuple[float, float]], file: Path
) -> None:
    """Draws one method: its trails, and what it makes of each group of arrows."""
    with _style():
        figure, axes = _panels(1 + len(ARROWS), 1 + len(ARROWS), ratio=0.7)
        _trails(axes[0], trails)
        _signs(axes[0])
        for axis, (group, arrows) in zip(axes[1:], ARROWS.items(), strict=True):
            _arrows(axis, arrows, made[group])
        _save(figure, file)


def _trails(axis: Axes, trails: Sequence[Trail]) -> None:
    _contours(axis, (0, 1), levels=3)
    for trail in trails:
        axis.plot(*zip(*trail.points, strict=True), color=UPDATE, linewidth=1.8, zorder=3)
    ends = [trail.points[-1] for trail in trails]
    axis.plot(*zip(*ends, strict=True), "o", color=UPDATE, markersize=6, zorder=4)


def _signs(axis: Axes) -> None:
    axis.plot(*zip(*STARTS, strict=True), "s", color=INK, markersize=4.5, zorder=4)
    axis.plot(*zip(*CROSSINGS, strict=True), "*", color=INK, markersize=11, zorder=2, alpha=0.8)
    axis.set(xlim=_SPAN[0], ylim=_SPAN[1], xticks=(), yticks=())


def _arrows(axis: Axes, arrows: Sequence[tuple[float, float]], update: tuple[float, float]) -> None:
    _cone(axis, arrows)
    for arrow, colour in zip(arrows, (FIRST, SECOND, THIRD), strict=False):
        _arrow(axis, arrow, colour, 2.0)
    _arrow(axis, update, UPDATE, 3.4)
    axis.set(xlim=_REACH[0], ylim=_REACH[1], xticks=(), yticks=())


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _panels(count: int, columns: int, ratio: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    lines = math.ceil(count / columns)
    figure = Figure(
        figsize=(_PANEL * columns, lines * (_PANEL * ratio + 0.32)), layout="constrained"
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _contours(axis: Axes, which: Sequence[int], levels: int) -> None:
    x, y = np.meshgrid(np.linspace(*_SPAN[0], 240), np.linspace(*_SPAN[1], 160))
    heights = losses(torch.from_numpy(np.stack([x, y])))
    for index in which:
        values = heights[index].numpy()
        low, high = values.min(), values.max()
        axis.contour(
            x, y, values, levels=low + (high - low) * np.linspace(0.25, 0.95, levels),
            colors=[(FIRST, SECOND)[index]], linewidths=0.9, alpha=0.75, zorder=1,
        )  # fmt: skip


def _cone(axis: Axes, arrows: Sequence[tuple[float, float]]) -> None:
    """Fills the directions that lower every loss to first order."""
    angles = np.linspace(0, 2 * np.pi, 1440)
    around = np.stack([np.cos(angles), np.sin(angles)])
    is_good = (np.array(arrows) @ around >= 0).all(0)
    if is_good.any():
        edge = 4 * around[:, is_good]
        axis.fill([0, *edge[0]], [0, *edge[1]], color=INK, alpha=0.25, linewidth=0, zorder=0)


def _arrow(axis: Axes, tip: tuple[float, float], colour: str, width: float) -> None:
    # Of a short arrow the head alone would be longer.
    points = 72 * _PANEL * math.hypot(*tip) / (_REACH[0][1] - _REACH[0][0])
    width = min(width, 0.35 * points)
    if points < 0.1:
        axis.plot(0, 0, "o", color=colour, markersize=5, zorder=3)
        return
    drawn = axis.annotate(
        "", tip, (0, 0), zorder=3, annotation_clip=False,
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0,
                    "shrinkB": 0, "mutation_scale": 5 * width},
    )  # fmt: skip
    assert drawn.arrow_patch is not None
    drawn.arrow_patch.set_clip_path(axis.patch)


def _save(figure: Figure, file: Path) -> None:
    """Writes a PNG on nothing, with few colours, so that it stays small."""
    from PIL import Image

    figure.savefig(file, dpi=_DPI, transparent=True)
    with Image.open(file) as image:
        few = image.convert("RGBA").quantize(_NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
    few.save(file, optimize=True)
