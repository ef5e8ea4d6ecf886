"""Gradients attributed to tasks: blocks, and what becomes of the gradients made in them."""

from __future__ import annotations

from collections.abc import Collection, Container, Hashable, ItemsView, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import attached
from gradsurgery.arguments import Shared, check_choice, check_floating, parameters_in
from gradsurgery.buffer import GradientBuffer
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.facade import Facade, of
from gradsurgery.losses import GivenLosses, Losses, named, one_by_one
from gradsurgery.nonfinite import Guard, OnNonfinite
from gradsurgery.replicas import Replicas, check_group
from gradsurgery.roots import beyond_joins, check_not_summed
from gradsurgery.seal import Seal
from gradsurgery.shards import local
from gradsurgery.step import Handling, Step
from gradsurgery.tasks import Tasks
from gradsurgery.witness import Witness

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TaskBlocks(Facade):
    """An optimizer that learns of every gradient which task it is of. Knows no surgery.

    Args:
        base, tasks, shared, on_nonfinite, buffer_dtype, process_group, warn: as in
            :class:`gradsurgery.MultiTaskOptimizer`.
    """

    def __init__(
        self,
        base: Optimizer,
        tasks: Iterable[Hashable] | None,
        shared: Shared | None,
        on_nonfinite: OnNonfinite,
        buffer_dtype: torch.dtype | None,
        process_group: ProcessGroup | None,
        warn: bool,
    ) -> None:
        super().__init__(base)
        check_choice("on_nonfinite", on_nonfinite, ("propagate", "raise", "skip_task", "skip_step"))
        check_floating("buffer_dtype", buffer_dtype)
        declared = None if tasks is None else list(tasks)
        self._witness = Witness(type(self).__name__, warn, declared)
        self._tasks = Tasks(declared, self._witness.met_new)
        self.shared = None if shared is None else parameters_in("shared", shared, base)
        if self.shared is not None and process_group is not None and on_nonfinite == "skip_task":
            raise ValueError(
                'on_nonfinite: must not be "skip_task" where there are shared= and process_group=; '
                'choose "skip_step"'
            )
        if process_group is not None:
            check_group(process_group, self._parameters(), self._tasks.names)
        self.process_group = process_group
        self.diagnostics = Diagnostics()
        seal = Seal(self._witness.found_early, is_wanted=warn)
        self._step = Step(GradientBuffer(buffer_dtype), seal)
        self._replicas = None if process_group is None else Replicas(process_group)
        self._guard = Guard(on_nonfinite, self._tasks, self.diagnostics, self._replicas)

    on_nonfinite = of("_guard", "choice")

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks, those declared or those met so far."""
        return tuple(self._tasks.names)

    def task(self, name: Hashable) -> AbstractContextManager[None]:
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
            RuntimeError: a backward through a graph that the block of another task has freed.
            FloatingPointError: a gradient that is not finite, where ``on_nonfinite`` is ``"raise"``
                and there is no ``process_group``.
        """
        self._witness.asked()
        return self._block(name)

    @contextmanager
    def _block(self, name: Hashable) -> Iterator[None]:
        step = self._step
        name = self._tasks.check(name)
        step.check_closed("task()")
        step.handling = step.handling or self._handling_to_begin()
        step.is_open = True
        step.seal.lift()
        self._witness.entered()
        try:
            if step.handling == "plain":
                yield
                step.averaged.clear()
                self._witness.met(name, in_grad=True)
            else:
                with attached.hidden(list(self._parameters()), step.buffer) as outside:
                    yield
                    grads = attached.take_over(self._parameters(), self._only_read())
                    self._keep(name, grads, outside)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise RuntimeError(
                f"task {name!r}: must not run backward through the graph a second time, after an "
                "earlier backward has freed it; give the losses of one forward together, as in "
                "optimizer.backward([loss_a, loss_b]), or keep the graph with retain_graph=True"
            ) from error
        finally:
            step.is_open = False
            step.seal.lay(step.buffer, step.handling)
        self._tasks.number(name)

    def backward(self, losses: Losses, retain_graph: bool | None = None, *further: object) -> None:
        """Back-propagates one loss for each task and adds the combined gradient to ``.grad``.

        Losses that were put into one tensor and taken out again, as by ``torch.stack(losses)``, and
        losses of the columns of heads' outputs that ``torch.cat`` put together, reach what each of
        them depends on, and no other task's head. This is read from the graph near the losses;
        where it does not show there, and in blocks, declare the shared parameters with ``shared=``.

        Args:
            losses: a sequence or another collection in the order of ``tasks`` with a loss for each
                of them, a tensor ``[T]`` of them, a mapping of task names to losses, or a generator
                of losses or of ``(name, loss)`` pairs. A generator is asked for the next loss after
                the last one's backward, so that one graph is alive at a time.
            retain_graph: as in ``Tensor.backward``. By default the graph is kept between the losses
                of a sequence or mapping, which may share it, and freed by each loss of a generator.
            further: nothing; losses that come one by one instead of in a list are refused.

        Raises:
            TypeError: a loss is not a tensor, or the losses are not in one collection.
            ValueError: a loss is not a scalar or needs no gradient, their number is not that of the
                declared tasks, or there is none.

        Example:
            >>> from gradsurgery import PCGrad
            >>> trunk, heads = torch.nn.Linear(2, 3), [torch.nn.Linear(3, 1) for _ in range(2)]
            >>> parameters = [p for part in (trunk, *heads) for p in part.parameters()]
            >>> optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
            >>> hidden = trunk(torch.ones(4, 2))
            >>> optimizer.backward(torch.stack([head(hidden).mean() for head in heads]))
            >>> optimizer.tasks
            (0, 1)
        """
        self._step.check_closed("backward()")
        _check_one_list(losses, retain_graph, *further)
        with self._step.all_or_nothing(list(self._parameters()), self._tasks):
            self._backward_all(losses, retain_graph)
        self.surgery()

    def pc_backward(
        self, losses: Losses, retain_graph: bool | None = None, *further: object
    ) -> None:
        """Does what :meth:`backward` does, but replaces ``.grad`` instead of adding to it, as
        Pytorch-PCGrad and pytorch_optimizer do; a training loop then needs no ``zero_grad()``.

        Gradients that blocks have kept apart are replaced too, and ``.grad`` of a parameter that no
        loss reaches becomes ``None``. After an error all gradients are as before.

        Args:
            losses, retain_graph, further: as in :meth:`backward`.

        Raises:
            TypeError, ValueError: as :meth:`backward`.
        """
        self._step.check_closed("pc_backward()")
        _check_one_list(losses, retain_graph, *further)
        with self._step.all_or_nothing(list(self._parameters()), self._tasks, replace=True):
            self._backward_all(losses, retain_graph)
            self.surgery()

    def surgery(self) -> None:
        """Makes one gradient of the tasks'."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets every gradient, those kept apart included."""
        self._step.check_closed("zero_grad()")
        self._step.forget()
        self._witness.forget()
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

    def _only_read(self) -> Container[Tensor]:
        """The parameters to whose gradients nothing is written where autograd left them."""
        writes = self._step.handling == "weighted" or self._guard.drops
        return () if writes else self._step.buffer.in_rows()

    def _keep(self, name: Hashable, grads: attached.Grads, outside: attached.Grads) -> None:
        """Deals with a block's gradients, merging into ``outside`` what belongs to ``.grad``."""
        attached.check_dense(name, grads)
        if not grads:
            return
        task, step = self._tasks.number(name), self._step
        apart = step.handling in ("apart", "held")
        step.has_graph = step.has_graph or any(grad.requires_grad for grad in grads.values())
        self._witness.met(name, in_grad=not apart)
        with torch.no_grad():
            self._look(task, list(grads.values()))
            kept, plain = grads, {} if apart else grads
            if self.shared is not None:
                kept = {p: grad for p, grad in grads.items() if p in self.shared}
                plain = {p: grads[p] for p in grads if p not in kept} if apart else grads
            if apart or self._watches():
                step.buffer.capture(task, list(kept.items()), copy=not apart)
            if not apart:
                self._scale(task, grads)
            attached.merge(outside, plain)
            step.averaged.difference_update(plain)

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
                if task in buffer.grads_of(parameter):
                    grad = buffer.hand_out(parameter, buffer.slots[task])
                    grads[parameter] = grad.clone() if self._watches() else grad
            self._scale(task, grads)
            attached.merge(outside, grads)

    def _flags(self) -> Tensor:  # [N] of uint8
        return self._step.flags(len(self._tasks), next(self._parameters()).device)

    def _named(self, losses: GivenLosses) -> dict[Hashable, Tensor]:
        given = named(losses, self._tasks.declared)
        given = {self._tasks.check(name): loss for name, loss in given.items()}
        is_by_name = isinstance(losses, (Mapping, ItemsView))
        if len(given) == 1 and not (is_by_name or self._tasks.are_declared):
            check_not_summed(*given.values())
        return given

    def _backward_all(self, losses: Losses, retain_graph: bool | None) -> None:
        if isinstance(losses, Mapping) and not losses and self._replicas is not None:
            return  # no examples here in this step; other processes have some
        if not isinstance(losses, Iterator):
            self._backward_given(self._named(losses), retain_graph)
            return
        for name, loss in one_by_one(losses, self._tasks.declared):
            with self.task(name):
                loss.backward(retain_graph=bool(retain_graph))
            del loss

    def _backward_given(self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None) -> None:
        handling = self._step.handling or self._handling_to_begin()
        if handling == "plain" or (handling == "weighted" and not self._must_see_each_task()):
            # One pass through a trunk that the losses share, instead of one for each of them.
            self._step.handling = handling
            tasks = [self._tasks.number(name) for name in losses]
            for name in losses:
                self._witness.met(name, in_grad=True)
            seeds = [
                torch.full_like(loss, self._loss_weight(task))
                for task, loss in zip(tasks, losses.values(), strict=True)
            ]
            torch.autograd.backward(list(losses.values()), seeds, retain_graph=bool(retain_graph))
            self._step.averaged.clear()
            return
        roots = beyond_joins(losses)
        last = list(losses)[-1]
        for name, loss in losses.items():
            retain = name != last if retain_graph is None else retain_graph
            with self.task(name):
                if name in roots:
                    roots[name].back_propagate(loss, retain)
                else:
                    loss.backward(retain_graph=retain)


def _check_one_list(losses: object, retain_graph: object, *further: object) -> None:
    """Refuses losses that are given one by one."""
    if further or not (retain_graph is None or isinstance(retain_graph, bool)):
        raise TypeError(
            f"losses: must be in one collection, got {type(losses).__name__}, "
            f"{type(retain_graph).__name__}{', ...' if further else ''}; "
            "give them in a list, as in backward([loss_a, loss_b])"
        )
