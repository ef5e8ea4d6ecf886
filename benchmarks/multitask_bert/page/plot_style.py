"""How plots look: colours, panels, curves, legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.multitask_bert.records.rows import CONSTANT
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.records.series import Points, deviation, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe & Ito's palette, a wine red in place of its yellow, which is too light for a line on white.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"),
    "#882255",
)
LINE_STYLES = ("-", "--", ":", "-.")
STYLE: Mapping[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.titlesize": 13,
    "font.size": 9.5,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
}
RANDOM = "random directions"
REFERENCES = (CONSTANT, RANDOM)  # last in every legend
REFERENCE_LINE: Mapping[str, Any] = {"color": "0.35", "linestyle": ":", "linewidth": 1.4}
DPI = 120


def grid(
    count: int, size: tuple[float, float] = (4.0, 3.1), max_columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``count`` panels, each of ``size`` inches."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 and max_columns == 3 else min(count, max_columns)
    lines = math.ceil(count / columns)
    # Without pyplot there is no window, no global state, and PNG files come from Agg.
    figure = Figure(
        figsize=(max(7.0, size[0] * columns), size[1] * lines + 1.2), layout="constrained"
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def draw_curve(
    axis: Axes, curves: Sequence[Points], index: int, label: str, marker: str | None = None
) -> None:
    """Draw the mean over the seeds, and a band of a standard deviation where there are several."""
    from matplotlib.ticker import MaxNLocator

    steps, means, spreads = across(curves)
    if not steps:
        return
    marker = marker or ("o" if len(steps) == 1 else None)
    axis.plot(
        steps, means, linewidth=1.8, marker=marker, markersize=3.5, label=label, **line_style(index)
    )
    if len(curves) > 1:
        low, high = means - spreads, means + spreads
        axis.fill_between(steps, low, high, color=colour(index), alpha=0.15, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def line_style(index: int) -> Json:
    """Give colour and dashes, so that no two of the first 32 lines look the same."""
    dashes = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
    return {"color": colour(index), "linestyle": dashes}


def finish(figure: Figure, axes: Sequence[Axes], caption: str) -> None:
    """Put one legend for all panels below them, where it covers nothing."""
    entries: dict[Any, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = sorted(entries, key=lambda label: label in REFERENCES)
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=caption)


def across(curves: Sequence[Points]) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """Give steps, mean and standard deviation over the runs that have a number there."""
    steps = sorted({step for curve in curves for step in curve})
    values = [finite(curve.get(step, math.nan) for curve in curves) for step in steps]
    means = [np.mean(found) if found else math.nan for found in values]
    return steps, np.array(means), np.array([deviation(found) for found in values])
