"""Gradients attributed to tasks: blocks, and what becomes of the gradients made in them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import attached
from gradsurgery.arguments import check_choice, check_floating
from gradsurgery.buffer import GradientBuffer
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.facade import Facade, of
from gradsurgery.losses import Losses, named, one_by_one
from gradsurgery.nonfinite import Guard, OnNonfinite
from gradsurgery.replicas import Replicas, check_group
from gradsurgery.shards import local
from gradsurgery.step import Handling, Step
from gradsurgery.tasks import Tasks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TaskBlocks(Facade):
    """An optimizer that learns of every gradient which task it is of. Knows no surgery.

    Args:
        base, tasks, on_nonfinite, buffer_dtype, process_group: as in
            :class:`gradsurgery.MultiTaskOptimizer`.
    """

    def __init__(
        self,
        base: Optimizer,
        tasks: Iterable[Hashable] | None,
        on_nonfinite: OnNonfinite,
        buffer_dtype: torch.dtype | None,
        process_group: ProcessGroup | None,
    ) -> None:
        super().__init__(base)
        check_choice("on_nonfinite", on_nonfinite, ("propagate", "raise", "skip_task", "skip_step"))
        check_floating("buffer_dtype", buffer_dtype)
        self._tasks = Tasks(tasks)
        if process_group is not None:
            check_group(process_group, self._parameters(), self._tasks.names)
        self.process_group = process_group
        self.diagnostics = Diagnostics()
        self._step = Step(GradientBuffer(buffer_dtype))
        self._replicas = None if process_group is None else Replicas(process_group)
        self._guard = Guard(on_nonfinite, self._tasks, self.diagnostics, self._replicas)

    on_nonfinite = of("_guard", "choice")

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks, those declared or those met so far."""
        return tuple(self._tasks.names)

    @contextmanager
    def task(self, name: Hashable) -> Iterator[None]:
        """Attributes every gradient made inside the block to one task.

        Any number of backwards may run in it, and any number of blocks of one task in a step: they
        add up. A block left by an exception counts for nothing, except in a plain loss sum, where
        autograd itself adds to ``.grad``.

        Args:
            name: the task: a ``str``, a number, ``None``, or a tuple of such, or what equals one of
                them, such as numpy's and a member of a ``str`` Enum.

        Raises:
            TypeError: a name of another type, which a checkpoint could not be read with.
            ValueError: an unknown name, a block inside another, or a sparse gradient.
            FloatingPointError: a gradient that is not finite, where ``on_nonfinite`` is ``"raise"``
                and there is no ``process_group``.
        """
        step = self._step
        name = self._tasks.check(name)
        step.check_closed("task()")
        step.handling = step.handling or self._handling_to_begin()
        step.is_open = True
        try:
            if step.handling == "plain":
                yield
            else:
                with attached.hidden(list(self._parameters()), step.buffer) as outside:
                    yield
                    self._keep(name, attached.take(self._parameters()), outside)
        finally:
            step.is_open = False
        self._tasks.number(name)

    def backward(self, losses: Losses, retain_graph: bool | None = None) -> None:
        """Back-propagates one loss for each task and writes the combined gradient to ``.grad``.

        Args:
            losses: a sequence (a loss for each task, in the order of ``tasks``), a mapping of task
                names to losses, or a generator of losses or of ``(name, loss)`` pairs. A generator
                is asked for the next loss after the last one's backward, so that one graph is
                alive at a time.
            retain_graph: as in ``Tensor.backward``. By default the graph is kept between the losses
                of a sequence or mapping, which may share it, and freed by each loss of a generator.

        Raises:
            TypeError: a loss is not a tensor.
            ValueError: a loss is not a scalar or needs no gradient, their number is not that of the
                declared tasks, or there is none.
        """
        self._step.check_closed("backward()")
        with self._step.all_or_nothing(list(self._parameters()), self._tasks):
            if losses == {} and self._replicas is not None:
                pass  # no examples here in this step; other processes have some
            elif isinstance(losses, (Sequence, Mapping)):
                self._backward_given(self._named(losses), retain_graph)
            else:
                for name, loss in one_by_one(losses, self._tasks.declared):
                    with self.task(name):
                        loss.backward(retain_graph=bool(retain_graph))
                    del loss
        self.surgery()

    pc_backward = backward

    def surgery(self) -> None:
        """Makes one gradient of the tasks'."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets every gradient, those kept apart included."""
        self._step.check_closed("zero_grad()")
        self._step.forget()
        self.base.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise ValueError(
                "optimizer: cannot be copied or pickled with its process_group, which belongs to "
                "this process; load its state_dict() into a new one"
            )
        return super().__getstate__()

    # What the methods differ in.

    def _choose_handling(self) -> Handling:
        """What becomes of the tasks' gradients in the step that begins."""
        return "apart"

    def _loss_weight(self, task: int) -> float:
        """Weight of a task's loss, where gradients are not kept apart."""
        return 1.0

    def _scale(self, task: int, grads: Mapping[Tensor, Tensor]) -> None:
        """Multiplies a task's gradients by its weight, in place."""
        weight = self._loss_weight(task)
        if weight != 1.0:
            torch._foreach_mul_([local(grad) for grad in grads.values()], weight)

    def _watches(self) -> bool:
        """Whether diagnostics are gathered although the update needs none."""
        return False

    def _must_see_each_task(self) -> bool:
        """Whether tasks need a backward each although nothing is kept apart."""
        return self._watches() or self._guard.looks

    # What they have in common.

    def _handling_to_begin(self) -> Handling:
        """What becomes of gradients, where each block's may have to be looked at."""
        handling = self._choose_handling()
        if handling == "apart" or not self._guard.looks:
            return handling
        return "held" if self._guard.holds else "weighted"

    def _keep(self, name: Hashable, grads: attached.Grads, outside: attached.Grads) -> None:
        """Deals with a block's gradients, merging into ``outside`` what belongs to ``.grad``."""
        attached.check_dense(name, grads)
        if not grads:
            return
        task, step = self._tasks.number(name), self._step
        apart = step.handling in ("apart", "held")
        with torch.no_grad():
            self._look(task, list(grads.values()))
            if apart or self._watches():
                step.buffer.capture(task, list(grads.items()), copy=not apart)
            if not apart:
                self._scale(task, grads)
                attached.merge(outside, grads)

    def _look(self, task: int, grads: Collection[Tensor]) -> None:
        failed = self._guard.look(task, grads)
        if failed is not None:
            self._step.note(task, failed)

    def _release(self, outside: attached.Grads) -> None:
        """Merges into ``outside`` what was held back, as it would have been at once."""
        buffer = self._step.buffer
        for task in buffer.slots:
            grads = {}
            for parameter in buffer.touched():
                kept = buffer.grads_of(parameter).get(task)
                if kept is not None:
                    grads[parameter] = kept.to(parameter.dtype, copy=self._watches())
            self._scale(task, grads)
            attached.merge(outside, grads)

    def _flags(self) -> Tensor:  # [N] of uint8
        return self._step.flags(len(self._tasks), next(self._parameters()).device)

    def _named(self, losses: Sequence[Tensor] | Mapping[Any, Tensor]) -> dict[Hashable, Tensor]:
        given = named(losses, self._tasks.declared)
        return {self._tasks.check(name): loss for name, loss in given.items()}

    def _backward_given(self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None) -> None:
        handling = self._step.handling or self._handling_to_begin()
        if handling == "plain" or (handling == "weighted" and not self._must_see_each_task()):
            # One pass through a trunk that the losses share, instead of one for each of them.
            self._step.handling = handling
            tasks = [self._tasks.number(name) for name in losses]
            seeds = [
                torch.full_like(loss, self._loss_weight(task))
                for task, loss in zip(tasks, losses.values(), strict=True)
            ]
            torch.autograd.backward(list(losses.values()), seeds, retain_graph=bool(retain_graph))
            return
        last = list(losses)[-1]
        for name, loss in losses.items():
            retain = name != last if retain_graph is None else retain_graph
            with self.task(name):
                loss.backward(retain_graph=retain)
