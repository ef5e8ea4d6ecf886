"""Rows in the host's memory, of gradients on a device that has no room for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from gradsurgery.gradients.memory import flat, is_whole, real, strides_of
from gradsurgery.gradients.rows import Piece, Rows
from gradsurgery.gradients.shards import Spread, local

_COLUMNS = 1 << 22  # on the device at a time, twice


def is_away(device: torch.device) -> bool:
    """Tells whether a device's memory is another than the host's.

    Example:
        >>> is_away(torch.device("cpu"))
        False
    """
    return device.type != "cpu"


class Road:
    """The way between a device and the host: on CUDA a stream of its own, so that copies run while
    the device computes, and pinned memory. Nothing waits on the host.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def room(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host."""
        is_pinned = self._stream is not None
        return torch.empty_strided(shape, strides, dtype=dtype, pin_memory=is_pinned)

    def send(
        self, places: Sequence[Tensor], grads: Sequence[Tensor], *, adds: bool, waits: bool
    ) -> None:
        """Copies gradients to the host, or adds them to what is there.

        Args:
            places: where on the host.
            grads: on the device.
            adds: whether they are added.
            waits: whether the device's own work must not overtake the copies, because somebody
                goes on using the gradients.
        """
        with self._aside():
            for place, grad in zip(places, grads, strict=True):
                there = self.fetch(place).add_(grad.to(place.dtype)) if adds else grad
                place.copy_(there, non_blocking=True)
                if self._stream is not None:
                    grad.record_stream(self._stream)
        if waits or not all(map(is_whole, grads)):
            self.join()

    def fetch(self, place: Tensor) -> Tensor:
        """A copy of the host's numbers on the device, in order with what was sent before."""
        there = torch.empty_strided(
            place.shape, place.stride(), dtype=place.dtype, device=self.device
        )
        return there.copy_(place, non_blocking=True)

    def block(self, rows: Tensor, start: int, end: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """Columns of the rows on the device, and when they will be there.

        Args:
            rows: on the host, ``[T, P]``.
            start, end: the first column, and the first one after them.
        """
        with self._aside():
            columns = torch.empty(len(rows), end - start, dtype=rows.dtype, device=self.device)
            for there, row in zip(columns, rows, strict=True):  # each in one piece
                there.copy_(row[start:end], non_blocking=True)
            return columns, None if self._stream is None else self._stream.record_event()

    def await_block(self, columns: Tensor, ready: torch.cuda.Event | None) -> Tensor:
        """Lets the device's own work use a block."""
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            columns.record_stream(current)
        return columns

    def join(self) -> None:
        """Lets the device's own work wait for everything on the way."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def arrive(self) -> None:
        """Waits on the host for everything on the way, before it moves the rows themselves."""
        if self._stream is not None:
            self._stream.synchronize()

    def _aside(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self._stream)


def write(
    places: Sequence[Tensor], grads: Sequence[Tensor], road: Road | None, *, adds: bool, waits: bool
) -> None:
    """Copies gradients to their places, or adds them.

    Args:
        places, grads: where, and what.
        road: by which they travel, where the places are on the host.
        adds: whether they are added.
        waits: as in :meth:`Road.send`.

    Example:
        >>> place = torch.ones(2)
        >>> write([place], [torch.ones(2)], None, adds=True, waits=False)
        >>> place.tolist()
        [2.0, 2.0]
    """
    if road is not None:
        road.send(places, grads, adds=adds, waits=waits)
    elif adds:
        alike = [grad.to(place.dtype) for place, grad in zip(places, grads, strict=True)]
        torch._foreach_add_(list(places), alike)
    else:
        torch._foreach_copy_(list(places), list(grads))


class HostRows(Rows):
    """Rows that lie in the host's memory. The passes over them see blocks of columns on the device,
    and what they make goes to memory of its own there.

    Args:
        road: the way from and to the device.
    """

    def __init__(
        self,
        road: Road,
        dtype: torch.dtype,
        over: Spread | None,
        parameters: Sequence[Tensor],
    ) -> None:
        super().__init__(road.device, dtype, over, parameters)
        self._road = road
        self._updates: dict[Tensor, Tensor] = {}

    def reserve(self, num_rows: int) -> None:
        """Makes room for more tasks; what the rows hold stays, once it has arrived."""
        if num_rows > self.num_rows:
            self._road.arrive()
        super().reserve(num_rows)

    def _room(self, num_rows: int, stride: int) -> Tensor:
        return self._road.room((num_rows, stride), (stride, 1), self.dtype)

    def put(self, parameter: Tensor, slot: int, grad: Tensor) -> None:
        """Copies a gradient to its place."""
        self._road.send([self.view(parameter, slot)], [grad], adds=False, waits=False)

    def blank(self, places: Sequence[tuple[Tensor, int]]) -> None:
        """Sets segments to zero, by parameter and slot."""
        for parameter, slot in places:
            zeros = torch.zeros_like(self.view(parameter, slot), device=self.device)
            self.put(parameter, slot, zeros)

    def taken(self, parameter: Tensor, slot: int) -> Tensor:
        """A copy of a segment, on the device."""
        self._road.join()
        return self._road.fetch(self.view(parameter, slot))

    def pieces(self, num_slots: int, bounds: Sequence[int]) -> Iterator[Piece]:
        """Blocks of columns on the device, the next one on its way while one is at work."""
        assert self.matrix is not None
        begin, end = bounds[0], bounds[-1]
        # The last block takes the rest too: no kernel then sees a block that it treats as short.
        edges = [begin + _COLUMNS * i for i in range(max(1, (end - begin) // _COLUMNS))] + [end]
        rows, first = self.matrix[:num_slots], 0
        ahead = self._road.block(rows, *edges[:2])
        for number, (left, right) in enumerate(pairwise(edges)):
            here = ahead
            if number + 2 < len(edges):
                ahead = self._road.block(rows, *edges[number + 1 : number + 3])
            while bounds[first + 1] <= left < right:
                first += 1
            inner = [bound for bound in bounds[first + 1 :] if bound < right]
            cut = [0, *(bound - left for bound in inner), right - left]
            yield Piece(self._road.await_block(*here), cut, first, left)

    def give(self, combined: Tensor, column: int) -> None:
        """Takes what became of some columns to the parameters' updates on the device."""
        end = column + combined.numel()
        for parameter, start in self.segments.items():
            size = self._sizes[parameter]
            if start + size <= column or start >= end or not size:
                continue
            update = self._updates.get(parameter)
            if update is None:
                form = real(local(parameter).detach())
                update = self._updates[parameter] = torch.empty_strided(
                    form.shape, strides_of(form), dtype=self.dtype, device=self.device
                )
            left, right = max(start, column), min(start + size, end)
            flat(update)[left - start : right - start] = combined[left - column : right - column]

    def lend(self, parameter: Tensor, slot: int) -> Tensor:
        """The update of a parameter, or what a row holds of it."""
        update = self._updates.pop(parameter, None)
        return self.taken(parameter, slot) if update is None else update
