"""The tasks' gradients of several processes as one: averaged, and each process with its columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradsurgery.buckets import Bucket, copy, cut
from gradsurgery.buffer import Combine, GradientBuffer, Grams
from gradsurgery.collectives import average, everybodys, sum_of_own, sum_over
from gradsurgery.memory import column_dtype, like, num_columns
from gradsurgery.rows import Units

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AveragedBuffer(GradientBuffer):
    """The mean over several processes of the gradients that each keeps apart.

    A task that a process has no gradient of counts as zero there. Of the mean of the rows
    ``[T, P]`` each of W processes gets ``P / W`` columns (reduce-scatter), computes the Gram matrix
    of those and adds up the T×T numbers (all-reduce), combines its columns, and the combined
    gradient goes to all (all-gather): ``(T + 1)·P·(W - 1) / W`` numbers sent by each process, where
    an all-reduce of the rows would send ``2·T·P·(W - 1) / W``.

    Args:
        own: what this process keeps.
        tasks_of: the tasks that reached each parameter on any process, by parameter, in order.
        outside: gradients that belong to no task, to be averaged at once; ``None`` for one that
            other processes have.
        alone: whether parameters that one task alone reached are in the rows as well.
        group: the processes.
    """

    def __init__(
        self,
        own: GradientBuffer,
        tasks_of: Mapping[Tensor, Collection[int]],
        outside: Mapping[Tensor, Tensor | None],
        alone: bool,
        group: ProcessGroup,
    ) -> None:
        from torch.distributed import get_rank, get_world_size

        super().__init__(own.dtype)
        self._own = own
        self._group = group
        self._num_processes = get_world_size(group)
        self._process = get_rank(group)
        tasks = sorted({task for tasks in tasks_of.values() for task in tasks})
        self.slots = {task: slot for slot, task in enumerate(tasks)}
        for parameter, by in tasks_of.items():
            if by:
                self._touched[parameter] = {self.slots[task] for task in by}
        self.outside = average(outside, group)
        self._in_rows = self.touched() if alone else self.shared()
        self._buckets: list[Bucket] = []
        self._columns: list[Tensor] = []  # of each bucket, [T, width]

    def settle(self) -> None:
        """Averages the rows over the processes and keeps this one's columns of them."""
        self._own.check_shapes()
        self._buckets = cut(self._in_rows, self._row_dtype, self._num_processes)
        self._columns = [self._reduce(bucket) for bucket in self._buckets]

    def grams(self, gram_matrices: Grams, units: Units, *, alone: bool) -> Tensor:  # [S, T, T]
        """Gram matrices of the averaged gradients, equal on all processes."""
        num_slots = len(self.slots)
        device = next(iter(self._touched)).device
        blank = gram_matrices(torch.zeros(num_slots, 0, device=device), [0, 0])[0]
        found = [blank.clone() for _ in range(units.number)]
        for bucket, columns in zip(self._buckets, self._columns, strict=True):
            for bounds, owners in bucket.runs(self._process, units, self.shared()):
                grams = gram_matrices(columns, bounds)
                for (unit, is_shared), gram in zip(owners, grams, strict=True):
                    if is_shared or alone:
                        found[unit] += gram.to(device)
        return sum_over(torch.stack(found), self._group)

    def combine(
        self,
        combine_segments: Combine,
        units: Units,
        weights: Tensor,  # [S, T], by slot
        alone_weights: Tensor | None = None,  # [S, T]
    ) -> dict[Tensor, Tensor]:
        """One gradient for each parameter that any process reached, in memory of our own rows."""
        # Our rows have been read: what goes to `.grad` may be written over the first task's.
        result = {parameter: self._target(parameter) for parameter in self._touched}
        for bucket, columns in zip(self._buckets, self._columns, strict=True):
            for bounds, owners in bucket.runs(self._process, units, self.shared()):
                rows = [
                    weights[unit] if is_shared or alone_weights is None else alone_weights[unit]
                    for unit, is_shared in owners
                ]
                here = torch.stack(rows).to(columns.device, non_blocking=True)
                combine_segments(here, columns, bounds, columns[0])
            self._gather(bucket, columns[0], result)
        in_rows = set(self._in_rows)
        plain: dict[Tensor, Tensor | None] = {}
        for parameter in self._touched:
            if parameter not in in_rows:
                is_here = bool(self._own.grads_of(parameter))
                plain[parameter] = result[parameter] if is_here else result[parameter].zero_()
        result.update(average(plain, self._group))
        return result

    def clear(self) -> None:
        """Forgets the step's gradients, here and in the buffer they came from."""
        self._columns.clear()
        self._own.clear()
        super().clear()

    def _reduce(self, bucket: Bucket) -> Tensor:  # [T, width]
        sizes = self._num_processes, len(self.slots), bucket.width
        rows = torch.zeros(sizes, dtype=bucket.dtype, device=bucket.device)
        copies = []
        for process, pieces in enumerate(bucket.pieces):
            for piece in pieces:
                for task, grad in self._own.grads_of(piece.parameter).items():
                    into = rows[process, self.slots[task], piece.columns]
                    copies.append((into, piece.of(grad)))
        copy(copies)
        rows /= self._num_processes
        return sum_of_own(rows, self._group)

    def _gather(
        self,
        bucket: Bucket,
        columns: Tensor,  # [width]
        into: Mapping[Tensor, Tensor],
    ) -> None:
        combined = everybodys(columns, self._group)
        copy(
            (piece.of(into[piece.parameter]), of_process[piece.columns])
            for pieces, of_process in zip(bucket.pieces, combined, strict=True)
            for piece in pieces
        )

    def _row_dtype(self, parameter: Tensor) -> torch.dtype:
        """The type in which a parameter's gradients are averaged, the same on every process."""
        return self.dtype or column_dtype(parameter)

    def _target(self, parameter: Tensor) -> Tensor:
        """Where a combined gradient goes: the memory of the first task's, if there is one here."""
        for task in self._own.grads_of(parameter):
            return self._own.hand_out(parameter, self._own.slots[task])
        size, dtype = num_columns(parameter), column_dtype(parameter)
        empty = torch.empty(size, dtype=dtype, device=parameter.device)
        return self.as_grad(parameter, like(parameter, empty))
