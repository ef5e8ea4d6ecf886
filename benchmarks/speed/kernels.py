"""The cost of the parts of surgery over T and P, beside the floor: a CSV file and its plot."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.speed.machine import available_bytes, fastest_reader, floor_seconds, readers
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.surgery import Gradients, conflicting_gram
from gradsurgery import kernels, pcgrad_coefficients, projection_order

NUM_TASKS = (2, 3, 8, 40)
NUM_PARAMETERS = (100_000, 1_000_000, 10_000_000, 100_000_000)
PARTS = ("gram", "weights", "combine", "surgery")

_COPIES = 3.5  # of the rows that a measurement holds at once, at most
_SHARE = 0.7  # of the free memory that it may take
FIELDS = ("T", "P", "device", *(f"{part}_ms" for part in PARTS), "floor_ms", "read_gb_per_s",
           "surgery_per_floor")  # fmt: skip

Line = dict[str, str | int | float]


def measure(
    num_tasks: Sequence[int],
    num_parameters: Sequence[int],
    *,
    device: str = "cpu",
    rounds: int = 7,
) -> Iterator[Line]:
    """One line for each T and P that fit into memory.

    The parts are those that the optimizers choose for the device; ``surgery`` is the whole of what
    the wrapper does between the last backward and the step. The floor is set by the fastest way to
    read these very rows, so that small ones, which stay in a cache, are compared with that cache.

    Args:
        num_tasks: each T.
        num_parameters: each P.
        device: "cpu" or "cuda".
        rounds: that count.

    Raises:
        WrongAnswerError: a combined gradient is wrong; nothing is timed then.
    """
    for tasks in num_tasks:
        for parameters in num_parameters:
            if _COPIES * 4 * tasks * parameters > _SHARE * available_bytes(device):
                continue
            yield _measure_one(tasks, parameters, device, rounds)


def _measure_one(num_tasks: int, num_parameters: int, device: str, rounds: int) -> Line:
    gradients = Gradients(num_tasks, num_parameters, device)
    gradients.check()
    rows = gradients.rows
    gram = conflicting_gram(num_tasks, seed=0).to(device)
    order = projection_order(num_tasks, 0, 0, device)
    chosen = kernels.choose(None, torch.device(device))
    project = getattr(chosen, "project", pcgrad_coefficients)
    first = torch.zeros(num_tasks, dtype=gram.dtype, device=device)
    first[0] = 1.0  # a sum that leaves the row it overwrites as it is
    actions = {
        "gram": Action(lambda: chosen.gram_matrix(rows)),
        "weights": Action(lambda: project(gram, order).sum(-2)),
        "combine": Action(lambda: chosen.combine(first, rows, rows[0])),
        "surgery": Action(gradients.operate, prepare=gradients.capture),
        **readers(rows.flatten()),
    }
    timings = interleaved(actions, rounds=rounds, warm_up=2, device=device)
    read = timings.of(fastest_reader(timings)).median
    floor = floor_seconds(num_tasks, read)
    milliseconds = {f"{part}_ms": timings.of(part).median * 1e3 for part in PARTS}
    return {
        "T": num_tasks,
        "P": num_parameters,
        "device": device,
        **milliseconds,
        "floor_ms": floor * 1e3,
        "read_gb_per_s": rows.nbytes / read / 1e9,
        "surgery_per_floor": timings.of("surgery").median / floor,
    }


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """The lines with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)


def plot(lines: Sequence[Line], path: Path, caption: str) -> None:
    """Cost against P for every T, and against T for every P, beside the floor."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, along, each in zip(axes, ("P", "T"), ("T", "P"), strict=True):
        for number, value in enumerate(sorted({float(line[each]) for line in lines})):
            chosen = sorted(
                (line for line in lines if line[each] == value), key=lambda line: float(line[along])
            )
            places = [float(line[along]) for line in chosen]
            for field, style in (("surgery_ms", "o-"), ("floor_ms", ":")):
                axis.plot(
                    places, [float(line[field]) for line in chosen], style, color=f"C{number}"
                )
            axis.annotate(
                f"{each} = {_short(value)}",
                (places[-1], float(chosen[-1]["surgery_ms"])),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
                color=f"C{number}",
            )
        axis.set(xscale="log", yscale="log", xlabel=_AXES[along])
        ticks = sorted({float(line[along]) for line in lines})
        axis.set_xticks(ticks, [_short(tick) for tick in ticks])
        axis.minorticks_off()
        axis.margins(x=0.22)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    figure.suptitle(
        "Surgery alone (solid): Gram matrix, weights, combined gradient; its floor (dotted)"
    )
    figure.supxlabel(caption, fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _short(number: float) -> str:
    """A number of tasks or parameters as an axis has it.

    Example:
        >>> _short(40), _short(100_000), _short(3e7)
        ('40', '0.1 M', '30 M')
    """
    return f"{number:g}" if number < 1e4 else f"{number / 1e6:g} M"


_AXES = {"P": "P, shared parameters", "T": "T, tasks"}
