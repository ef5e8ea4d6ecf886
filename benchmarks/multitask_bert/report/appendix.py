"""Every run by itself: results, machine and command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from benchmarks.multitask_bert.page.document import (
    Block,
    Cell,
    Code,
    Details,
    Paragraph,
    Span,
    Table,
    code,
    joined,
)
from benchmarks.multitask_bert.records.rows import OVERALL, Run, Section, metric_title
from benchmarks.multitask_bert.records.series import NONE, mean_text, number
from benchmarks.multitask_bert.report.tables import scale_note

MAX_NAMED = 12  # run folders in one sentence


def appendix(section: Section) -> Details:
    """Tell of every run, folded away."""
    blocks: list[Block] = [_runs(section)]
    machines: dict[str, list[str]] = {}
    for run in section.runs:
        machines.setdefault(_machine(run), []).append(str(run.folder))
    for machine, folders in machines.items():
        blocks.append(Paragraph((*_whose(folders, len(machines) == 1), f": {machine}.")))
    commands = (shlex.join(map(str, run.config.get("command") or [])) for run in section.runs)
    known = tuple(dict.fromkeys(filter(None, commands)))
    if known:
        blocks += [Paragraph("Commands:"), Code(known)]
    text = ("The full configuration of a run is in its ", code("config.json"), ".")
    blocks.append(Paragraph(text))
    return Details("Every run: results, machine and command", tuple(blocks))


def _runs(section: Section) -> Table:
    scores = [metric_title(column) for column in section.columns]
    header = ("run", "seed", "state", "best epoch", *scores, "training", "date")
    return Table(
        header, tuple(tuple(_cells(section, run)) for run in section.runs), scale_note(section.rows)
    )


def _cells(section: Section, run: Run) -> Iterator[Cell]:
    end = run.end or {}
    yield code(run.folder)
    yield str(run.seed)
    yield f"complete, step {run.step}" if run.end else f"unfinished, step {run.step}"
    yield str(end.get("best_epoch", NONE))
    scores = {name: score(run.metrics) for name, score in OVERALL.items()} if run.metrics else {}
    found = {**run.metrics, **scores}
    for column in section.columns:
        yield mean_text([found[column]] if column in found else [], "{:.4f}")
    seconds = number(end.get("train_seconds"))
    yield f"{seconds:,.0f} s" if math.isfinite(seconds) else NONE
    yield str(run.environment.get("date", "unknown"))


def _whose(folders: list[str], are_all: bool) -> tuple[str | Span, ...]:
    if are_all:
        return ("All of them",)
    named = joined(code(folder) for folder in folders[:MAX_NAMED])
    rest = len(folders) - MAX_NAMED
    return (*named, f" and {rest} more") if rest > 0 else named


def _machine(run: Run) -> str:
    told = run.environment
    gpu = told.get("gpu")
    return ", ".join(
        (
            f"{run.config.get('device', 'unknown device')} in {run.config.get('precision', '?')}",
            f"gradsurgery {run.config.get('version', '?')} at commit {told.get('git_commit')}",
            f"Python {told.get('python', '?')}",
            f"torch {told.get('torch', '?')}",
            str(told.get("platform", "unknown platform")),
            f"{told.get('cpu', 'unknown CPU')} with {told.get('num_threads', '?')} threads",
            f"GPU {gpu}" if gpu else "no GPU",
        )
    )
