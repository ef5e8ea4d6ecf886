"""All differences of rows that one setting tells apart, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.multitask_bert.claims.paired import Difference
from benchmarks.multitask_bert.intervals import Interval
from benchmarks.multitask_bert.page.plot_style import COLOURS, REFERENCE_LINE, panels
from benchmarks.multitask_bert.records.rows import Row, Section, metric_title
from benchmarks.multitask_bert.report.differences import OVER_ALL, Compared, compare_twins
from benchmarks.multitask_bert.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, *_ = COLOURS
CAPTION = (
    "Paired by seed: the dot and its thick interval of 95 %; orange is decided, blue is not, "
    "hollow has too few seeds.\nThin and grey: unpaired. What runs out of a panel goes on."
)
MARGIN = 1.5  # of the median interval, so that one endless interval squeezes no other
LEAST = 1e-3


def draw_differences(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw every difference, a line each, in a panel for each metric."""
    compared = compare_twins(section, rows)
    known = {metric for each in compared for metric in each.by_metric}
    shown = [metric for metric in (OVER_ALL, *TASKS) if metric in known]
    if not shown:
        return None
    figure, axes = panels(len(shown), height=0.34 * len(compared) + 1.9)
    for axis, metric in zip(axes, shown, strict=True):
        for line, each in enumerate(compared):
            if metric in each.by_metric:
                _draw(axis, line, each, metric)
        axis.axvline(0, **REFERENCE_LINE)
        axis.set(title=metric_title(metric), ylim=(len(compared) - 0.5, -0.5))
        found = [each.by_metric[metric] for each in compared if metric in each.by_metric]
        axis.set_xlim(*_limits(found))
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(compared)), [each.contrast.title for each in compared], fontsize=8)
    figure.supxlabel(CAPTION, fontsize=8.5)
    return figure


def _draw(axis: Axes, line: int, each: Compared, metric: str) -> None:
    found = each.by_metric[metric]
    unpaired, best = found.unpaired, found.best
    if math.isfinite(unpaired.reach) and found.paired is not None:
        axis.errorbar(
            unpaired.value, line + 0.22, xerr=unpaired.reach, fmt="none", ecolor="0.6", elinewidth=1
        )
    colour = ORANGE if each.is_decided(metric) else BLUE
    reach = best.reach if math.isfinite(best.reach) else None
    is_hollow = "seed" in each.answer(metric)
    axis.errorbar(
        best.value,
        line,
        xerr=reach,
        fmt="o",
        markersize=5,
        color=colour,
        elinewidth=2.2,
        markerfacecolor="none" if is_hollow else colour,
    )


def _limits(found: Sequence[Difference]) -> tuple[float, float]:
    """Give a range around zero that holds every difference, and most of their intervals."""
    values = [abs(each.best.value) for each in found]
    ends = [_end(each.best) for each in found]
    limit = max(*values, *ends) if len(found) == 1 else max(*values, MARGIN * median(ends))
    return -1.1 * max(limit, LEAST), 1.1 * max(limit, LEAST)


def _end(found: Interval) -> float:
    return abs(found.value) + (found.reach if math.isfinite(found.reach) else 0.0)
