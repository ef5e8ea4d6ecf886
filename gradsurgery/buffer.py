"""The per-task gradients of one step: who touched which parameter, in which flat row they lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Gram = Callable[[Tensor], Tensor]
Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class GradientBuffer:
    """Keeps each task's gradient apart until surgery has turned them into one.

    Gradients of the parameters that several tasks reached in an earlier step lie in rows ``[T, P]``
    of one flat tensor for each device and type. Any other gradient is kept as autograd made it: a
    parameter that one task alone reaches never costs a row, and the first step, in which nobody
    knows yet what is shared, holds T gradients and not twice as many.

    Tasks take slots in the order of their arrival, so that the rows in use are always the first.

    Args:
        dtype: type of the rows; ``None`` keeps that of the gradients.
    """

    dtype: torch.dtype | None = None
    slots: dict[int, int] = field(default_factory=dict)  # task -> slot
    _touched: dict[Tensor, set[int]] = field(default_factory=dict)  # parameter -> slots
    _loose: dict[Tensor, dict[int, Tensor]] = field(default_factory=dict)
    _row_sets: list[_Rows] = field(default_factory=list)
    _home: dict[Tensor, _Rows] = field(default_factory=dict)
    _newly_shared: dict[Tensor, None] = field(default_factory=dict)  # a set that keeps its order
    _most_tasks: int = 0  # in any step so far

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat rows."""
        return sum(
            rows.matrix.numel() * rows.matrix.element_size()
            for rows in self._row_sets
            if rows.matrix is not None
        )

    def holds(self, grad: Tensor) -> bool:
        """Whether a gradient lies in the rows, where the next capture would overwrite it."""
        storage = grad.untyped_storage().data_ptr()
        return any(
            rows.matrix is not None and rows.matrix.untyped_storage().data_ptr() == storage
            for rows in self._row_sets
        )

    def capture(self, task: int, grads: Sequence[tuple[Tensor, Tensor]], *, copy: bool) -> None:
        """Adds gradients to those that a task has in this step.

        Args:
            task: the task's number.
            grads: pairs of a parameter and its gradient.
            copy: whether the caller goes on using the gradients; otherwise they become ours.
        """
        if not self.slots and self._newly_shared:
            self._lay_out()
        self._unsettle()
        slot = self.slots.setdefault(task, len(self.slots))
        for rows in self._row_sets:
            rows.reserve(slot + 1)
        targets: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        for parameter, grad in grads:
            slots = self._touched.setdefault(parameter, set())
            again = slot in slots
            slots.add(slot)
            if parameter in self._home:
                target = self._home[parameter].view(parameter, slot)
            elif again:
                target = self._loose[parameter][slot]
            else:
                kept = self._keep(parameter, grad, copy=copy)
                self._loose.setdefault(parameter, {})[slot] = kept
                continue
            targets[again][0].append(target)
            targets[again][1].append(grad)
        for again, (into, new) in targets.items():
            if again and into:
                torch._foreach_add_(into, [g.to(t.dtype) for t, g in zip(into, new, strict=True)])
            elif into:
                torch._foreach_copy_(into, new)

    def shared(self) -> list[Tensor]:
        """Parameters that two or more tasks have reached in this step."""
        return [parameter for parameter, slots in self._touched.items() if len(slots) > 1]

    def touched(self) -> list[Tensor]:
        """Parameters that any task has reached in this step."""
        return list(self._touched)

    def settle(self) -> None:
        """Makes the rows ready for the passes: what no task reached is zero, what one task alone
        reached leaves the rows."""
        num_slots = len(self.slots)
        blank: list[Tensor] = []
        for rows in self._row_sets:
            for parameter in rows.segments:
                slots = self._touched.get(parameter, set())
                if len(slots) == 1:
                    (slot,) = slots
                    if parameter not in self._loose:
                        self._loose[parameter] = {slot: rows.view(parameter, slot).clone()}
                    slots = set()
                blank += [rows.view(parameter, s) for s in range(num_slots) if s not in slots]
        if blank:
            torch._foreach_zero_(blank)

    def _unsettle(self) -> None:
        """Takes back what settle() did to the rows, for a step that goes on after it."""
        for parameter in [p for p in self._loose if p in self._home]:
            for slot, grad in self._loose.pop(parameter).items():
                self._home[parameter].view(parameter, slot).copy_(grad)

    def gram(
        self, gram_matrix: Gram, *, alone: bool, only: Collection[Tensor] | None = None
    ) -> Tensor:  # [T, T]
        """Gram matrix of the slots, over the shared parameters.

        Args:
            gram_matrix: the kernel.
            alone: whether parameters that one task alone reached count as well.
            only: the parameters that count; by default all.
        """
        num_slots = len(self.slots)
        total: Tensor | None = None
        for part, slots in self._parts(alone=alone, only=only):
            gram = gram_matrix(part)
            if total is None:
                total = gram.new_zeros(num_slots, num_slots)
            gram = gram.to(total.device, non_blocking=True)
            if slots == list(range(num_slots)):
                total += gram
            else:
                for i, into in enumerate(slots):
                    for j, onto in enumerate(slots):
                        total[into, onto] += gram[i, j]
        if total is None:
            device = next(iter(self._touched)).device
            total = gram_matrix(torch.zeros(num_slots, 0, device=device))
        return total

    def combine(
        self,
        combine: Combine,
        weights: Tensor,  # [T], by slot
        alone_weights: Tensor | None = None,  # [T]
    ) -> dict[Tensor, Tensor]:
        """One gradient for each parameter, in the memory of the first task's.

        Args:
            combine: the kernel.
            weights: of the slots, for the shared parameters.
            alone_weights: of the slots, for parameters that one task alone reached, which keep
                their plain gradient when this is ``None``.
        """
        for rows in self._row_sets:
            if rows.matrix is not None:
                used = rows.matrix[: len(self.slots)]
                combine(weights.to(used.device, non_blocking=True), used, used[0])
        result: dict[Tensor, Tensor] = {}
        for parameter, slots in self._touched.items():
            loose = self._loose.get(parameter)
            if loose is None:
                grad = self._home[parameter].view(parameter, 0)
            elif len(slots) == 1:
                ((slot, grad),) = loose.items()
                if alone_weights is not None:
                    grad.mul_(alone_weights[slot].to(grad.device, non_blocking=True))
            else:
                grad = next(iter(loose.values()))
                here = weights.to(grad.device, non_blocking=True)
                chosen = torch.stack([here[slot] for slot in loose])
                for block in _blocks(loose.values()):
                    combine(chosen, torch.stack(block), block[0])
            result[parameter] = grad.to(parameter.dtype)
        return result

    def move_into(self, other: GradientBuffer) -> None:
        """Adds everything to another buffer."""
        for task, slot in self.slots.items():
            grads = [(p, loose[slot]) for p, loose in self._loose.items() if slot in loose]
            other.capture(task, grads, copy=False)
        self.clear()

    def clear(self) -> None:
        """Forgets the step's gradients, keeps the rows for the next."""
        shared = [p for p in self.shared() if p not in self._home]
        self._newly_shared.update(dict.fromkeys(shared))
        self._most_tasks = max(self._most_tasks, len(self.slots))
        self.slots.clear()
        self._touched.clear()
        self._loose.clear()

    def _keep(self, parameter: Tensor, grad: Tensor, *, copy: bool) -> Tensor:
        """A gradient of our own, in the memory order that autograd promises for the parameter."""
        dtype = self.dtype or grad.dtype
        strides = parameter.stride() if _is_dense(parameter) else _contiguous(parameter.shape)
        # Part of a larger storage is rewritten by its owner, as DDP does with its buckets.
        whole = grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
        if whole and not copy and grad.dtype == dtype and grad.stride() == strides:
            return grad.detach()
        kept = torch.empty_strided(grad.shape, strides, dtype=dtype, device=grad.device)
        return kept.copy_(grad)

    def _parts(
        self, *, alone: bool, only: Collection[Tensor] | None
    ) -> Iterable[tuple[Tensor, list[int]]]:
        """Matrices ``[slots, columns]`` that together hold every gradient, and their slots."""
        every = list(range(len(self.slots)))
        for rows in self._row_sets:
            if rows.matrix is not None:
                for start, end in rows.runs(only):
                    yield rows.matrix[: len(every), start:end], every
        for parameter, loose in self._loose.items():
            if (len(loose) > 1 or alone) and (only is None or parameter in only):
                for block in _blocks(loose.values()):
                    yield torch.stack(block), list(loose)

    def _lay_out(self) -> None:
        """Gives every parameter that was ever shared a place in the rows."""
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in [*self._home, *self._newly_shared]:
            kind = (parameter.device, self.dtype or parameter.dtype)
            kinds.setdefault(kind, []).append(parameter)
        self._row_sets = [_Rows(device, dtype, kinds[device, dtype]) for device, dtype in kinds]
        self._home = {p: rows for rows in self._row_sets for p in rows.segments}
        self._newly_shared = {}
        for rows in self._row_sets:
            rows.reserve(self._most_tasks)

    def layout(self) -> tuple[list[Tensor], int]:
        """What decides where the next step's gradients lie, and so how its sums are rounded: the
        parameters with a place in the rows, in order, and the number of rows."""
        return [*self._home, *self._newly_shared], self._most_tasks

    def restore(self, parameters: Iterable[Tensor], num_rows: int) -> None:
        """Starts anew with the layout of another buffer."""
        self.__init__(self.dtype)  # type: ignore[misc]
        self._newly_shared = dict.fromkeys(parameters)
        self._most_tasks = num_rows

    def __getstate__(self) -> dict[str, Any]:
        if self.slots:
            raise ValueError(
                "optimizer: cannot be copied or pickled between a task block and step(), while it "
                f"holds the gradients of {len(self.slots)} task(s); call step() or zero_grad() "
                "first"
            )
        return {"dtype": self.dtype, "layout": self.layout()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dtype = state["dtype"]
        self.restore(*state["layout"])


class _Rows:
    """One flat matrix ``[T, P]`` of a device and type, and where in it each parameter lies."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, parameters: Sequence[Tensor]
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.matrix: Tensor | None = None
        self.segments: dict[Tensor, int] = {}
        self.num_columns = 0
        self._views: list[dict[Tensor, Tensor]] = []
        # Round sizes first: then every other segment starts aligned, without any padding to clean.
        for parameter in sorted(parameters, key=lambda p: p.numel() % _ALIGNMENT != 0):
            self.segments[parameter] = self.num_columns
            self.num_columns += parameter.numel()

    @property
    def num_rows(self) -> int:
        return 0 if self.matrix is None else self.matrix.shape[0]

    def reserve(self, num_rows: int) -> None:
        """Makes room for more tasks; what the rows hold stays."""
        if num_rows <= self.num_rows:
            return
        larger = torch.empty(num_rows, self.num_columns, dtype=self.dtype, device=self.device)
        if self.matrix is not None:
            larger[: self.num_rows].copy_(self.matrix)
        self.matrix = larger
        self._views = [
            {p: _like(p, row, start) for p, start in self.segments.items()} for row in larger
        ]

    def runs(self, only: Collection[Tensor] | None) -> list[tuple[int, int]]:
        """The columns of some parameters, or of all, as few pieces."""
        if only is None:
            return [(0, self.num_columns)]
        found: list[tuple[int, int]] = []
        for parameter, start in self.segments.items():
            if parameter in only:
                end = start + parameter.numel()
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
        return found

    def view(self, parameter: Tensor, slot: int) -> Tensor:
        """A parameter's segment of a row, in the shape of the parameter."""
        return self._views[slot][parameter]


_ALIGNMENT = 64  # elements: a cache line of the narrowest type
_LOOSE_COLUMNS = 1 << 20


def _like(parameter: Tensor, row: Tensor, start: int) -> Tensor:
    """A segment of a row with a parameter's shape and, where it is dense, its memory order."""
    segment = row[start : start + parameter.numel()]
    if _is_dense(parameter):
        return segment.as_strided(parameter.shape, parameter.stride())
    return segment.view(parameter.shape)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a row-major tensor."""
    return torch.empty(shape, device="meta").stride()


def _blocks(grads: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Equal pieces of several gradients of one parameter, each piece flat."""
    flat = [_flat(grad) for grad in grads]
    yield from (
        list(pieces) for pieces in zip(*(g.split(_LOOSE_COLUMNS) for g in flat), strict=True)
    )


def _flat(grad: Tensor) -> Tensor:
    """A one-dimensional view of a dense gradient, whatever its memory order."""
    return grad.as_strided((grad.numel(),), (1,))
