"""The plots of a report: what runs on the same data did, one colour for each recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.runs import (
    CONSTANT,
    METRIC_TITLES,
    OVERALL,
    Json,
    Points,
    Row,
    Run,
    Section,
    deviation,
    finite,
    mean_text,
    metric_title,
    pair_title,
)
from benchmarks.multitask_bert.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe & Ito's palette without its yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
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
BAND_CAPTION = "Line: mean over seeds. Band, of several seeds: ± 1 standard deviation."
REFERENCES = (CONSTANT, RANDOM)
REFERENCE_LINE: Mapping[str, Any] = {"color": "0.35", "linestyle": ":", "linewidth": 1.4}
DPI = 130


def write_plots(section: Section, folder: Path, prefix: str) -> dict[str, Path]:
    """Draw what the runs have data for; give each title with its path relative to the folder."""
    import matplotlib

    written = {}
    for name, (title, draw) in PLOTS.items():
        path = Path("plots") / f"{prefix}{name}.png"
        with matplotlib.rc_context(dict(STYLE)):
            figure = draw(section)
            if figure is None:
                (folder / path).unlink(missing_ok=True)  # left by an earlier report
                continue
            data = "SYNTHETIC data" if section.is_synthetic else section.data
            figure.suptitle(f"{title} ({data})", fontweight="bold")
            figure.savefig(folder / path, dpi=DPI)
        written[title] = path
    return written


def _draw_learning_curves(section: Section) -> Figure | None:
    if not any(run.by_step("dev") for run in section.runs):
        return None
    panels = [*section.tasks, *(["mean"] if len(section.tasks) > 1 else [])]
    figure, axes = _grid(len(panels))
    constants = section.constants
    for axis, panel in zip(axes, panels, strict=True):
        for row in section.rows:
            _draw_curve(axis, row, [_dev_points(run, panel) for run in row.runs], marker="o")
        used = constants if panel == "mean" else {t: v for t, v in constants.items() if t == panel}
        if used:
            axis.axhline(metrics.overall_mean(used), label=CONSTANT, **REFERENCE_LINE)
        metric = METRIC_TITLES[TASKS[panel].metric] if panel in TASKS else "mean metric"
        title = TASKS[panel].title if panel in TASKS else "All tasks"
        axis.set(title=title, xlabel="training step", ylabel=f"dev {metric}")
    _finish(figure, axes, BAND_CAPTION)
    return figure


def _draw_losses(section: Section) -> Figure | None:
    events = [event for run in section.runs for event in run.by_step("train").values()]
    found = {task for event in events for task in event.get("losses") or {}}
    tasks = [task for task in TASKS if task in found]
    if not tasks:
        return None
    figure, axes = _grid(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        for row in section.rows:
            steps, values, _ = _across([run.points("train", "losses", task) for run in row.runs])
            if not steps:
                continue
            smooth = _smoothed(values)
            style: Json = {"color": _colour(row), "linestyle": _line_style(row)}
            marker = "o" if len(steps) == 1 else None
            axis.plot(steps, values, alpha=0.25, linewidth=0.8, **style)
            axis.plot(steps, smooth, linewidth=1.8, marker=marker, label=row.label, **style)
        axis.set(
            title=TASKS[task].title, xlabel="training step", ylabel="training loss (per batch)"
        )
    _finish(figure, axes, "Thin: mean over seeds. Thick: its moving average.")
    return figure


def _draw_conflict_rates(section: Section) -> Figure | None:
    from matplotlib.ticker import PercentFormatter

    curves = [run.pair_points("conflict_rate", p) for run in section.runs for p in section.pairs]
    if not any(finite(curve.values()) for curve in curves):
        return None
    figure, axes = _grid(len(section.pairs))
    for axis, pair in zip(axes, section.pairs, strict=True):
        for row in section.rows:
            _draw_curve(axis, row, [run.pair_points("conflict_rate", pair) for run in row.runs])
        axis.axhline(0.5, label=RANDOM, **REFERENCE_LINE)
        axis.set(title=pair_title(pair), xlabel="training step", ylabel="conflicting steps so far")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _finish(figure, axes, BAND_CAPTION)
    return figure


def _draw_cosines(section: Section) -> Figure | None:
    matrices = {row.label: _cosine_matrix(row, section.tasks) for row in section.rows}
    matrices = {k: m for k, m in matrices.items() if any(map(finite, m.values()))}
    if not matrices:
        return None
    names = [TASKS[task].title for task in section.tasks]
    means = {
        label: np.array(
            [
                [np.mean(finite(cells[a, b]) or [math.nan]) for b in section.tasks]
                for a in section.tasks
            ]
        )
        for label, cells in matrices.items()
    }
    limit = max(0.1, *(float(np.nanmax(np.abs(mean))) for mean in means.values()))
    figure, axes = _grid(len(matrices), size=(4.4, 3.8))
    for axis, (label, mean) in zip(axes, means.items(), strict=True):
        image = axis.imshow(mean, cmap="PuOr_r", vmin=-limit, vmax=limit)
        for i, j in np.argwhere(np.isfinite(mean)):
            cell = finite(matrices[label][section.tasks[i], section.tasks[j]])
            colour = "white" if abs(mean[i, j]) > 0.6 * limit else "black"
            text = mean_text(cell, "{:.3f}").replace(" ±", "\n±")
            axis.text(j, i, text, ha="center", va="center", color=colour)
        axis.set_title(label.replace(" (", "\n("))
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_facecolor("0.93")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="mean cosine ± std over logged steps")
    return figure


def _draw_methods(section: Section) -> Figure | None:
    rows = [row for row in _twins_together(section.rows) if finite(row.values("mean"))]
    if not rows:
        return None
    columns = section.columns
    figure, (axis,) = _grid(1, size=(max(8.0, (1 + 0.35 * len(rows)) * len(columns)), 4.8))
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        found = {at: v for at, c in enumerate(columns) if (v := finite(row.values(c)))}
        offset = (index - (len(rows) - 1) / 2) * width
        axis.bar(
            [at + offset for at in found],
            [float(np.mean(values)) for values in found.values()],
            width=0.92 * width,
            color=_colour(row),
            edgecolor="white",
            hatch="///" if "PCGrad" in row.method else None,
            label=row.label,
        )
        for at, values in found.items():
            seeds = at + offset + np.linspace(-0.25, 0.25, len(values) + 2)[1:-1] * width
            axis.scatter(seeds, values, s=18, color="black", edgecolor="white", lw=0.6, zorder=3)
            mean, top = float(np.mean(values)), max(0.0, *values) + 0.02
            axis.text(at + offset, top, f"{mean:.3f}", ha="center", fontsize=8)
    constants = section.constants
    for at, column in enumerate(columns):
        level = constants.get(column)
        if column in OVERALL and constants:
            level = OVERALL[column](constants)
        if level is not None:
            label = CONSTANT if at == 0 else "_later ones"
            axis.hlines(
                level,
                at - 0.46,
                at + 0.46,
                color="black",
                ls=":",
                lw=1.4,
                label=label,
                clip_on=False,
            )
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.set_xticks(range(len(columns)), [metric_title(column) for column in columns])
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("dev metric of the best checkpoint")
    axis.set_ylim(top=1.05)
    _finish(figure, [axis], "Bar: mean over seeds, hatched for PCGrad. Dot: one seed.")
    return figure


def _grid(count: int, size: tuple[float, float] = (4.0, 3.1)) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``count`` panels, each of ``size`` inches, in up to three columns."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    lines = math.ceil(count / columns)
    # Without pyplot there is no window, no global state, and PNG files come from Agg.
    figure = Figure(
        figsize=(max(7.0, size[0] * columns), size[1] * lines + 1.2), layout="constrained"
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _draw_curve(axis: Axes, row: Row, curves: Sequence[Points], marker: str | None = None) -> None:
    """Draw the mean over the seeds, and a band of a standard deviation where there are several."""
    from matplotlib.ticker import MaxNLocator

    steps, means, spreads = _across(curves)
    if not steps:
        return
    style: Json = {"color": _colour(row), "linestyle": _line_style(row)}
    marker = marker or ("o" if len(steps) == 1 else None)
    axis.plot(steps, means, linewidth=1.8, marker=marker, markersize=3.5, label=row.label, **style)
    if len(curves) > 1:
        axis.fill_between(
            steps, means - spreads, means + spreads, color=_colour(row), alpha=0.15, linewidth=0
        )
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def _colour(row: Row) -> str:
    return COLOURS[row.index % len(COLOURS)]


def _line_style(row: Row) -> str:
    return LINE_STYLES[row.index // len(COLOURS) % len(LINE_STYLES)]


def _finish(figure: Figure, axes: Sequence[Axes], caption: str) -> None:
    """Put one legend for all panels below them, where it covers nothing."""
    entries: dict[Any, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = sorted(entries, key=lambda label: label in REFERENCES)
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=caption)


def _across(curves: Sequence[Points]) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """Give steps, mean and standard deviation over the runs that have a number there."""
    steps = sorted({step for curve in curves for step in curve})
    values = [finite(curve.get(step, math.nan) for curve in curves) for step in steps]
    means = [np.mean(found) if found else math.nan for found in values]
    return steps, np.array(means), np.array([deviation(found) for found in values])


def _smoothed(values: NDArray[Any]) -> NDArray[Any]:
    """Give the centred moving average over a twelfth of the curve; gaps do not count."""
    half = len(values) // 25
    windows = [finite(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return np.array([np.mean(window) if window else math.nan for window in windows])


def _cosine_matrix(row: Row, tasks: Sequence[str]) -> dict[tuple[str, str], list[float]]:
    """Give the cosines of all logged steps and seeds by pair of tasks; none with itself."""
    cells: dict[tuple[str, str], list[float]] = {(a, b): [] for a in tasks for b in tasks}
    for a, b in combinations(tasks, 2):
        for run in row.runs:
            cells[a, b] += run.pair_points("cosines", f"{a}~{b}").values()
        cells[b, a] = cells[a, b]
    return cells


def _twins_together(rows: Sequence[Row]) -> list[Row]:
    """Order rows so that recipes which differ in their method alone stand side by side."""

    def bare(content: Any) -> Any:
        if isinstance(content, dict):
            left_out = {"id", "description", "assumed", "method", "reduction", "scope"}
            return {k: bare(v) for k, v in content.items() if k not in left_out}
        return [bare(item) for item in content] if isinstance(content, list) else content

    keys = [json.dumps(bare(row.runs[0].recipe), sort_keys=True) for row in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (keys.index(keys[i]), i))]


def _dev_points(run: Run, column: str) -> Points:
    if column not in OVERALL:
        return run.points("dev", "metrics", column)
    curves = {task: run.points("dev", "metrics", task) for task in TASKS}
    found = {
        step: {task: curve[step] for task, curve in curves.items() if step in curve}
        for step in run.by_step("dev")
    }
    return {step: OVERALL[column](values) for step, values in found.items() if values}


PLOTS: Mapping[str, tuple[str, Callable[[Section], Figure | None]]] = {
    "learning-curves": ("Dev metrics while training", _draw_learning_curves),
    "training-losses": ("Training losses", _draw_losses),
    "conflict-rates": ("Conflict rate of each pair of tasks", _draw_conflict_rates),
    "cosines": ("Cosines between the tasks' gradients", _draw_cosines),
    "methods": ("Methods side by side", _draw_methods),
}
