"""The tasks' gradients of several processes as one: averaged, and each process with its columns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from gradsurgery.buffer import Combine, GradientBuffer, Grams, Units, flat, like, strides_of
from gradsurgery.shards import is_spread

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_COLUMNS = 1 << 22  # that travel in one collective: T rows of them are all the memory it takes


def check_group(group: object, parameters: Iterable[Tensor], tasks: Iterable[Hashable]) -> None:
    """Refuses a process group that surgery cannot use.

    Raises:
        TypeError, ValueError: in one line.
    """
    from torch.distributed import ProcessGroup

    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"process_group: must be a torch.distributed.ProcessGroup, got {type(group).__name__}; "
            "give it torch.distributed.group.WORLD after init_process_group()"
        )
    if not list(tasks):
        raise ValueError(
            "tasks: must be declared where there is a process_group, because processes may meet "
            "them in another order; name them all"
        )
    if any(is_spread(parameter) for parameter in parameters):
        raise ValueError(
            "process_group: must be left out where parameters are sharded; fully_shard() already "
            "averages each task's gradient"
        )


def check_alike(group: ProcessGroup, what: object) -> None:
    """Refuses processes that were set up differently, on all of them.

    Raises:
        ValueError: which process differs from the first, and in what it may.
    """
    from torch.distributed import all_gather_object, get_world_size

    found: list[Any] = [None] * get_world_size(group)
    all_gather_object(found, repr(what), group=group)
    for process, of_process in enumerate(found):
        if of_process != found[0]:
            raise ValueError(
                "process_group: every process must declare the same tasks, options, step and "
                f"parameters, process {process} has {_difference(of_process, found[0])}; "
                "build the optimizer alike on all of them"
            )


def average(grads: Mapping[Tensor, Tensor | None], group: ProcessGroup) -> dict[Tensor, Tensor]:
    """The mean over the processes, in place; a gradient that is missing here counts as zero.

    Args:
        grads: by parameter, the same parameters in the same order on every process.
        group: the processes.
    """
    from torch.distributed import all_reduce, get_world_size

    averaged: dict[Tensor, Tensor] = {}
    for parameter, grad in grads.items():
        averaged[parameter] = _in_order(parameter, grad)
    for bucket in _buckets(averaged, lambda p: averaged[p].dtype, 1):
        (pieces,) = bucket.pieces
        columns = torch.zeros(bucket.width, dtype=bucket.dtype, device=bucket.device)
        _copy((columns[piece.columns], _part(averaged[piece.parameter], piece)) for piece in pieces)
        columns /= get_world_size(group)
        all_reduce(columns, group=group)
        _copy((_part(averaged[piece.parameter], piece), columns[piece.columns]) for piece in pieces)
    return averaged


def sum_over(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the processes, in place."""
    from torch.distributed import all_reduce

    all_reduce(part, group=group)
    return part


class AveragedBuffer(GradientBuffer):
    """The mean over several processes of the gradients that each keeps apart.

    The processes first tell each other which task reached which parameter: a table of bytes, read
    by the host. A task that a process has no gradient of counts as zero there. Of the mean of the
    rows ``[T, P]`` each of W processes then gets ``P / W`` columns (reduce-scatter), computes the
    Gram matrix of those and adds up the T×T numbers (all-reduce), combines its columns, and the
    combined gradient goes to all (all-gather): ``(T + 1)·P·(W - 1) / W`` numbers sent by each
    process, where an all-reduce of the rows would send ``2·T·P·(W - 1) / W``.

    Args:
        own: what this process keeps.
        parameters: all parameters of the optimizer, in order.
        num_tasks: those declared.
        outside: gradients that belong to no task, to be averaged at once.
        alone: whether parameters that one task alone reached are in the rows as well.
        group: the processes.
    """

    def __init__(
        self,
        own: GradientBuffer,
        parameters: Sequence[Tensor],
        num_tasks: int,
        outside: Mapping[Tensor, Tensor],
        alone: bool,
        group: ProcessGroup,
    ) -> None:
        from torch.distributed import get_rank, get_world_size

        super().__init__(own.dtype)
        self._own = own
        self._group = group
        self._num_processes = get_world_size(group)
        self._process = get_rank(group)
        reached = self._agree(parameters, num_tasks, outside)
        tasks = sorted({task for of_parameter in reached for task in of_parameter} - {num_tasks})
        self.slots = {task: slot for slot, task in enumerate(tasks)}
        for parameter, by in zip(parameters, reached, strict=True):
            slots = {self.slots[task] for task in by if task != num_tasks}
            if slots:
                self._touched[parameter] = slots
        self.outside = average(
            {
                parameter: outside.get(parameter)
                for parameter, by in zip(parameters, reached, strict=True)
                if num_tasks in by
            },
            group,
        )
        self._in_rows = self.touched() if alone else self.shared()
        self._buckets: list[_Bucket] = []
        self._columns: list[Tensor] = []  # of each bucket, [T, width]

    def settle(self) -> None:
        """Averages the rows over the processes and keeps this one's columns of them."""
        self._buckets = _buckets(
            self._in_rows, lambda p: self.dtype or p.dtype, self._num_processes
        )
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
        return {parameter: grad.to(parameter.dtype) for parameter, grad in result.items()}

    def clear(self) -> None:
        """Forgets the step's gradients, here and in the buffer they came from."""
        self._columns.clear()
        self._own.clear()
        super().clear()

    def _agree(
        self, parameters: Sequence[Tensor], num_tasks: int, outside: Mapping[Tensor, Tensor]
    ) -> list[list[int]]:
        """Which tasks reached each parameter on any process, ``num_tasks`` for gradients outside
        every task."""
        from torch.distributed import ReduceOp, all_reduce

        table = []
        for parameter in parameters:
            here = self._own.grads_of(parameter)
            table.append([task in here for task in range(num_tasks)] + [parameter in outside])
        shared = torch.tensor(table, dtype=torch.uint8).to(parameters[0].device)
        all_reduce(shared, ReduceOp.MAX, group=self._group)
        return [[task for task, is_so in enumerate(by) if is_so] for by in shared.tolist()]

    def _reduce(self, bucket: _Bucket) -> Tensor:  # [T, width]
        num_slots = len(self.slots)
        sizes = self._num_processes, num_slots, bucket.width
        rows = torch.zeros(sizes, dtype=bucket.dtype, device=bucket.device)
        copies = []
        for process, pieces in enumerate(bucket.pieces):
            for piece in pieces:
                for task, grad in self._own.grads_of(piece.parameter).items():
                    into = rows[process, self.slots[task], piece.columns]
                    copies.append((into, _part(grad, piece)))
        _copy(copies)
        rows /= self._num_processes
        mean = torch.empty(sizes[1:], dtype=bucket.dtype, device=bucket.device)
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(
            mean.view(-1), rows.view(-1), group=self._group
        )
        return mean

    def _gather(
        self, bucket: _Bucket, columns: Tensor, into: Mapping[Tensor, Tensor]
    ) -> None:  # [width]
        sizes = self._num_processes, bucket.width
        combined = torch.empty(sizes, dtype=bucket.dtype, device=bucket.device)
        _collective("all_gather_single", "all_gather_into_tensor")(
            combined.view(-1), columns, group=self._group
        )
        _copy(
            (_part(into[piece.parameter], piece), of_process[piece.columns])
            for pieces, of_process in zip(bucket.pieces, combined, strict=True)
            for piece in pieces
        )

    def _target(self, parameter: Tensor) -> Tensor:
        """Where a combined gradient goes: the memory of the first task's, if there is one here."""
        for grad in self._own.grads_of(parameter).values():
            return grad
        dtype = self.dtype or parameter.dtype
        return like(parameter, torch.empty(parameter.numel(), dtype=dtype, device=parameter.device))


class _Piece(NamedTuple):
    """A stretch of a parameter's gradient and the columns of a process that it becomes."""

    parameter: Tensor
    begin: int
    end: int
    column: int

    @property
    def columns(self) -> slice:
        return slice(self.column, self.column + self.end - self.begin)


class _Bucket(NamedTuple):
    """Columns that travel together: the same number of them for each process."""

    dtype: torch.dtype
    device: torch.device
    width: int
    pieces: list[list[_Piece]]  # of each process

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


def _buckets(
    parameters: Iterable[Tensor], dtype: Callable[[Tensor], torch.dtype], num_processes: int
) -> list[_Bucket]:
    """Parameters cut into buckets, and each of those into columns for every process."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((dtype(parameter), parameter.device), []).append(parameter)
    buckets = []
    for kind, of_kind in kinds.items():
        num_columns = sum(parameter.numel() for parameter in of_kind)
        borders = [0]
        for first in range(0, num_columns, _COLUMNS):
            last = min(first + _COLUMNS, num_columns)
            width = -(-(last - first) // num_processes)
            borders += [min(first + width * (i + 1), last) for i in range(num_processes)]
            buckets.append(_Bucket(*kind, width, [[] for _ in range(num_processes)]))
        cut = _cut(of_kind, borders)
        for number, bucket in enumerate(buckets[-(len(borders) // num_processes) :]):
            for process in range(num_processes):
                bucket.pieces[process].extend(cut[number * num_processes + process])
    return buckets


def _cut(parameters: Iterable[Tensor], borders: Sequence[int]) -> list[list[_Piece]]:
    """Which stretches of the parameters, one behind the other, lie between two borders."""
    pieces: list[list[_Piece]] = [[] for _ in pairwise(borders)]
    place = start = 0
    for parameter in parameters:
        begin = 0
        while begin < parameter.numel():
            while start + begin >= borders[place + 1]:
                place += 1
            end = min(parameter.numel(), borders[place + 1] - start)
            pieces[place].append(_Piece(parameter, begin, end, start + begin - borders[place]))
            begin = end
        start += parameter.numel()
    return pieces


def _in_order(parameter: Tensor, grad: Tensor | None) -> Tensor:
    """A gradient in the memory order of its parameter, zero where there is none."""
    if grad is not None and grad.stride() == strides_of(parameter):
        return grad
    dtype = parameter.dtype if grad is None else grad.dtype
    zeros = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
    kept = like(parameter, zeros)
    return kept if grad is None else kept.copy_(grad)


def _part(grad: Tensor, piece: _Piece) -> Tensor:
    return flat(grad)[piece.begin : piece.end]


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair to the first."""
    into, new = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    if into:
        torch._foreach_copy_(list(into), list(new))


def _collective(name: str, before: str) -> Callable[..., Any]:
    """A collective under the name that it has in this version of torch."""
    found: Callable[..., Any] | None = getattr(torch.distributed, name, None)
    return found or cast("Callable[..., Any]", getattr(torch.distributed, before))


def _difference(one: str, other: str) -> str:
    """Where two descriptions part, in a few words."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    around = slice(max(0, place - 20), place + 40)
    return f"{one[around]!r} where process 0 has {other[around]!r}"
