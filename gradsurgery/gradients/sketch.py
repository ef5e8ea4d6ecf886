"""Sketches of long vectors: random projections to k numbers that estimate inner products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from gradsurgery.arguments import check_integer
from gradsurgery.hashing import drawn, key_of, mix

_COLUMNS = 1 << 20  # of a stretch, which is all the memory that a projection takes


@dataclass(frozen=True)
class Sketch:
    r"""How gradients are projected where ``memory="sketch"``, and over how many steps averaged.

    The Gram matrix is estimated from k numbers of each task. In ``backward(losses)`` one more
    backward of the weighted losses follows. In blocks there is none to run again, so the weights
    go on the next step's gradients: that is another method. A parameter once shared counts as
    shared from then on.

    Args:
        size: k, the numbers that are kept of each task's gradient. Cosines come out with a standard
            deviation of about :math:`1/\sqrt{k}`; models of up to k parameters lose nothing.
        momentum: share of the earlier steps in what a step's weights are made of, where they come
            with a delay: the sketches are averaged as :math:`s \leftarrow \mu s + (1 - \mu) s_t`,
            which makes them those of averaged gradients.

    Raises:
        TypeError, ValueError: one of them is out of its range.

    Example:
        >>> Sketch(size=4096, momentum=0.9)
        Sketch(size=4096, momentum=0.9)
    """

    size: int = 1 << 16
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_integer("size", self.size, at_least=1)
        if not (isinstance(self.momentum, Real) and 0 <= self.momentum < 1):
            raise ValueError(
                f"momentum: must be at least 0 and below 1, got {self.momentum}; 0 averages nothing"
            )


class Projection:
    r"""Adds up columns with random signs, at places among k (a count-sketch).

    Stretches of B·k columns are cut into B blocks. Every column has a sign, every block is turned
    by a number of places and added to the others; every stretch then is turned and signed as a
    whole. Up to k columns lose nothing.

    .. math:: \mathrm{E}\,\langle Sx, Sy \rangle = \langle x, y \rangle, \qquad
        \mathrm{Var} \approx \frac{\|x\|^2 \|y\|^2 + \langle x, y \rangle^2}{k}

    Args:
        size: k; no more than there are columns is used.
        num_columns: how many columns there are.
        seed: of signs and places; equal seeds give equal projections on every device and process.
        device: where the columns are.
        dtype: of the k numbers.

    Example:
        >>> projection = Projection(2, 5, seed=0, device=torch.device("cpu"), dtype=torch.float32)
        >>> projection.add([(0, torch.ones(3)), (3, torch.ones(2))], into=torch.zeros(2)).shape
        torch.Size([2])

    Source: Moses Charikar, Kevin Chen and Martin Farach-Colton, "Finding Frequent Items in Data
    Streams", 2002.
    """

    def __init__(
        self, size: int, num_columns: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.size = size = max(1, min(size, num_columns))
        num_blocks = min(-(-num_columns // size), max(1, _COLUMNS // size)) or 1
        self._width = num_blocks * size
        key, _ = key_of(seed, 0, None)
        of_signs, of_blocks, self._of_stretches = (cast("int", mix(key, use)) for use in range(3))
        is_negative = drawn(self._width, of_signs, device) & 1
        self._signs = (1 - 2 * is_negative).to(dtype).view(num_blocks, size)
        turns = drawn(num_blocks, of_blocks, device)
        self._sources = (torch.arange(size, device=device) - turns[:, None]) % size

    def add(self, pieces: Iterable[tuple[int, Tensor]], into: Tensor) -> Tensor:  # [k]
        """Adds the projection of some columns, the others of which are zero.

        Args:
            pieces: first columns and numbers, flat, in order.
            into: what it is added to, ``[k]``.
        """
        for number, parts in self._stretches(pieces):
            columns = into.new_zeros(self._width)
            ends = [(start, start + part.numel()) for start, part in parts]
            torch._foreach_copy_([columns[start:end] for start, end in ends], [p for _, p in parts])
            signed = columns.view_as(self._signs).mul_(self._signs)
            found = signed.gather(1, self._sources).sum(0)
            drawn_here = cast("int", mix(self._of_stretches, number))
            sign = 1 - 2 * (drawn_here & 1)
            into.add_(found.roll((drawn_here >> 1) % self.size), alpha=sign)
        return into

    def _stretches(
        self, pieces: Iterable[tuple[int, Tensor]]
    ) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
        """Cuts pieces at the ends of the stretches: numbers of these, and what lies in each."""
        last, parts = 0, list[tuple[int, Tensor]]()
        for start, piece in pieces:
            done = 0
            while done < piece.numel():
                number, place = divmod(start + done, self._width)
                if number != last and parts:
                    yield last, parts
                    parts = []
                last = number
                num = min(piece.numel() - done, self._width - place)
                parts.append((place, piece[done : done + num]))
                done += num
        if parts:
            yield last, parts
