"""Each task's gradient as a sketch of k numbers, of which the Gram matrix is estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.buffer import GradientBuffer, Grams
from gradsurgery.gradients.memory import flat, num_columns, real, strides_of
from gradsurgery.gradients.places import placed_pairs
from gradsurgery.gradients.rows import Units
from gradsurgery.gradients.shards import Spread, local, spread, total, true_everywhere
from gradsurgery.gradients.sketch import Projection, Sketch


@dataclass
class _Kind:
    """The columns of one device and way of sharding: where each parameter's are."""

    device: torch.device
    over: Spread | None
    first: dict[Tensor, int]
    num_columns: int
    dtype: torch.dtype


class SketchBuffer(GradientBuffer):
    """Stands where a buffer of gradients would, and keeps k numbers for each task.

    What one task alone reached so far is not known to be shared. Its gradient is kept, that of a
    tensor of more than k numbers as a sketch of its own, until another task reaches it too; and
    from then on, in all steps, it counts as shared.

    Sharded parameters are sketched shard by shard, and the Gram matrices of these added up: one
    process's numbers do not meet another's at all.

    Args:
        parameters: lists all that there may be; their order decides about signs and places.
        sketch: how.
        facts: gives the seed, and whether parameters that one task alone reached count as well.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterator[Tensor]],
        sketch: Sketch,
        facts: Callable[[], tuple[int, bool]],
    ) -> None:
        super().__init__()
        self._options = parameters, sketch, facts
        self._counts_alone = False
        self._known: dict[Tensor, None] = {}  # to be shared
        self._most_tasks = 0
        self._form: list[tuple[object, ...]] = []
        self._kinds: list[_Kind] = []
        self._projections: list[Projection] = []
        self._place: dict[Tensor, int] = {}  # of its kind
        self._waiting: dict[Tensor, tuple[int, Tensor]] = {}  # slot, gradient or sketch
        self._sums: list[dict[int, Tensor]] = []  # of each kind, by slot
        self._means: list[dict[int, Tensor]] = []  # of each kind, by task
        self._saved: Sequence[Mapping[int, Tensor]] = ()  # means, until there are places for them

    def empty(self) -> SketchBuffer:
        """Gives another one like it, without any gradients."""
        made = SketchBuffer(*self._options)
        made._known, made._form, made._kinds = self._known, self._form, self._kinds
        made._projections, made._place = self._projections, self._place
        made._sums = [{} for _ in self._kinds]
        return made

    @property
    def num_bytes(self) -> int:
        """Bytes of the sketches."""
        kept = [*self._sums, *self._means]
        return sum(part.nbytes for by in kept for part in by.values()) + sum(
            part.nbytes for _, part in self._waiting.values()
        )

    def capture(self, task: int, grads: Sequence[tuple[Tensor, Tensor]], *, copy: bool) -> None:
        """Adds gradients to the sketch of a task."""
        if not self.slots:
            self._prepare()
        slot = self.slots.setdefault(task, len(self.slots))
        to_add: dict[int, list[tuple[Tensor, Tensor]]] = {slot: []}
        for parameter, given in grads:
            self._touched.setdefault(parameter, set()).add(slot)
            grad = real(local(given))
            waiting = self._waiting.get(parameter)
            if waiting is not None and waiting[0] != slot:
                self._know(parameter)
            if self._counts_alone or parameter in self._known:
                to_add[slot].append((parameter, grad))
            else:
                kept = self._kept(parameter, grad)
                self._waiting[parameter] = slot, kept if waiting is None else kept + waiting[1]
        self._add(slot, to_add[slot])

    def shared(self) -> list[Tensor]:
        """Parameters that two or more tasks have reached, in this step or an earlier one."""
        if len(self.slots) < 2:
            return []
        return [p for p, by in self._touched.items() if p in self._known or len(by) > 1]

    def grads_of(self, parameter: Tensor) -> dict[int, Tensor]:
        """A parameter by task, for whoever asks which tasks reached it; its gradients are gone."""
        by = self._touched.get(parameter, ())
        return {task: parameter for task, slot in self.slots.items() if slot in by}

    def settle(self) -> None:
        """Does nothing: a sketch has no blanks."""

    def check_shapes(self) -> None:
        """Does nothing: no gradient is given back."""

    def mean_over(
        self,
        tasks_of: Mapping[Tensor, Iterable[int]],
        sum_over: Callable[[Tensor], Tensor],
        num_processes: int,
    ) -> None:
        """Replaces what is kept by its mean over processes with the same parameters.

        Args:
            tasks_of: the tasks that reached each parameter on any of them.
            sum_over: sums a tensor over them, in place.
            num_processes: how many there are.
        """
        if not self.slots:
            self._prepare()
        tasks = sorted({task for by in tasks_of.values() for task in by})
        here = [self.slots.get(task, len(tasks) + task) for task in tasks]
        self.slots = {task: slot for slot, task in enumerate(tasks)}
        self._touched = {p: {self.slots[task] for task in by} for p, by in tasks_of.items() if by}
        for parameter, by in self._touched.items():
            if len(by) > 1:
                self._know(parameter)
        for place in range(len(self._kinds) if tasks else 0):
            rows = torch.stack([self._sum(place, slot) for slot in here])
            self._sums[place] = dict(enumerate(sum_over(rows) / num_processes))

    def average(self, momentum: float) -> None:
        """Replaces each task's sketch by its average over the steps; a step with a gradient that is
        not finite, on any process, is none of them, and its own sketches stay."""
        if not momentum:
            return
        tasks = [(place, task) for place in range(len(self._kinds)) for task in self.slots]
        sums = [self._sum(place, self.slots[task]) for place, task in tasks]
        flags = [new.isfinite().all().to(sums[0].device) for new in sums]
        finite = true_everywhere(torch.stack(flags).all(), list(self._options[0]()))
        for (place, task), new in zip(tasks, sums, strict=True):
            is_finite = finite.to(new.device, non_blocking=True)
            old = self._means[place].get(task, new)
            mixed = torch.where(old.isfinite().all(), old.lerp(new, 1 - momentum), new)
            self._means[place][task] = torch.where(is_finite, mixed, old)
            self._sums[place][self.slots[task]] = torch.where(is_finite, mixed, new)

    def grams(self, gram_matrices: Grams, units: Units, *, alone: bool) -> Tensor:  # [1, T, T]
        """Estimated Gram matrix of the slots."""
        num_slots, first = len(self.slots), self._kinds[0].device
        totals: dict[Spread | None, Tensor] = {}
        for kind, sums in zip(self._kinds, self._sums, strict=True):
            slots = sorted(sums)
            if slots:
                rows = torch.stack([sums[slot] for slot in slots])
                gram = placed_pairs(gram_matrices(rows, [0, rows.shape[1]])[0], slots, num_slots)
            else:
                gram = gram_matrices(torch.zeros(num_slots, 0, device=kind.device), [0, 0])[0]
            before = totals.get(kind.over)
            totals[kind.over] = gram.to(first) if before is None else before + gram.to(first)
        return torch.stack([total(gram, over) for over, gram in totals.items()]).sum(0)[None]

    def move_into(self, other: GradientBuffer) -> None:
        """Adds everything to another buffer that :meth:`empty` was asked of."""
        assert isinstance(other, SketchBuffer)
        slot_of = {
            slot: other.slots.setdefault(task, len(other.slots))
            for task, slot in self.slots.items()
        }
        for parameter, by in self._touched.items():
            other._touched.setdefault(parameter, set()).update(slot_of[slot] for slot in by)
        for place, sums in enumerate(self._sums):
            for slot, part in sums.items():
                other._sum(place, slot_of[slot]).add_(part)
        for parameter, (slot, kept) in self._waiting.items():
            before = other._waiting.get(parameter)
            if before is not None and before[0] == slot_of[slot]:
                kept = kept + before[1]
            elif before is not None:
                other._know(parameter)
            other._waiting[parameter] = slot_of[slot], kept
        for parameter in [p for p in other._waiting if p in other._known]:
            other._know(parameter)
        self.clear()

    def clear(self) -> None:
        """Forgets the step's gradients, keeps averages for the next."""
        self._most_tasks = max(self._most_tasks, len(self.slots))
        self.slots.clear()
        self._touched.clear()
        self._waiting.clear()
        self._sums = [{} for _ in self._kinds]

    def layout(self) -> tuple[list[Tensor], int]:
        """Gives the parameters that are known to be shared, and the most tasks of a step."""
        return list(self._known), self._most_tasks

    def averages(self) -> list[dict[int, Tensor]]:
        """Gives the averaged sketches of each device and way of sharding, by task."""
        of_kinds = self._means or self._saved
        return [{task: mean.clone() for task, mean in by.items()} for by in of_kinds]

    def restore(
        self,
        parameters: Iterable[Tensor],
        num_rows: int,
        averages: Sequence[Mapping[int, Tensor]] = (),
    ) -> None:
        """Starts anew with what another one knew."""
        self.__init__(*self._options)  # type: ignore[misc]
        self._known, self._most_tasks = dict.fromkeys(parameters), num_rows
        self._saved = averages

    def __getstate__(self) -> dict[str, Any]:
        kept = super().__getstate__()  # refuses one that holds gradients
        return {**kept, "options": self._options, "averages": self.averages()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._options = state["options"]
        known, most_tasks = state["layout"]
        self.restore(known, most_tasks, state["averages"])

    def _prepare(self) -> None:
        """Gives every parameter its columns, anew where any has another size or place."""
        parameters, sketch, facts = self._options
        seed, self._counts_alone = facts()
        form: list[tuple[object, ...]] = [(seed,)]
        for parameter in parameters():
            part = local(parameter)
            form.append((id(parameter), part.shape, part.dtype, part.device))
        if form == self._form:
            return
        self._form, self._kinds, self._place = form, [], {}
        number: dict[tuple[torch.device, Spread | None], int] = {}
        for parameter in parameters():
            device, over = local(parameter).device, spread(parameter)
            place = number.setdefault((device, over), len(self._kinds))
            if place == len(self._kinds):
                self._kinds.append(_Kind(device, over, {}, 0, torch.float32))
            kind = self._kinds[place]
            kind.first[parameter] = kind.num_columns
            kind.num_columns += num_columns(local(parameter))
            if parameter.dtype in (torch.float64, torch.complex128):
                kind.dtype = torch.float64
            self._place[parameter] = place
        self._projections = [
            Projection(sketch.size, kind.num_columns, seed, kind.device, kind.dtype)
            for kind in self._kinds
        ]
        self._sums = [{} for _ in self._kinds]
        self._means = [{} for _ in self._kinds]
        for place, by in enumerate(self._saved[: len(self._kinds)]):
            kind, size = self._kinds[place], self._projections[place].size
            for task, mean in by.items():
                if mean.shape == (size,):
                    self._means[place][task] = mean.to(kind.device, kind.dtype, copy=True)
        self._saved = ()

    def _sum(self, place: int, slot: int) -> Tensor:  # [k]
        kind, size = self._kinds[place], self._projections[place].size
        found = self._sums[place].get(slot)
        if found is None:
            found = torch.zeros(size, dtype=kind.dtype, device=kind.device)
            self._sums[place][slot] = found
        return found

    def _add(self, slot: int, grads: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adds gradients to the sketch of a slot."""
        by_kind: dict[int, list[tuple[int, Tensor]]] = {}
        for parameter, grad in grads:
            place = self._place[parameter]
            column = self._kinds[place].first[parameter]
            by_kind.setdefault(place, []).append((column, _in_order(parameter, grad)))
        for place, pieces in by_kind.items():
            pieces.sort(key=lambda piece: piece[0])
            self._projections[place].add(pieces, self._sum(place, slot))

    def _kept(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """Keeps k numbers at most of a gradient that may turn out to be shared."""
        place = self._place[parameter]
        kind, projection = self._kinds[place], self._projections[place]
        numbers = _in_order(parameter, grad)
        if numbers.numel() <= projection.size:
            return numbers.to(kind.dtype, copy=True)
        empty = torch.zeros(projection.size, dtype=kind.dtype, device=kind.device)
        return projection.add([(kind.first[parameter], numbers)], empty)

    def _know(self, parameter: Tensor) -> None:
        """Counts a parameter as shared, and what waited for that as its first task's."""
        self._known.setdefault(parameter)
        waiting = self._waiting.pop(parameter, None)
        if waiting is None:
            return
        slot, kept = waiting
        place = self._place[parameter]
        kind, projection = self._kinds[place], self._projections[place]
        if num_columns(local(parameter)) <= projection.size:
            projection.add([(kind.first[parameter], kept)], self._sum(place, slot))
        else:
            self._sum(place, slot).add_(kept)


def _in_order(parameter: Tensor, grad: Tensor) -> Tensor:
    """The numbers of a gradient, flat, in the memory order of the parameter."""
    strides = strides_of(real(local(parameter).detach()))
    if grad.stride() != strides:
        kept = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device)
        grad = kept.copy_(grad)
    return flat(grad)
