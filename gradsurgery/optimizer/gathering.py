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
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.shards import is_spread
from gradsurgery.optimizer.features import FeatureGradients, check_features
from gradsurgery.optimizer.losses import GivenLosses, Losses, check_one_list, named, one_by_one
from gradsurgery.optimizer.nonfinite import drop_unless
from gradsurgery.optimizer.parts import Parts
from gradsurgery.optimizer.roots import beyond_joins, check_not_summed
from gradsurgery.optimizer.second_backward import back_propagate, check_alone
from gradsurgery.optimizer.step import Handling
from gradsurgery.optimizer.task_block import TaskBlock

_AGAIN = "backward through the graph a second time"  # as torch says it


class Gathering(Parts):
    """Attributes a step's gradients to tasks, and keeps them apart or adds them to ``.grad``."""

    def block(self, name: Hashable) -> TaskBlock:
        """Attributes every gradient made inside the block to one task."""
        return TaskBlock(name, self._enter, self._leave)

    def _enter(self, block: TaskBlock) -> None:
        step = self._step
        block.name = self._tasks.check(block.name)
        step.check_closed("task()")
        step.handling = self._handling()
        step.seal.enter(block.name)
        self._witness.entered()
        block.losses, block.outside = [], {}
        if step.handling != "plain":
            block.outside = dot_grad.hide(self._parameters(), step.buffer)
        step.is_open = True

    def _leave(self, block: TaskBlock, error: BaseException | None) -> None:
        step, name = self._step, block.name
        try:
            if step.handling == "plain":
                if error is None:
                    step.averaged.clear()
                    self._witness.met(name, in_grad=True)
            else:
                to_empty: Iterator[Tensor] | tuple[()] = self._parameters()
                try:
                    if error is None:
                        grads = dot_grad.take_over(self._parameters(), self._only_read())
                        self._keep(name, grads, block.outside)
                        to_empty = ()
                finally:
                    dot_grad.put(to_empty, block.outside)
            if error is None:
                for loss in block.losses:
                    self._note_loss(name, loss)
        finally:
            step.is_open = False
            step.seal.lay(step.buffer, step.handling)
        if error is None:
            self._tasks.number(name)
        elif isinstance(error, RuntimeError) and _AGAIN in str(error):
            raise RuntimeError(
                f"task {name!r}: must not run backward through the graph a second time, after an "
                "earlier backward has freed it; give the losses of one forward together, as in "
                "optimizer.backward([loss_a, loss_b]), or keep the graph with retain_graph=True"
            ) from error

    def _handling(self) -> Handling:
        """Decides what becomes of the tasks' gradients, once in a step."""
        return self._step.handling or self._guard.handling(self._surgery.handling())

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
            if self._guard.looks:
                self.look(task, list(grads.values()))
            kept, plain = grads, {} if apart else grads
            if self._shared is not None and not self._surgery.weighs_losses:
                kept = {p: grad for p, grad in grads.items() if p in self._shared}
                plain = {p: grads[p] for p in grads if p not in kept} if apart else grads
            if apart or self._surgery.settings.monitor or self._surgery.sketches:
                step.buffer.capture(task, list(kept.items()), copy=not apart)
            if step.handling == "sketched":
                return
            if not apart:
                self._surgery.scale(task, grads)
            if self._surgery.knows_weights:
                step.weighed.add(task)
            if plain:
                dot_grad.merge(outside, plain)
                step.averaged.difference_update(plain)

    def look(self, task: int, grads: Collection[Tensor]) -> None:
        """Looks for numbers that are not finite, and remembers them where nobody may act yet."""
        failed = self._guard.look(task, grads)
        if failed is not None:
            self._step.note(task, failed)

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
            self._step.note_loss(self._tasks.number(name), self._surgery.shown.unscaled(loss))

    def backward_all(
        self,
        what: str,
        losses: Losses,
        retain_graph: bool | None,
        *further: object,
        and_replace: Callable[[], None] | None = None,
    ) -> None:
        """Back-propagates whatever :meth:`MultiTaskOptimizer.backward` is given, or nothing of it.

        Args:
            what: the call, for errors.
            losses, retain_graph, further: as there.
            and_replace: makes ``.grad`` of them, in place of all gradients from before.
        """
        self._step.check_closed(what)
        check_one_list(losses, retain_graph, *further)
        with self._all_or_nothing(replace=and_replace is not None):
            self._backward_each(losses, retain_graph)
            if and_replace is not None:
                and_replace()

    def _all_or_nothing(self, *, replace: bool = False) -> AbstractContextManager[None]:
        return self._step.all_or_nothing(list(self._parameters()), self._tasks, replace=replace)

    def _backward_each(self, losses: Losses, retain_graph: bool | None) -> None:
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
        handling = self._handling()
        sees_each = self._surgery.sees_each_task or self._guard.looks
        looks = self._guard.looks or self._surgery.settings.monitor
        if not self._surgery.knows_weights:
            # One without examples would not ask for the mean of the losses.
            looks = looks or self._replicas is not None
        if handling != "plain" and self._surgery.weighs_losses and not looks:
            self._step.handling = handling
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
        goes_back_twice = handling == "weighted" and self._surgery.sketches
        if goes_back_twice:
            check_alone(self._parameters(), has_group=self._replicas is not None)
            self._step.handling = "sketched"
        for name, loss in losses.items():
            retain = name != last if retain_graph is None else retain_graph
            retain = retain or goes_back_twice
            with self.block(name) as block:
                if name in roots:
                    self._note_loss(name, loss)
                    roots[name].back_propagate(loss, retain)
                else:
                    block.backward(loss, retain)
        if goes_back_twice:
            self._backward_again(losses, bool(retain_graph))

    def _backward_again(self, losses: Mapping[Hashable, Tensor], retain_graph: bool) -> None:
        """Back-propagates the losses with the weights that their sketches gave."""
        step, surgery = self._step, self._surgery
        step.averaged.clear()
        self._witness.saw(list(losses))
        shared: set[Tensor] = set()
        weights = [torch.ones(2)] * len(losses)
        if step.buffer.touched():
            with torch.no_grad():
                surgery.operate(step.buffer, step)
                mean = surgery.settings.reduction == "mean"
                tasks = [self._tasks.number(name) for name in losses]
                weights = [surgery.last.of(task, mean=mean) for task in tasks]
            shared.update(surgery.last.shared)
        step.handling = "weighted"
        back_propagate(list(losses.values()), weights, self._parameters(), shared, retain_graph)

    def _backward_weighted(
        self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None
    ) -> None:
        """Back-propagates the sum of the losses with the method's weights, in one pass."""
        by_task = sorted((self._tasks.number(name), loss) for name, loss in losses.items())
        for name in losses:
            self._witness.met(name, in_grad=True)
        seen = {task: self._surgery.shown.unscaled(loss) for task, loss in by_task}
        weights = self._surgery.weigh_losses(seen)
        if self._surgery.method.needs_losses:
            self._step.note_all(seen)
        seeds = [w.to(loss).view_as(loss) for (_, loss), w in zip(by_task, weights, strict=True)]
        torch.autograd.backward(
            [loss for _, loss in by_task], seeds, retain_graph=bool(retain_graph)
        )
        self._step.averaged.clear()

    def backward_to_features(
        self, losses: GivenLosses, features: Tensor | Sequence[Tensor], retain_graph: bool
    ) -> None:
        """Performs surgery on the gradients of features, and back-propagates the result."""
        self._step.check_closed("feature_backward()")
        shared = [features] if isinstance(features, Tensor) else list(features)
        check_features(shared)
        with self._all_or_nothing():
            self._backward_to(losses, shared, retain_graph)
        self._step.seal.lay(self._step.buffer, self._step.handling)

    def _backward_to(
        self, losses: GivenLosses, features: Sequence[Tensor], retain_graph: bool
    ) -> None:
        given = self.named(losses)
        self._check_features_everywhere(given)
        handling = self._handling()
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
                num_tasks, asks = len(self._tasks), self._guard.asks
                flags = self._step.flags(num_tasks, gram.device) if asks else None
                gram, failed = self._replicas.mean_gram(gram, flags)
                if surgery.method.needs_losses:
                    seen = self._replicas.mean_losses(seen, num_tasks, gram.device)
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
