"""Gradients cut into buckets that travel in one collective, and those into columns of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery.gradients.memory import flat, num_columns, real
from gradsurgery.gradients.rows import Units

_COLUMNS = 1 << 22  # that travel in one collective: T rows of them are all the memory it takes


class Piece(NamedTuple):
    """A stretch of a parameter's gradient and the columns of a process that it becomes."""

    parameter: Tensor
    begin: int
    end: int
    column: int

    @property
    def columns(self) -> slice:
        """The columns."""
        return slice(self.column, self.column + self.end - self.begin)

    def of(self, grad: Tensor) -> Tensor:
        """The stretch of a gradient of the parameter, flat; a complex one as real numbers."""
        return flat(real(grad))[self.begin : self.end]


class Bucket(NamedTuple):
    """Columns that travel together: the same number of them for each process."""

    dtype: torch.dtype
    device: torch.device
    width: int
    pieces: list[list[Piece]]  # of each process

    def runs(
        self, process: int, units: Units, shared: Iterable[Tensor]
    ) -> list[tuple[list[int], list[tuple[int, bool]]]]:
        """Stretches of neighbouring columns of a process: the bounds of their segments, the unit of
        each, and whether several tasks reached it."""
        several = set(shared)
        found: list[tuple[list[int], list[tuple[int, bool]]]] = []
        for piece in self.pieces[process]:
            start, end = piece.columns.start, piece.columns.stop
            for unit in units.of(piece.parameter):
                owner = (unit, piece.parameter in several)
                if not found or found[-1][0][-1] != start:
                    found.append(([start, end], [owner]))
                elif found[-1][1][-1] == owner:
                    found[-1][0][-1] = end
                else:
                    found[-1][0].append(end)
                    found[-1][1].append(owner)
        return found


def cut(
    parameters: Iterable[Tensor], dtype: Callable[[Tensor], torch.dtype], num_processes: int
) -> list[Bucket]:
    """Parameters cut into buckets, and each of those into columns for every process.

    Args:
        parameters: whose gradients travel; a complex number takes two columns.
        dtype: of the columns of each, a real type.
        num_processes: among which they are divided.

    Example:
        >>> (bucket,) = cut([torch.ones(5), torch.ones(2)], lambda p: p.dtype, num_processes=2)
        >>> bucket.width, [[piece.columns for piece in pieces] for pieces in bucket.pieces]
        (4, [[slice(0, 4, None)], [slice(0, 1, None), slice(1, 3, None)]])
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((dtype(parameter), parameter.device), []).append(parameter)
    buckets: list[Bucket] = []
    for kind, of_kind in kinds.items():
        in_all = sum(num_columns(parameter) for parameter in of_kind)
        borders, widths = [0], []
        for first in range(0, in_all, _COLUMNS):
            last = min(first + _COLUMNS, in_all)
            widths.append(-(-(last - first) // num_processes))
            borders += [min(first + widths[-1] * (i + 1), last) for i in range(num_processes)]
        pieces = _between(borders, of_kind)
        for number, width in enumerate(widths):
            of_bucket = pieces[number * num_processes : (number + 1) * num_processes]
            buckets.append(Bucket(*kind, width, of_bucket))
    return buckets


def copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair to the first."""
    into, new = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    if into:
        torch._foreach_copy_(list(into), list(new))


def _between(borders: Sequence[int], parameters: Iterable[Tensor]) -> list[list[Piece]]:
    """Finds which stretches of the parameters, one behind the other, lie between two borders."""
    pieces: list[list[Piece]] = [[] for _ in pairwise(borders)]
    place = start = 0
    for parameter in parameters:
        begin, size = 0, num_columns(parameter)
        while begin < size:
            while start + begin >= borders[place + 1]:
                place += 1
            end = min(size, borders[place + 1] - start)
            pieces[place].append(Piece(parameter, begin, end, start + begin - borders[place]))
            begin = end
        start += size
    return pieces
