"""Flat rows ``[T, P]`` of gradients: where each parameter lies, and which go together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery.gradients.memory import alias, grad_dtype, is_held, like, num_columns, storage_of
from gradsurgery.gradients.shards import Spread, local

_ALIGNMENT = 64  # elements: a cache line of the narrowest type
_LEAST_PADDED = 20 * _ALIGNMENT  # columns: padding never takes 5 % of the memory


class Units:
    """Groups of parameters that go together, numbered from 0.

    Args:
        groups: collections of parameters; ``None`` is one group of all there are. A parameter may
            be in several groups, or in none.
        numbers: of the groups among more that there are in other steps; by default those from 0.
    """

    def __init__(
        self,
        groups: Iterable[Iterable[Tensor]] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self._of: dict[Tensor, list[int]] | None = None
        self.number = 1
        if groups is not None:
            self._of = {}
            self.number = 0
            for group in groups:
                for parameter in group:
                    self._of.setdefault(parameter, []).append(self.number)
                self.number += 1
        self.numbers = tuple(range(self.number) if numbers is None else numbers)

    @property
    def are_all(self) -> bool:
        """Tells whether there is one group, of all parameters there are."""
        return self._of is None

    def of(self, parameter: Tensor) -> Sequence[int]:
        """The numbers of a parameter's groups."""
        return (0,) if self._of is None else self._of.get(parameter, ())


class Piece(NamedTuple):
    """Neighbouring columns of some rows, for one call of a kernel.

    Attributes:
        matrix: ``[T, ...]``.
        bounds: of segments in it.
        first: the first of these among the segments that were asked for.
        column: of the rows, at which ``matrix`` begins.
    """

    matrix: Tensor
    bounds: Sequence[int]
    first: int
    column: int

    def owners(self, units: Sequence[int]) -> Sequence[int]:
        """The units of its segments, of those of all."""
        return units[self.first : self.first + len(self.bounds) - 1]


class Rows:
    """One flat matrix ``[T, P]`` of a device and type, and where in it each parameter lies.

    Complex numbers are two real ones each. Every row starts aligned, so that a GPU reads several of
    its numbers at once. What lies between the end of a row and the next is part of no view: nobody
    writes or reads it.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        over: Spread | None,
        parameters: Sequence[Tensor],
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.over = over
        self.matrix: Tensor | None = None
        self.segments: dict[Tensor, int] = {}
        self._sizes = {parameter: num_columns(local(parameter)) for parameter in parameters}
        self._forms = {parameter: _form(parameter) for parameter in parameters}
        self.num_columns = 0
        self.views: list[dict[Tensor, Tensor]] = []
        self._aliases: list[dict[Tensor, tuple[Tensor, int]]] = []  # with their storages
        # Round sizes first: then every other segment starts aligned, without any padding to clean.
        # Of sharded ones the whole size, so that a checkpoint of any process restores the order.
        # Complex ones before those that may be odd: their pairs must not be split.
        for parameter in sorted(
            parameters, key=lambda p: (num_columns(p) % _ALIGNMENT != 0, not p.is_complex())
        ):
            self.segments[parameter] = self.num_columns
            self.num_columns += self._sizes[parameter]

    @property
    def num_rows(self) -> int:
        return 0 if self.matrix is None else self.matrix.shape[0]

    def reserve(self, num_rows: int) -> None:
        """Makes room for more tasks; what the rows hold stays."""
        if num_rows <= self.num_rows:
            return
        stride = _row_stride(self.num_columns)
        if stride % 2 and any(parameter.is_complex() for parameter in self.segments):
            stride += 1
        padded = self._room(num_rows, stride)
        larger = padded[:, : self.num_columns]
        if self.matrix is not None:
            larger[: self.num_rows].copy_(self.matrix)
        self.matrix = larger
        self.views = [
            {p: like(local(p), row, start) for p, start in self.segments.items()} for row in larger
        ]
        self._aliases = [{} for _ in larger]

    def _room(self, num_rows: int, stride: int) -> Tensor:
        return torch.empty(num_rows, stride, dtype=self.dtype, device=self.device)

    def is_outdated(self) -> bool:
        """Tells whether a parameter has another device, type, shape or memory order than when its
        place was made."""
        return any(_form(parameter) != form for parameter, form in self._forms.items())

    def has_another_shape(self, parameter: Tensor) -> bool:
        """Tells whether a parameter has another shape than when its place was made."""
        return bool(local(parameter).shape != self._forms[parameter][2])

    def lend(self, parameter: Tensor, slot: int) -> Tensor:
        """Like :meth:`view`, for others to keep: :meth:`held` tells whether anybody does."""
        view = self.views[slot][parameter]
        lent = self._aliases[slot].get(parameter)
        # Whoever had it may have moved its storage, to memory that processes share for example.
        if lent is None or lent[0].data_ptr() != view.data_ptr():
            try:
                made = alias(view)
            except (BufferError, RuntimeError):  # a device, or a mode, that has no addresses
                return view.clone()
            self._aliases[slot][parameter] = lent = made, storage_of(made)
        # Never the same tensor again: an assignment to its `data` changes that alone.
        return lent[0].detach()

    def out(self, used: Tensor) -> Tensor:  # [P]
        """Memory for the combined gradient of the rows in use: that of the first."""
        return used[0]

    def held(self) -> list[Tensor]:
        """The parameters of which somebody still has a gradient that lies here."""
        return [
            parameter
            for lent in self._aliases
            for parameter, (_, storage) in lent.items()
            if is_held(storage)
        ]

    def runs(self, units: Units) -> list[tuple[list[int], list[int]]]:
        """Stretches of neighbouring columns: the bounds of their segments, each of one unit, and
        which units those are."""
        if units.are_all:
            return [([0, self.num_columns], [0])]
        found: list[tuple[list[int], list[int]]] = []
        for parameter, start in self.segments.items():
            end = start + self._sizes[parameter]
            for unit in units.of(parameter):
                if not found or found[-1][0][-1] != start:
                    found.append(([start, end], [unit]))
                elif found[-1][1][-1] == unit:
                    found[-1][0][-1] = end
                else:
                    found[-1][0].append(end)
                    found[-1][1].append(unit)
        return found

    def pieces(self, num_slots: int, bounds: Sequence[int]) -> Iterator[Piece]:
        """The columns of some segments, as kernels see them."""
        assert self.matrix is not None
        yield Piece(self.matrix[:num_slots], bounds, 0, 0)

    def give(self, combined: Tensor, column: int) -> None:
        """Does nothing with what became of some columns: it lies in the first row."""

    def blank(self, places: Sequence[tuple[Tensor, int]]) -> None:
        """Sets segments to zero, by parameter and slot."""
        if places:
            torch._foreach_zero_([self.view(parameter, slot) for parameter, slot in places])

    def put(self, parameter: Tensor, slot: int, grad: Tensor) -> None:
        """Copies a gradient to its place."""
        self.view(parameter, slot).copy_(grad)

    def taken(self, parameter: Tensor, slot: int) -> Tensor:
        """A copy of a segment."""
        return self.view(parameter, slot).clone()

    def view(self, parameter: Tensor, slot: int) -> Tensor:
        """A parameter's segment of a row, in the shape of the parameter."""
        return self.views[slot][parameter]


def _form(
    parameter: Tensor,
) -> tuple[torch.device, torch.dtype | None, torch.Size, tuple[int, ...]]:
    """Gives what a parameter's place in the rows depends on."""
    part = local(parameter)
    return part.device, grad_dtype(parameter), part.shape, part.stride()


def _row_stride(num_columns: int) -> int:
    """Elements from the start of one row to that of the next."""
    return num_columns + (-num_columns % _ALIGNMENT if num_columns >= _LEAST_PADDED else 0)
