"""Gathers the gradients that the blocks of a step leave: whose they are, where they go."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Container,
    Hashable,
    ItemsView,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from gradsurgery.distributed.averaging import AveragedBuffer
from gradsurgery.distributed.collectives import sum_over
from gradsurgery.distributed.replicas import Replicas
from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.shards import is_spread
from gradsurgery.optimizer.features import FeatureGradients
from gradsurgery.optimizer.losses import GivenLosses, Losses, named, one_by_one
from gradsurgery.optimizer.nonfinite import Guard, drop_tasks, drop_unless
from gradsurgery.optimizer.roots import beyond_joins, check_not_summed
from gradsurgery.optimizer.step import Handling, Step
from gradsurgery.optimizer.surgery import Surgery
from gradsurgery.optimizer.task_block import TaskBlock
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.witness import Witness


class Gathering:
    """Gathers the gradients of a step: attributes them to tasks, keeps them apart or adds them to
    ``.grad``, and averages both over processes.

    Args:
        parameters: lists the optimizer's parameters.
        tasks: the tasks.
        step: the step under way.
        surgery: decides where gradients go, and weighs those that are not kept apart.
        guard: looks for gradients that are not finite.
        replicas: processes with the same parameters, if there are any.
        witness: told of every block.
        shared: the parameters that may count as shared, where they were declared.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterator[Tensor]],
        tasks: Tasks,
        step: Step,
        surgery: Surgery,
        guard: Guard,
        replicas: Replicas | None,
        witness: Witness,
        shared: frozenset[Tensor] | None,
    ) -> None:
        self._parameters = parameters
        self._tasks = tasks
        self._step = step
        self._surgery = surgery
        self._guard = guard
        self._replicas = replicas
        self._witness = witness
        self._shared = shared

    @contextmanager
    def block(self, name: Hashable) -> Iterator[TaskBlock]:
        """Attributes every gradient made inside the block to one task."""
        step = self._step
        name = self._tasks.check(name)
        step.check_closed("task()")
        step.handling = step.handling or self.handling()
        block = TaskBlock(name, partial(self._note_loss, name))
        step.seal.enter(name)
        step.is_open = True
        self._witness.entered()
        try:
            if step.handling == "plain":
                yield block
                step.averaged.clear()
                self._witness.met(name, in_grad=True)
            else:
                with dot_grad.hidden(list(self._parameters()), step.buffer) as outside:
                    yield block
                    grads = dot_grad.take_over(self._parameters(), self._only_read())
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

    def handling(self) -> Handling:
        """Decides what becomes of gradients, where each block's may have to be looked at."""
        handling = self._surgery.handling()
        if handling == "apart" or not self._guard.looks:
            return handling
        return "held" if self._guard.holds else "weighted"

    def _only_read(self) -> Container[Tensor]:
        """Lists parameters to whose gradients nothing is written where autograd left them."""
        writes = self._step.handling == "weighted" or self._guard.drops
        return () if writes else self._step.buffer.in_rows()

    def _keep(self, name: Hashable, grads: dot_grad.Grads, outside: dot_grad.Grads) -> None:
        """Deals with a block's gradients, merging into ``outside`` what belongs to ``.grad``."""
        dot_grad.check_dense(name, grads)
        if not grads:
            return
        task, step = self._tasks.number(name), self._step
        apart = step.handling in ("apart", "held")
        step.has_graph = step.has_graph or any(grad.requires_grad for grad in grads.values())
        self._witness.met(name, in_grad=not apart)
        with torch.no_grad():
            self.look(task, list(grads.values()))
            kept, plain = grads, {} if apart else grads
            if self._shared is not None:
                kept = {p: grad for p, grad in grads.items() if p in self._shared}
                plain = {p: grads[p] for p in grads if p not in kept} if apart else grads
            if apart or self._surgery.monitor:
                step.buffer.capture(task, list(kept.items()), copy=not apart)
            if not apart:
                self._surgery.scale(task, grads)
            dot_grad.merge(outside, plain)
            step.averaged.difference_update(plain)

    def look(self, task: int, grads: Collection[Tensor]) -> None:
        """Looks for numbers that are not finite, and remembers them where nobody may act yet."""
        failed = self._guard.look(task, grads)
        if failed is not None:
            self._step.note(task, failed)

    def _release(self, outside: dot_grad.Grads) -> None:
        """Merges into ``outside`` what was held back, as it would have been at once."""
        buffer = self._step.buffer
        for task in buffer.slots:
            grads = {}
            for parameter in buffer.touched():
                if task in buffer.grads_of(parameter):
                    grad = buffer.hand_out(parameter, buffer.slots[task])
                    grads[parameter] = grad.clone() if self._surgery.monitor else grad
            self._surgery.scale(task, grads)
            dot_grad.merge(outside, grads)

    def flags(self) -> Tensor:  # [N] of uint8
        """Tells of which tasks a gradient was not finite."""
        return self._step.flags(len(self._tasks), next(self._parameters()).device)

    def named(self, losses: GivenLosses) -> dict[Hashable, Tensor]:
        """Checks losses and sorts them by the names of their tasks."""
        given = named(losses, self._tasks.declared)
        given = {self._tasks.check(name): loss for name, loss in given.items()}
        is_by_name = isinstance(losses, (Mapping, ItemsView))
        if len(given) == 1 and not (is_by_name or self._tasks.are_declared):
            check_not_summed(*given.values())
        return given

    def _note_loss(self, name: Hashable, loss: Tensor) -> None:
        """Shows a loss to a method that asks for losses."""
        if self._surgery.method.needs_losses:
            self._step.note_loss(self._tasks.number(name), loss.detach())

    def backward_all(self, losses: Losses, retain_graph: bool | None) -> None:
        """Back-propagates whatever :meth:`MultiTaskOptimizer.backward` is given."""
        if isinstance(losses, Mapping) and not losses and self._replicas is not None:
            return  # no examples here in this step; other processes have some
        if not isinstance(losses, Iterator):
            self.backward_given(self.named(losses), retain_graph)
            return
        for name, loss in one_by_one(losses, self._tasks.declared):
            with self.block(name) as block:
                block.backward(loss, bool(retain_graph))
            del loss

    def backward_given(self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None) -> None:
        """Back-propagates losses that are all there, each for its task or all in one pass."""
        handling = self._step.handling or self.handling()
        sees_each = self._surgery.sees_each_task or self._guard.looks
        # Not with replicas: one without examples would not ask for the mean of the losses.
        looks = self._guard.looks or self._surgery.monitor or self._replicas is not None
        if handling == "apart" and self._surgery.weighs_losses and not looks:
            self._backward_weighted(losses, retain_graph)
            return
        if handling == "plain" or (handling == "weighted" and not sees_each):
            # One pass through a trunk that the losses share, instead of one for each of them.
            self._step.handling = handling
            tasks = [self._tasks.number(name) for name in losses]
            for name in losses:
                self._witness.met(name, in_grad=True)
            seeds = [
                torch.full_like(loss, self._surgery.fixed_weight(task))
                for task, loss in zip(tasks, losses.values(), strict=True)
            ]
            torch.autograd.backward(list(losses.values()), seeds, retain_graph=bool(retain_graph))
            self._step.averaged.clear()
            return
        roots = beyond_joins(losses)
        last = list(losses)[-1]
        for name, loss in losses.items():
            retain = name != last if retain_graph is None else retain_graph
            with self.block(name) as block:
                if name in roots:
                    self._note_loss(name, loss)
                    roots[name].back_propagate(loss, retain)
                else:
                    block.backward(loss, retain)

    def _backward_weighted(
        self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None
    ) -> None:
        """Back-propagates the sum of the losses with the method's weights, in one pass."""
        by_task = sorted((self._tasks.number(name), loss) for name, loss in losses.items())
        for name in losses:
            self._witness.met(name, in_grad=True)
        weights = self._surgery.weigh_losses({task: loss.detach() for task, loss in by_task})
        seeds = [w.to(loss).view_as(loss) for (_, loss), w in zip(by_task, weights, strict=True)]
        self._step.handling = "apart"
        torch.autograd.backward(
            [loss for _, loss in by_task], seeds, retain_graph=bool(retain_graph)
        )
        self._step.averaged.clear()

    def _mean_losses(self, losses: Mapping[int, Tensor], replicas: Replicas) -> dict[int, Tensor]:
        """Averages losses over the replicas; one that a process does not have counts as zero."""
        device = next(self._parameters()).device
        told = torch.zeros(len(self._tasks), dtype=torch.float64, device=device)
        for task, loss in losses.items():
            told[task] = loss
        mean = sum_over(told, replicas.group) / replicas.group.size()
        return dict(enumerate(mean))

    def average(self, replicas: Replicas) -> AveragedBuffer:
        """Averages the per-task gradients over the replicas, and replaces ``.grad`` by its mean."""
        step, parameters = self._step, list(self._parameters())
        options = (
            *self._surgery.settings(),
            self._shared and [place for place, p in enumerate(parameters) if p in self._shared],
        )
        shapes = [(tuple(p.shape), p.dtype) for p in parameters]
        replicas.check_alike((self._tasks.names, options, shapes))
        # A process without a block in this step has not yet asked.
        handling = step.handling or self.handling()
        present = [p for p in parameters if p.grad is not None and p not in step.averaged]
        flags = self.flags() if self._guard.asks else None
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
            tasks_of = tasks_of if self._surgery.monitor else {}
        mean = AveragedBuffer(
            step.buffer,
            tasks_of,
            {p: outside.get(p) for p in parameters if p in with_outside},
            self._surgery.scope == "all",
            replicas.group,
        )
        dot_grad.add(mean.outside)
        step.averaged.update(parameters)
        if self._surgery.method.needs_losses and mean.slots:
            step.losses = self._mean_losses(step.losses, replicas)
        return mean

    def backward_to_features(
        self, losses: GivenLosses, features: Sequence[Tensor], retain_graph: bool
    ) -> None:
        """Performs surgery on the gradients of features, and back-propagates the result."""
        given = self.named(losses)
        self._check_features_everywhere(given)
        handling = self._step.handling or self.handling()
        if handling == "plain" or self._surgery.weighs_losses:
            self.backward_given(given, retain_graph)
            return
        self._step.handling = handling
        self._step.averaged.clear()
        by_task = sorted((self._tasks.number(name), loss) for name, loss in given.items())
        of_tasks = [task for task, _ in by_task]
        self._witness.saw(list(given))
        found = FeatureGradients(
            [loss for _, loss in by_task], features, retain_graph, copy=self._guard.drops
        )
        surgery = self._surgery
        with torch.no_grad():
            for place, (task, loss) in enumerate(by_task):
                self._note_loss(self._tasks.names[task], loss)
                if self._guard.looks:
                    dot_grad.check_dense(self._tasks.names[task], found.heads[place])
                self.look(task, found.of(place))
            chosen = surgery.kernels_for(features)
            gram = chosen.gram_matrix(found.grads)
            seen = dict(self._step.losses)
            if self._replicas is not None:
                flags = self.flags() if self._guard.asks else None
                gram, failed = self._replicas.mean_gram(gram, flags)
                if surgery.method.needs_losses:
                    seen = self._mean_losses(seen, self._replicas)
                if failed is not None:
                    self._guard.act(failed)
                    self._step.failed.clear()
                    for place in range(len(of_tasks)):
                        drop_unless(~failed[place], found.of(place))
            noise = surgery.noise_of([found.grads])
            weights, coefficients = surgery.weigh(gram[None], of_tasks, seen, gram.device, noise)
            self._step.losses.clear()
            update = chosen.combine(surgery.reduced(weights[0]), found.grads, found.grads[0])
        for place, task in enumerate(of_tasks):
            found.scale_heads(place, surgery.fixed_weight(task))
        found.back_propagate(update, retain_graph)
        surgery.record(of_tasks, gram[None], weights, coefficients)

    def _check_features_everywhere(self, losses: Mapping[Hashable, Tensor]) -> None:
        if any(is_spread(parameter) for parameter in self._parameters()):
            raise ValueError(
                "feature_backward(): must have parameters that are not sharded; use backward()"
            )
        if self._replicas is not None and set(losses) != set(self._tasks.names):
            raise ValueError(
                f"losses: must be one for each of the tasks {self._tasks.names} where there is a "
                f"process_group, got those of {list(losses)}; use backward() when a task is absent"
            )
