"""How PCGrad's extra cost of a step grows, as a formula that is fitted on this machine."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.speed.answers import check
from benchmarks.speed.machine import available_bytes
from benchmarks.speed.measure import Action, Quartiles, interleaved
from benchmarks.speed.methods import METHODS
from benchmarks.speed.workloads import make_mlp

NUM_TASKS = (2, 3, 10, 50, 200)
NUM_PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
NUM_LAYERS = (4, 32)  # of two tensors each; the deeper network shows what a tensor costs

_COPIES = 8  # of a network's numbers that a measurement holds beside the rows, at most
_SHARE = 0.7  # of the free memory that it may take
_MOST_WORK = 1e10  # T² P
_CHECKED = 1e8  # T² P up to which the answer is checked, in float64


@dataclass(frozen=True)
class Line:
    """The cost of one size.

    Args:
        num_tasks: T.
        num_parameters: P.
        num_tensors: N, that the P numbers are in.
        extra: seconds of a PCGrad step in blocks beyond those of the plain loop.
        plain: seconds of the plain loop's step.
    """

    num_tasks: int
    num_parameters: int
    num_tensors: int
    extra: float
    plain: float

    @property
    def size(self) -> tuple[int, int, int]:
        return self.num_tasks, self.num_parameters, self.num_tensors


@dataclass(frozen=True)
class Formula:
    r"""Seconds of a step beyond the plain loop: $a + b\,TN + c\,TP + d\,T^2P$, none negative.

    Args:
        constants: a, b, c and d.
        errors: of the lines it was fitted to, relative: quartiles of their sizes.

    Example:
        >>> formula = Formula((1e-4, 1e-6, 1e-10, 1e-11), Quartiles(0.0, 0.0, 0.0))
        >>> f"{formula.seconds(3, 1_000_000, 8):.3g}"
        '0.000514'
    """

    constants: tuple[float, ...]
    errors: Quartiles

    @classmethod
    def fitted(cls, lines: Sequence[Line]) -> Formula:
        """Fits the constants, so that relative errors are small.

        Lines whose extra cost is not above zero, which noise can make, are left out.

        Raises:
            ValueError: fewer lines are left than there are constants.

        Example:
            >>> sizes = [(t, p, n) for t in (2, 9) for p in (100, 10_000) for n in (4, 30)]
            >>> extra = lambda t, p, n: 1e-3 + 2e-6 * t * n + 3e-9 * t * p
            >>> formula = Formula.fitted([Line(*size, extra(*size), 1.0) for size in sizes])
            >>> [f"{constant:.0e}" for constant in formula.constants[:3]]
            ['1e-03', '2e-06', '3e-09']
        """
        lines = [line for line in lines if line.extra > 0]
        if len(lines) < len(_terms(1, 1, 1)):
            raise ValueError(
                f"sizes: must be at least {len(_terms(1, 1, 1))} with a measurable cost, got "
                f"{len(lines)}; measure more sizes, or more rounds"
            )
        terms = np.array([_terms(*line.size) for line in lines])
        terms = terms / np.array([line.extra for line in lines])[:, None]
        scales = terms.max(0)
        chosen = list(range(terms.shape[1]))
        while True:  # the constants that come out negative are left out, the worst first
            columns = terms[:, chosen] / scales[chosen]
            found, *_ = np.linalg.lstsq(columns, np.ones(len(lines)), rcond=None)
            if found.min() >= 0 or len(chosen) == 1:
                break
            del chosen[int(found.argmin())]
        constants = np.zeros(terms.shape[1])
        constants[chosen] = np.clip(found, 0, None) / scales[chosen]
        errors = np.abs(terms @ constants - 1)
        return cls(tuple(constants.tolist()), Quartiles.of(errors.tolist()))

    def seconds(self, num_tasks: int, num_parameters: int, num_tensors: int) -> float:
        """Predicts the extra seconds of a step."""
        return float(np.dot(self.constants, _terms(num_tasks, num_parameters, num_tensors)))

    def __str__(self) -> str:
        host, tensor, number, pair = self.constants
        return (
            f"{host * 1e6:.3g} µs + {tensor * 1e6:.3g} µs · T·N + {number * 1e9:.3g} ns · T·P + "
            f"{pair * 1e9:.3g} ns · T²·P; relative errors {self.errors}"
        )


def measure(
    num_tasks: Sequence[int], num_parameters: Sequence[int], *, rounds: int, seed: int = 0
) -> Iterator[Line]:
    """Times whole steps at each T and P that fit into memory and minutes.

    Raises:
        WrongAnswerError: the combined gradient is wrong; nothing is timed then.
    """
    for tasks in num_tasks:
        for parameters in num_parameters:
            needed = 4 * (tasks + _COPIES) * parameters
            if needed > _SHARE * available_bytes("cpu") or tasks**2 * parameters > _MOST_WORK:
                continue
            for num_layers in NUM_LAYERS:
                yield _measure_one(tasks, parameters, num_layers, rounds, seed)


def _measure_one(
    num_tasks: int, num_parameters: int, num_layers: int, rounds: int, seed: int
) -> Line:
    make = partial(make_mlp, num_tasks, num_parameters, num_layers=num_layers, seed=seed)
    methods = {name: METHODS[name](make()) for name in ("plain loop", "pcgrad")}
    workload = methods["pcgrad"].workload
    if num_tasks**2 * workload.num_shared <= _CHECKED:
        check(methods["pcgrad"])
    actions = {name: Action(method) for name, method in methods.items()}
    timings = interleaved(actions, rounds=rounds, warm_up=2)
    pairs = zip(timings.seconds["pcgrad"], timings.seconds["plain loop"], strict=True)
    extra = Quartiles.of([ours - plain for ours, plain in pairs]).median
    plain = timings.of("plain loop").median
    return Line(num_tasks, workload.num_shared, len(workload.shared()), extra, plain)


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """Writes the lines with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Line))
        writer.writerows(astuple(line) for line in lines)


def read_csv(path: Path) -> list[Line]:
    """Reads the lines back.

    Raises:
        ValueError: the file holds something else.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [
                Line(
                    int(row["num_tasks"]),
                    int(row["num_parameters"]),
                    int(row["num_tensors"]),
                    float(row["extra"]),
                    float(row["plain"]),
                )
                for row in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: must be a file that `steps` wrote, got {error}; run `steps` again"
            ) from error


def _terms(num_tasks: int, num_parameters: int, num_tensors: int) -> tuple[float, ...]:
    numbers = float(num_tasks) * num_parameters
    return (1.0, float(num_tasks * num_tensors), numbers, num_tasks * numbers)
