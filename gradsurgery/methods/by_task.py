"""Numbers that a method keeps for each task, or each pair of tasks, from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradsurgery.gradients.places import picked, placed
from gradsurgery.method import Seen


class ByTask:
    """A number of each of N tasks in each of U units; tasks and units that are absent keep theirs.

    Args:
        start: what every number is at first.
        pairs: whether there is one of each pair of tasks instead, N×N in each unit.

    Example:
        >>> kept = ByTask(start=1.0)
        >>> seen = Seen(torch.eye(2)[None], None, (0, 2), ("a", "b", "c"), seed=0, step=0)
        >>> kept.set(seen, 5 * kept.get(seen, like=seen.gram[..., 0]))
        >>> kept.all
        tensor([[5., 1., 5.]])
    """

    def __init__(self, start: float, *, pairs: bool = False) -> None:
        self.start = start
        self.all: Tensor | None = None  # [U, N], [U, N, N]
        self._num_axes = 2 if pairs else 1

    def get(self, seen: Seen, like: Tensor) -> Tensor:  # [S, T], [S, T, T]
        """Gives the numbers of the units and tasks that take part, of the type and on the device of
        ``like``."""
        self.all = self._fitted(seen, like)
        values = self.all
        for axis, places in self._places(seen):
            values = picked(values.transpose(0, axis), places).transpose(0, axis)
        return values

    def set(self, seen: Seen, values: Tensor) -> None:  # [S, T], [S, T, T]
        """Takes new numbers of those that take part, after :meth:`get`."""
        kept = self.all
        assert kept is not None
        if values.shape != kept.shape:
            marked = torch.stack([values, torch.ones_like(values)], -1)
            for axis, places in self._places(seen):
                marked = placed(marked.transpose(0, axis), places, kept.shape[axis])
                marked = marked.transpose(0, axis)
            values = torch.where(marked[..., 1] > 0, marked[..., 0], kept)
        # In place, so that a captured CUDA graph goes on from what its last replay has left.
        kept.copy_(values)

    def saved(self) -> Tensor | None:
        """Copies all of them."""
        return None if self.all is None else self.all.clone()

    def restore(self, saved: Tensor | None) -> None:
        """Takes back what :meth:`saved` gave."""
        self.all = None if saved is None else saved.clone()

    def _places(self, seen: Seen) -> Iterator[tuple[int, Sequence[int]]]:
        yield 0, seen.units
        for axis in range(self._num_axes):
            yield axis + 1, seen.tasks

    def _fitted(self, seen: Seen, like: Tensor) -> Tensor:  # [U, N], [U, N, N]
        old = self.all
        num_units = max(seen.units) + 1 if old is None else max(*seen.units, len(old) - 1) + 1
        shape = (num_units, *[len(seen.names)] * self._num_axes)
        if old is not None and old.shape == shape:
            return old.to(like)
        fitted = like.new_full(shape, self.start)
        if old is not None:
            fitted[tuple(map(slice, old.shape))] = old
        return fitted
