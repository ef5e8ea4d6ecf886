"""Plots over the training steps: dev metrics, losses, conflict rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.page.plot_style import (
    RANDOM,
    REFERENCE_LINE,
    across,
    draw_curve,
    finish,
    grid,
    line_style,
)
from benchmarks.multitask_bert.records.rows import (
    CONSTANT,
    METRIC_TITLES,
    OVERALL,
    Row,
    Run,
    Section,
    pair_title,
)
from benchmarks.multitask_bert.records.series import Points, finite
from benchmarks.multitask_bert.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BAND_CAPTION = "Line: mean over seeds. Band, of several seeds: ± 1 standard deviation."


def draw_learning_curves(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw the dev metrics, a panel for each task and one for their mean."""
    if not any(len(run.by_step("dev")) > 1 for row in rows for run in row.runs):
        return None  # one point is no curve, and its number is in the table
    tasks = _tasks(section, rows)
    panels = [*tasks, *(["mean"] if len(tasks) > 1 else [])]
    figure, axes = grid(len(panels))
    constants = {task: value for task, value in section.constants.items() if task in tasks}
    for axis, panel in zip(axes, panels, strict=True):
        for index, row in enumerate(rows):
            points = [_dev_points(run, panel) for run in row.runs]
            draw_curve(axis, points, index, row.label, marker="o")
        used = constants if panel == "mean" else {t: v for t, v in constants.items() if t == panel}
        if used:
            axis.axhline(metrics.overall_mean(used), label=CONSTANT, **REFERENCE_LINE)
        metric = METRIC_TITLES[TASKS[panel].metric] if panel in TASKS else "mean metric"
        title = TASKS[panel].title if panel in TASKS else "All tasks"
        axis.set(title=title, xlabel="training step", ylabel=f"dev {metric}")
    finish(figure, axes, BAND_CAPTION)
    return figure


def draw_losses(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw the training losses, a panel for each task."""
    tasks = [
        task
        for task in TASKS
        if any(len(run.points("train", "losses", task)) > 1 for row in rows for run in row.runs)
    ]
    if not tasks:
        return None
    figure, axes = grid(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        for index, row in enumerate(rows):
            steps, values, _ = across([run.points("train", "losses", task) for run in row.runs])
            if len(steps) < 2:
                continue
            style, smooth = line_style(index), _smoothed(values)
            axis.plot(steps, values, alpha=0.25, linewidth=0.8, **style)
            axis.plot(steps, smooth, linewidth=1.8, label=row.label, **style)
        title = TASKS[task].title
        axis.set(title=title, xlabel="training step", ylabel="training loss (per batch)")
    finish(figure, axes, "Thin: mean over seeds. Thick: its moving average.")
    return figure


def draw_conflict_rates(section: Section, rows: Sequence[Row]) -> Figure | None:
    """Draw the running share of steps in conflict, a panel for each pair of tasks."""
    from matplotlib.ticker import PercentFormatter

    curves = {
        (row, pair): [run.pair_points("conflict_rate", pair) for run in row.runs]
        for row in rows
        for pair in section.pairs
    }
    pairs = [p for p in section.pairs if any(map(_is_drawn, (curves[row, p] for row in rows)))]
    if not pairs:
        return None
    figure, axes = grid(len(pairs))
    for axis, pair in zip(axes, pairs, strict=True):
        for index, row in enumerate(rows):
            draw_curve(axis, curves[row, pair], index, row.label)
        axis.axhline(0.5, label=RANDOM, **REFERENCE_LINE)
        axis.set(title=pair_title(pair), xlabel="training step", ylabel="conflicting steps so far")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    finish(figure, axes, BAND_CAPTION)
    return figure


def _is_drawn(curves: Sequence[Points]) -> bool:
    return any(len(finite(curve.values())) > 1 for curve in curves)


def _tasks(section: Section, rows: Sequence[Row]) -> list[str]:
    asked = (run.recipe.get("tasks") or section.tasks for row in rows for run in row.runs)
    known = {task for tasks in asked for task in tasks}
    return [task for task in section.tasks if task in known]


def _smoothed(values: NDArray[Any]) -> NDArray[Any]:
    """Give the centred moving average over a twelfth of the curve; gaps do not count."""
    half = len(values) // 25
    windows = [finite(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return np.array([np.mean(window) if window else math.nan for window in windows])


def _dev_points(run: Run, column: str) -> Points:
    if column not in OVERALL:
        return run.points("dev", "metrics", column)
    curves = {task: run.points("dev", "metrics", task) for task in TASKS}
    found = {
        step: {task: curve[step] for task, curve in curves.items() if step in curve}
        for step in run.by_step("dev")
    }
    return {step: OVERALL[column](values) for step, values in found.items() if values}
