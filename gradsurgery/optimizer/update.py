"""The update of a step: one gradient of what its blocks left, on every process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.distributed.averaging import AveragedBuffer
from gradsurgery.distributed.collectives import average, sum_over
from gradsurgery.distributed.replicas import Replicas
from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.sketch_buffer import SketchBuffer
from gradsurgery.optimizer.learning import Learning
from gradsurgery.optimizer.nonfinite import drop_tasks
from gradsurgery.optimizer.parts import Parts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(eq=False, repr=False)
class Update(Parts):
    """Ends a step: averages over processes what its blocks left, and performs surgery on it.

    Args:
        learning: shows the method the losses of each step.
    """

    _learning: Learning

    @property
    def process_group(self) -> ProcessGroup | None:
        """The processes with the same parameters, if there are any."""
        return None if self._replicas is None else self._replicas.group

    def make(self) -> None:
        """Adds to ``.grad`` one gradient made of those that are kept apart, if there are any."""
        step = self._step
        step.seal.lift()
        if step.buffer.slots or self._replicas is not None:
            self._make()
        self._surgery.settle(step)
        step.seal.settle()

    @torch.no_grad()
    def _make(self) -> None:
        self._witness.looks_outside(self._parameters())
        if self._replicas is None:
            self._operate(self._step.buffer)
        else:
            mean = self._average(self._replicas)
            try:
                self._operate(mean)
            finally:
                mean.clear()

    def must_be_skipped(self, closure: Callable[[], Any] | None) -> bool:
        """Tells whether the step is to be left out; reads the device, where it may be.

        Raises:
            ValueError: there is a closure, where it may be.
        """
        if self._guard.choice != "skip_step":
            return False
        if closure is not None:
            raise ValueError(
                'step(): must be called without a closure where on_nonfinite="skip_step", '
                "because the base optimizer would go on; choose another on_nonfinite"
            )
        return self._guard.must_skip(self._flags())

    def take(
        self, base: Optimizer, closure: Callable[[], Any] | None, step_base: Callable[[], Any]
    ) -> Any:
        """Ends the step with that of the base optimizer.

        Args:
            base: the base optimizer.
            closure: the closure that it is called with.
            step_base: takes its step.

        Returns:
            What that returns.
        """
        step = self._step
        step.counts = step.handling is not None
        if closure is None:
            self.testify()
        try:
            found = step_base()
        except RuntimeError as error:
            step.explain_second_order(error, base, even_without_graph=closure is None)
            raise
        if step.counts:
            self._learning.learn(step)
            self._surgery.clock.tick()
        step.end()
        self._witness.end()
        return found

    def inside(self, closure: Callable[[], Any], surgery: Callable[[], None]) -> Callable[[], Any]:
        """Wraps a closure so that ``.grad`` holds the combined gradient after it.

        Args:
            closure: computes the gradients and returns the loss.
            surgery: combines them.
        """

        def evaluate() -> Any:
            # The base optimizer may have replaced what was averaged over processes.
            self._step.averaged.clear()
            self._step.all_losses.clear()
            loss = closure()
            surgery()
            self.testify()
            self._step.counts |= self._step.handling is not None
            return loss

        return evaluate

    def testify(self) -> None:
        """Warns, once, before a step on gradients of fewer than two tasks."""
        # Of what is added to `.grad` at once a process does not know the tasks of the others.
        if self._replicas is None or self._step.handling == "apart":
            self._witness.testify(self._parameters())

    def forget(self) -> None:
        """Forgets the step under way, with every gradient that is kept apart."""
        self._step.forget()
        self._witness.forget()

    def begin_anew(self) -> None:
        """Forgets the step under way, and that processes were found to be alike."""
        self.forget()
        if self._replicas is not None:
            self._replicas.ask_again()

    def _operate(self, buffer: GradientBuffer) -> None:
        """Performs surgery on what a buffer keeps, if that is anything."""
        if buffer.touched():
            self._witness.saw([self._tasks.names[task] for task in sorted(buffer.slots)])
            self._surgery.operate(buffer, self._step)
        else:
            buffer.clear()

    def _average(self, replicas: Replicas) -> GradientBuffer:
        """Averages the per-task gradients over the replicas, and replaces ``.grad`` by its mean."""
        step, parameters = self._step, list(self._parameters())
        options = (
            *self._surgery.facts(),
            self._shared and [place for place, p in enumerate(parameters) if p in self._shared],
        )
        shapes = [(tuple(p.shape), p.dtype) for p in parameters]
        replicas.check_alike((self._tasks.names, options, shapes))
        # A process without a block in this step has not yet asked.
        handling = step.handling or self._guard.handling(self._surgery.handling())
        present = [p for p in parameters if p.grad is not None and p not in step.averaged]
        flags = self._flags() if self._guard.asks else None
        begun = step.handling is not None
        agreed = replicas.agree(parameters, len(self._tasks), step.buffer, present, flags, begun)
        step.handling = handling if agreed.begun else None
        if flags is not None:
            self._guard.act(agreed.failed)
            step.failed.clear()
            drop_tasks(agreed.failed_tasks, step.buffer)
        outside = dot_grad.take_over(agreed.outside)
        with_outside, tasks_of = set(agreed.outside), agreed.tasks_of
        if handling == "held":
            self._release(outside)
            with_outside.update(parameter for parameter, by in tasks_of.items() if by)
            tasks_of = tasks_of if self._surgery.settings.monitor else {}
        to_average = {p: outside.get(p) for p in parameters if p in with_outside}
        mean: GradientBuffer
        if isinstance(step.buffer, SketchBuffer):
            mean = step.buffer
            mean.mean_over(tasks_of, partial(sum_over, group=replicas.group), replicas.group.size())
            dot_grad.add(average(to_average, replicas.group))
        else:
            mean = averaged = AveragedBuffer(
                step.buffer, tasks_of, to_average, self._surgery.weighs_alone, replicas.group
            )
            dot_grad.add(averaged.outside)
        step.averaged.update(parameters)
        if self._surgery.method.needs_losses and mean.slots:
            device = parameters[0].device
            step.losses = replicas.mean_losses(step.losses, len(self._tasks), device)
        return mean

    def _release(self, outside: dot_grad.Grads) -> None:
        """Merges into ``outside`` what was held back, as it would have been at once."""
        buffer = self._step.buffer
        for task in buffer.slots:
            grads = {}
            for parameter in buffer.touched():
                if task in buffer.grads_of(parameter):
                    grad = buffer.hand_out(parameter, buffer.slots[task])
                    grads[parameter] = grad.clone() if self._surgery.settings.monitor else grad
            self._surgery.scale(task, grads)
            dot_grad.merge(outside, grads)

    def _flags(self) -> Tensor:  # [N] of uint8
        """Tells of which tasks a gradient was not finite."""
        return self._step.flags(len(self._tasks), next(self._parameters()).device)
