"""The performance table: rows chosen, measured, judged and drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed import compiled, cuda, frozen, joint, small, steps, surgery, trainer
from benchmarks.speed.machine import describe
from benchmarks.speed.targets import Experiment, Finding, Row, Settings, not_measured

ROWS = [
    *steps.ROWS,
    *small.ROWS,
    *joint.ROWS,
    *surgery.ROWS,
    *compiled.ROWS,
    *trainer.ROWS,
    *frozen.ROWS,
    *steps.CUDA_ROWS,
    *surgery.CUDA_ROWS,
    *cuda.ROWS,
    *compiled.CUDA_ROWS,
]


def choose(keys: Sequence[str]) -> list[Row]:
    """The rows of these keys, or all.

    Raises:
        ValueError: a key that no row has.

    Example:
        >>> [row.key for row in choose(["weights", "step"])]
        ['step', 'weights']
    """
    known = [row.key for row in ROWS]
    for key in keys:
        if key not in known:
            raise ValueError(f"rows: must be of {', '.join(known)}, got {key!r}")
    return [row for row in ROWS if not keys or row.key in keys]


def measure(rows: Sequence[Row], device: str, settings: Settings) -> dict[str, Finding]:
    """Findings by key; rows of one experiment share its run.

    Args:
        rows: to be measured.
        device: "cpu" measures the rows of the CPU, "cuda" those of CUDA.
        settings: of every measurement.
    """
    found: dict[str, Finding] = {}
    runs: dict[Experiment, set[str]] = {}
    for row in rows:
        if row.device != device:
            found[row.key] = not_measured(f"needs --device {row.device}")
        elif device == "cuda" and not torch.cuda.is_available():
            found[row.key] = not_measured("no CUDA device here")
        else:
            runs.setdefault(row.experiment, set()).add(row.key)
    for experiment, keys in runs.items():
        found.update(experiment(settings, frozenset(keys)))
    return found


def draw(rows: Sequence[Row], found: dict[str, Finding], device: str, settings: Settings) -> str:
    """Markdown: the table, what else the runs told, and where they ran."""
    cells = [
        [row.title, found[row.key].measured, str(row.target), row.verdict(found[row.key])]
        for row in rows
    ]
    lines = table(["", "measured: median [quartiles]", "target", "verdict"], cells)
    notes = dict.fromkeys(note for row in rows for note in found[row.key].notes)
    if notes:
        lines += [*(f"- {note}" for note in notes), ""]
    details = [f"{settings.rounds} rounds", f"seed {settings.seed}"]
    if settings.quick:
        details.insert(0, "quick: tiny sizes, not a measurement")
    lines.append(describe(device, details))
    return "\n".join(lines)
