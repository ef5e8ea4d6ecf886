"""Takes gradients that were computed elsewhere as those of the tasks, for all that comes after."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.memory import copied
from gradsurgery.optimizer.gathering import Gathering
from gradsurgery.optimizer.given_grads import (
    GivenGrads,
    GivenLosses,
    GivenParameters,
    Grads,
    Owners,
    are_stacked,
    check_grad,
    losses_by_task,
    num_stacked,
    one_by_one,
)
from gradsurgery.optimizer.parts import Parts
from gradsurgery.optimizer.step import Handling


@dataclass(eq=False, repr=False)
class Taking(Parts):
    """Takes gradients that nobody's backward in a block has made.

    Args:
        base: the optimizer whose parameters they are of.
        gathering: opens blocks.
    """

    _base: Optimizer
    _gathering: Gathering

    @torch.no_grad()
    def take(
        self,
        grads: GivenGrads,
        tasks: Iterable[Hashable] | None,
        losses: GivenLosses | None,
        parameters: GivenParameters | None,
    ) -> None:
        """Does what :func:`take` says."""
        self._step.check_closed("take()")
        if self._surgery.method.needs_losses and losses is None:
            raise ValueError(
                f"losses: must be given to take() where {type(self._surgery.method).__name__} asks "
                "for them, got None; give losses= of the tasks, as grad_and_value returns them"
            )
        names, owners = self._names(tasks), Owners(parameters, self._base)
        if isinstance(grads, Iterator):
            seen = {} if losses is None else losses_by_task(losses, names)
            self._in_blocks(self._one_by_one(grads, names, owners), seen)
            return
        if not isinstance(grads, (Mapping, list, tuple)):
            raise TypeError(
                "grads: must be a mapping, a list, a tuple or a generator, got "
                f"{type(grads).__name__}; give {{parameter: [T, *shape]}}"
            )
        if not grads and self._replicas is not None:
            return  # no examples here in this step; other processes have some
        if are_stacked(grads):
            self._take_stacked(owners.of(grads), names, losses)
            return
        if isinstance(grads, Mapping) and tasks is not None:
            raise ValueError("tasks: must be left out where grads are by task, got both")
        parts = grads.items() if isinstance(grads, Mapping) else grads
        of_tasks = list(self._one_by_one(iter(parts), names, owners))
        seen = {} if losses is None else losses_by_task(losses, [name for name, _ in of_tasks])
        self._in_blocks(iter(of_tasks), seen)

    def _names(self, tasks: Iterable[Hashable] | None) -> Sequence[Hashable] | None:
        """Gives the names of the tasks in their order; ``None`` numbers them from 0."""
        if tasks is None:
            return self._tasks.declared
        if isinstance(tasks, str):
            raise TypeError(f"tasks: must be a list of names, got the str {tasks!r}")
        names = [self._tasks.check(name) for name in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: must name each task once, got {names}")
        return names

    def _one_by_one(
        self, grads: Iterator[Any], names: Sequence[Hashable] | None, owners: Owners
    ) -> Iterator[tuple[Hashable, Grads]]:
        """Gives each task's name and gradients, checked, and keeps none of them."""
        for name, of_task in one_by_one(grads, names):
            found = owners.of(of_task)
            del of_task
            for parameter, grad in found.items():
                check_grad(parameter, grad)
            yield self._tasks.check(name), found
            del found

    def _take_stacked(
        self, stacks: Grads, names: Sequence[Hashable] | None, losses: GivenLosses | None
    ) -> None:
        """Takes gradients ``[T, *shape]``: as they lie, where nothing must be written to them."""
        if not stacks:
            return
        if names is None:
            names = range(num_stacked(stacks))
        for parameter, stack in stacks.items():
            check_grad(parameter, stack, len(names))
        seen = {} if losses is None else losses_by_task(losses, names)
        stacks = {parameter: stack.detach() for parameter, stack in stacks.items()}
        step = self._step
        handling = step.handling or self._guard.handling(self._surgery.handling())
        apart: Grads = {}
        if handling == "apart":
            all_count = self._shared is None or self._surgery.weighs_losses
            apart = {p: s for p, s in stacks.items() if all_count or p in (self._shared or ())}
        if not self._may_stay(apart, names, handling):
            by_task = (
                (name, {parameter: stack[place] for parameter, stack in stacks.items()})
                for place, name in enumerate(names)
            )
            self._in_blocks(by_task, seen)
            return
        step.seal.enter(names[0])
        step.handling = handling
        numbers = [self._tasks.number(name) for name in names]
        for name in names:
            self._note(name, seen)
            self._witness.met(name, in_grad=handling == "plain")
        self._add_up({p: s for p, s in stacks.items() if p not in apart}, len(names))
        if apart:
            step.buffer.adopt(numbers, apart)
        step.seal.lay(step.buffer, handling)

    def _may_stay(self, apart: Grads, names: Sequence[Hashable], handling: Handling) -> bool:
        """Tells whether stacked gradients can be used as they lie.

        Args:
            apart: those that are to be kept apart; the others are added up at once.
            names: of the tasks.
            handling: what becomes of the gradients.
        """
        if handling not in ("apart", "plain") or self._guard.looks or self._replicas is not None:
            return False
        buffer = self._step.buffer
        slots = [self._tasks.names[task] for task in buffer.slots]
        if apart and (len(names) < 2 or (slots and slots != list(names))):
            return False
        reached = set(buffer.touched())
        return all(
            buffer.dtype in (None, stack.dtype)
            and not parameter.is_complex()
            and parameter not in reached
            for parameter, stack in apart.items()
        )

    def _add_up(self, stacks: Grads, num_tasks: int) -> None:
        """Adds the tasks' gradients to ``.grad``, in their order, as their backwards would."""
        with dot_grad.hidden(list(stacks), self._step.buffer) as outside:
            for place in range(num_tasks):
                dot_grad.merge(
                    outside,
                    {
                        parameter: stack[place] if parameter in outside
                        else copied(parameter, stack[place])
                        for parameter, stack in stacks.items()
                    },
                )  # fmt: skip

    def _in_blocks(
        self, by_task: Iterator[tuple[Hashable, Grads]], losses: Mapping[Hashable, Tensor]
    ) -> None:
        """Takes the gradients of one task after another as if its block had made them."""
        with self._step.all_or_nothing(list(self._parameters()), self._tasks):
            for name, grads in by_task:
                with self._gathering.block(name):
                    self._note(name, losses)
                    is_hidden = self._step.handling != "plain"
                    for parameter, grad in grads.items():
                        if is_hidden:  # the block copies what somebody holds, where it must
                            parameter.grad = grad.detach()
                        elif parameter.grad is None:
                            parameter.grad = copied(parameter, grad.detach())
                        else:
                            parameter.grad.add_(grad)
                del grads
        self._step.seal.lay(self._step.buffer, self._step.handling)

    def _note(self, name: Hashable, losses: Mapping[Hashable, Tensor]) -> None:
        """Shows a task's loss to a method that asks for losses."""
        if self._surgery.method.needs_losses:
            loss = self._surgery.shown.unscaled(losses[name])
            self._step.note_loss(self._tasks.number(name), loss)


class _Takes(Protocol):
    _taking: Taking


def take(
    optimizer: _Takes,
    grads: GivenGrads,
    tasks: Iterable[Hashable] | None = None,
    *,
    losses: GivenLosses | None = None,
    parameters: GivenParameters | None = None,
) -> None:
    """Takes gradients that were computed elsewhere, by ``torch.func.vmap`` for example, as if the
    tasks' backwards in blocks had made them. What follows is the same: :meth:`surgery`,
    :meth:`step`.

    Nothing is written to the tensors that are given. Stacked ones serve as they lie, without a
    copy, and must not be written to until surgery; there is none where each task's gradients must
    be looked at or multiplied (``on_nonfinite``, ``process_group``, ``buffer_dtype``, ``every``).
    Those of one task after another are copied; a generator is asked for the next task's when the
    last one's are.

    A stack holds a gradient of every task: zeros in it are gradients. Where the zeros of other
    tasks in a head are none, declare ``shared=`` or give each task's gradients, without them.

    Args:
        grads: stacked over the tasks, ``[T, *shape]`` each, by parameter or its name or in the
            order of the parameters, as ``vmap(grad(loss))``, ``jacrev`` and TorchJD's ``.jac``
            give them; or for each task a mapping or tuple, as ``torch.autograd.grad`` gives it, in
            a list, by task, or from a generator of them or of ``(task, gradients)`` pairs.
            ``None`` is a parameter that was not reached. What needs no gradient is passed over.
        tasks: names of the T tasks, in order; by default the declared ones, or numbers from 0.
        losses: of the tasks, a tensor ``[T]``, a list or by task; for methods that ask for them.
        parameters: the model, ``dict(model.named_parameters())`` or a list: whose the names are,
            and in which order. By default all of the optimizer's, by the names it was given.

    Raises:
        TypeError: ``grads`` or ``losses`` are in no such form.
        ValueError: a gradient is no parameter's of this optimizer, or has not its shape, type and
            device; it is sparse or sharded; the number of tasks is another; or a method's losses
            are missing.
        FloatingPointError: as :meth:`task`.

    Example:
        >>> from gradsurgery import PCGrad
        >>> model, inputs = torch.nn.Linear(3, 1), torch.eye(3).expand(2, 3, 3)  # of two tasks
        >>> optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> def loss(parameters, inputs, target):
        ...     outputs = torch.func.functional_call(model, parameters, (inputs,))
        ...     return (outputs - target).square().mean()
        >>> values = {name: p.detach() for name, p in model.named_parameters()}
        >>> per_task = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        >>> grads = per_task(values, inputs, torch.tensor([-1.0, 1.0]))
        >>> grads["weight"].shape
        torch.Size([2, 1, 3])
        >>> optimizer.take(grads, parameters=model)
        >>> optimizer.step()
    """
    optimizer._taking.take(grads, tasks, losses, parameters)
