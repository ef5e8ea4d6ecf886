"""The per-task gradients of one step: who touched which parameter, in which flat row they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.host import Road, write
from gradsurgery.gradients.layout import Layout
from gradsurgery.gradients.memory import as_grad, blocks, check_shape, kept, real
from gradsurgery.gradients.places import picked, placed_pairs
from gradsurgery.gradients.rows import Units
from gradsurgery.gradients.shards import Spread, local, spread, total

Grams = Callable[[Tensor, Sequence[int]], Tensor]
Combine = Callable[[Tensor, Tensor, Sequence[int], Tensor], Tensor]


@dataclass
class GradientBuffer:
    """Keeps each task's gradient apart until surgery has turned them into one.

    Gradients of the parameters that several tasks reached in an earlier step lie in rows ``[T, P]``
    of one flat tensor for each device and type. Any other is kept as autograd made it, as all are
    in the first step, in which nobody knows yet what is shared.

    Of a sharded parameter everything here is the part of this process; the Gram matrices alone are
    summed over all. Complex gradients are kept as twice as many real numbers. Tasks take slots in
    the order of their arrival, so that the rows in use are the first.

    A combined gradient lies in the memory of the first task's, a row's too. Where somebody holds it
    beyond the step, that is left to them, and the parameter's are handed out as copies then.

    Args:
        dtype: type of the rows; ``None`` keeps that of the gradients.
        on_host: whether rows lie in the host's memory, wherever the parameters are.
    """

    dtype: torch.dtype | None = None
    on_host: bool = False
    slots: dict[int, int] = field(default_factory=dict)  # task -> slot
    _touched: dict[Tensor, set[int]] = field(default_factory=dict)  # parameter -> slots
    _loose: dict[Tensor, dict[int, Tensor]] = field(default_factory=dict)
    _is_settled: bool = False
    _layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self._layout = Layout(self.dtype, self.on_host)

    def empty(self) -> GradientBuffer:
        """Gives another one like it."""
        return GradientBuffer(self.dtype, self.on_host)

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat rows."""
        return self._layout.num_bytes

    def holds(self, grad: Tensor) -> bool:
        """Tells whether a gradient lies in the rows, where the next capture would overwrite it."""
        return self._layout.holds(grad)

    def in_rows(self) -> Mapping[Tensor, object]:
        """The parameters whose gradients are copied to the rows, and otherwise only read."""
        return self._layout.home

    def capture(self, task: int, grads: Sequence[tuple[Tensor, Tensor]], *, copy: bool) -> None:
        """Adds gradients to those that a task has in this step.

        Args:
            task: the task's number.
            grads: pairs of a parameter and its gradient.
            copy: whether the caller goes on using the gradients; otherwise they become ours.
        """
        layout, touched = self._layout, self._touched
        if layout.given and (task not in self.slots or layout.has_given(grads)):
            self._copy_given()
        if not self.slots:
            layout.prepare()
        layout.check_dtypes(grads, are_first=not self.slots)
        if self._is_settled:
            self._unsettle()
        slot = self.slots.setdefault(task, len(self.slots))
        layout.reserve(slot + 1)
        views, road = layout.views[slot], None
        # Where gradients go, and what goes there, by whether it is added and by which road.
        targets: dict[tuple[bool, Road | None], tuple[list[Tensor], list[Tensor]]] = {}
        for parameter, given in grads:
            grad = given if type(given) is Tensor else local(given)
            if grad.is_complex():
                grad = real(grad)
            slots, target = touched.setdefault(parameter, set()), views.get(parameter)
            again = slot in slots
            slots.add(slot)
            if self.on_host:
                road = layout.road(grad.device, is_known=target is not None)
            if target is None and again:
                target = self._loose[parameter][slot]
            elif target is None:
                room = None if road is None else road.room
                target = kept(parameter, grad, self.dtype, copy=copy, room=room)
                self._loose.setdefault(parameter, {})[slot] = target
                if road is None:
                    continue
            into, new = targets.setdefault((again, road), ([], []))
            into.append(target)
            new.append(grad)
        for (adds, to_host), (into, new) in targets.items():
            write(into, new, to_host, adds=adds, waits=copy)

    def adopt(self, tasks: Sequence[int], stacks: Mapping[Tensor, Tensor]) -> None:
        """Keeps the gradients ``[T, *shape]`` of all tasks there are in this step where they lie;
        those of parameters that no task has reached yet."""
        if not self.slots:
            self._layout.prepare()
        self.slots.update({task: slot for slot, task in enumerate(tasks)})
        self._touched.update((parameter, set(self.slots.values())) for parameter in stacks)
        self._layout.adopt(stacks, len(self.slots))

    def _copy_given(self) -> None:
        """Copies what was adopted, because more is to be added to it."""
        given = self._layout.give_back()
        for parameter in given:
            del self._touched[parameter]
        for task, slot in self.slots.items():
            self.capture(task, [(p, r.view(p, slot)) for p, r in given.items()], copy=True)

    def shared(self) -> list[Tensor]:
        """Parameters that two or more tasks have reached in this step."""
        return [parameter for parameter, slots in self._touched.items() if len(slots) > 1]

    def touched(self) -> list[Tensor]:
        """Parameters that any task has reached in this step."""
        return list(self._touched)

    def grads_of(self, parameter: Tensor) -> dict[int, Tensor]:
        """A parameter's gradients in this step, by task, before settle()."""
        slots = self._touched.get(parameter, ())
        loose, place = self._loose.get(parameter, {}), self._layout.place
        return {
            task: loose[slot] if slot in loose else place(parameter).view(parameter, slot)
            for task, slot in self.slots.items()
            if slot in slots
        }

    def drop(self, parameters: Iterable[Tensor]) -> None:
        """Forgets what the step's tasks gave some parameters."""
        for parameter in parameters:
            self._touched.pop(parameter, None)
            self._loose.pop(parameter, None)
            self._layout.given.pop(parameter, None)
        if not self._touched:
            self.clear()

    def settle(self) -> None:
        """Makes the rows ready for the passes: what no task reached is zero, what one task alone
        reached leaves the rows."""
        self.check_shapes()
        self._is_settled = True
        num_slots = len(self.slots)
        for rows in self._layout.in_use():
            blank: list[tuple[Tensor, int]] = []
            for parameter in rows.segments:
                is_here = self._layout.place(parameter) is rows
                slots = self._touched.get(parameter, set()) if is_here else set()
                if len(slots) == 1:
                    (slot,) = slots
                    if parameter not in self._loose:
                        self._loose[parameter] = {slot: rows.taken(parameter, slot)}
                    slots = set()
                if len(slots) < num_slots:
                    blank += [(parameter, s) for s in range(num_slots) if s not in slots]
            if blank:
                rows.blank(blank)

    def _unsettle(self) -> None:
        """Takes back what settle() did to the rows, for a step that goes on after it."""
        self._is_settled = False
        home = self._layout.home
        for parameter in [p for p in self._loose if p in home]:
            for slot, grad in self._loose.pop(parameter).items():
                home[parameter].put(parameter, slot, grad)

    def grams(
        self,
        gram_matrices: Grams,
        units: Units,
        *,
        alone: bool,
    ) -> Tensor:  # [S, T, T]
        """Gram matrices of the slots over the shared parameters, one for each unit.

        Args:
            gram_matrices: the kernel.
            units: which parameters go together.
            alone: whether parameters that one task alone reached count as well.
        """
        num_slots = len(self.slots)
        found: dict[tuple[Spread | None, int], Tensor] = {}

        def add(over: Spread | None, unit: int, gram: Tensor) -> None:
            so_far = found.get((over, unit))
            found[over, unit] = gram if so_far is None else so_far + gram.to(so_far.device)

        for rows in self._layout.in_use():
            if rows.matrix is not None:
                for bounds, owners in rows.runs(units):
                    for piece in rows.pieces(num_slots, bounds):
                        found_here = gram_matrices(piece.matrix, piece.bounds)
                        for unit, gram in zip(piece.owners(owners), found_here, strict=True):
                            add(rows.over, unit, gram)
        for parameter, loose in self._loose.items():
            if len(loose) > 1 or alone:
                for unit in units.of(parameter):
                    for block in blocks(loose.values()):
                        stacked = self._layout.stacked(parameter, block)
                        gram = gram_matrices(stacked, [0, stacked.shape[1]])[0]
                        add(spread(parameter), unit, placed_pairs(gram, list(loose), num_slots))
        # Every process must ask for the sums of the others in the same order: that of the blocks.
        spreads = dict.fromkeys(map(spread, self._touched))
        if len(found) < units.number * len(spreads):
            device = next(iter(found.values() if found else self._touched)).device
            blank = gram_matrices(torch.zeros(num_slots, 0, device=device), [0, 0])[0]
            for over in spreads:
                for unit in range(units.number):
                    found.setdefault((over, unit), blank)
        if len(found) == 1 and None in spreads:
            return next(iter(found.values()))[None]
        device = next(iter(found.values())).device
        totals = [
            total(torch.stack([found[over, u].to(device) for u in range(units.number)]), over)
            for over in spreads
        ]
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)

    def combine(
        self,
        combine_segments: Combine,
        units: Units,
        weights: Tensor,  # [S, T], by slot
        alone_weights: Tensor | None = None,  # [S, T]
    ) -> dict[Tensor, Tensor]:
        """One gradient for each parameter, in the memory of the first task's.

        Args:
            combine_segments: the kernel.
            units: which parameters go together; each is in one unit.
            weights: of the slots in each unit, for the shared parameters.
            alone_weights: of the slots, for parameters that one task alone reached, which keep
                their plain gradient when this is ``None``.
        """
        for rows in self._layout.in_use():
            if rows.matrix is not None:
                here = weights.to(rows.device, non_blocking=True)
                for bounds, owners in rows.runs(units):
                    for piece in rows.pieces(len(self.slots), bounds):
                        chosen, out = picked(here, piece.owners(owners)), rows.out(piece.matrix)
                        combine_segments(chosen, piece.matrix, piece.bounds, out)
                        rows.give(out, piece.column)
        result: dict[Tensor, Tensor] = {}
        for parameter, slots in self._touched.items():
            loose = self._loose.get(parameter)
            first = 0
            if loose is not None and len(slots) == 1:
                ((first, grad),) = loose.items()
                grad = loose[first] = self._layout.here(parameter, grad)
                if alone_weights is not None:
                    (unit,) = units.of(parameter)
                    grad.mul_(alone_weights[unit, first].to(grad.device, non_blocking=True))
            elif loose is not None:
                first, grad = next(iter(loose.items()))
                (unit,) = units.of(parameter)
                update = self._layout.here(parameter, grad)
                here = weights[unit].to(update.device, non_blocking=True)
                # A weight that is not finite counts without a gradient too, as it does in rows.
                chosen = picked(here + 0 * here.sum(), list(loose))[None]
                for *parts, target in blocks([*loose.values(), update]):
                    stacked = self._layout.stacked(parameter, parts)
                    combine_segments(chosen, stacked, [0, target.numel()], target)
                loose[first] = update
            result[parameter] = self.hand_out(parameter, first)
        return result

    def hand_out(self, parameter: Tensor, slot: int) -> Tensor:
        """Gives what we keep of a parameter in a slot, as ``.grad`` may have it."""
        loose, layout = self._loose.get(parameter), self._layout
        if loose is not None and slot in loose:
            grad = self._layout.here(parameter, loose[slot])
        elif parameter in layout.copied and parameter not in layout.given:
            grad = layout.home[parameter].view(parameter, slot).clone()
        else:
            grad = layout.place(parameter).lend(parameter, slot)
        return self.as_grad(parameter, grad)

    def as_grad(self, parameter: Tensor, numbers: Tensor) -> Tensor:
        """Our numbers as ``.grad`` may have them."""
        return as_grad(parameter, numbers, None if self.dtype is None else parameter.dtype)

    def check_shapes(self) -> None:
        """Refuses parameters that took on another shape after a gradient of theirs was kept."""
        self._layout.check_given()
        for parameter, slots in self._touched.items():
            if parameter in self._loose:
                check_shape(parameter, self._loose[parameter][next(iter(slots))])
            elif self._layout.place(parameter).has_another_shape(parameter):
                check_shape(parameter, self._layout.place(parameter).view(parameter, 0))

    def move_into(self, other: GradientBuffer) -> None:
        """Adds everything to another buffer."""
        self._copy_given()
        for task, slot in self.slots.items():
            here = [(p, loose[slot]) for p, loose in self._loose.items() if slot in loose]
            grads = [(p, self._layout.here(p, grad)) for p, grad in here]
            other.capture(task, grads, copy=False)
        self.clear()

    def clear(self) -> None:
        """Forgets the step's gradients, keeps the rows for the next."""
        if not self.slots:
            return
        self._layout.learn(self.shared(), self._loose, len(self.slots))
        self.slots.clear()
        self._touched.clear()
        self._loose.clear()
        self._is_settled = False

    def layout(self) -> tuple[list[Tensor], int]:
        """Gives what decides where the next gradients lie: parameters in order, number of rows."""
        return self._layout.saved()

    def restore(self, parameters: Iterable[Tensor], num_rows: int) -> None:
        """Starts anew with the layout of another buffer."""
        self.__init__(self.dtype, self.on_host)  # type: ignore[misc]
        self._layout = Layout.of_saved(self.dtype, self.on_host, parameters, num_rows)

    def __getstate__(self) -> dict[str, Any]:
        if self.slots:
            raise ValueError(
                "optimizer: cannot be copied or pickled between a task block and step(), while it "
                f"holds gradients of {len(self.slots)} task(s); call step() or zero_grad() first"
            )
        return {"dtype": self.dtype, "on_host": self.on_host, "layout": self.layout()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dtype, self.on_host = state["dtype"], state["on_host"]
        self.restore(*state["layout"])
