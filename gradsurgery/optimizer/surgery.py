"""One surgery: Gram matrix, weights, one gradient; and what becomes of the steps between two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import kernels
from gradsurgery.arguments import check_integer
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.places import picked
from gradsurgery.gradients.rows import Units
from gradsurgery.gradients.shards import local
from gradsurgery.gradients.sketch_buffer import SketchBuffer
from gradsurgery.method import FromGram, Method, Seen, Weighting, check_state
from gradsurgery.optimizer.last_weights import LastWeights
from gradsurgery.optimizer.settings import Settings
from gradsurgery.optimizer.shown_losses import ShownLosses
from gradsurgery.optimizer.step import Clock, Handling, Step
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.units import by_task, units_of
from gradsurgery.optimizer.watched import Watched

_PRECISE = (torch.float64, torch.complex128)
_NOISE = 1e-7  # of inner products whose terms are summed in float32, block by block


class Surgery:
    """Makes one gradient of the tasks' by a method.

    Args:
        base, tasks: whose gradients these are.
        method, settings, seed: how T gradients become one, and when.
        diagnostics: told of every surgery.
        shown: makes of losses what the method sees.

    Raises:
        TypeError, ValueError: the seed is none, or the method does not take these settings.
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        tasks: Tasks,
        diagnostics: Diagnostics,
        settings: Settings,
        seed: int,
        shown: ShownLosses,
    ) -> None:
        if settings.every > 1 and not method.needs_gram:
            raise ValueError(
                f"every: must be 1 for {type(method).__name__}, which costs no more than the plain "
                f"sum in every step, got {settings.every}"
            )
        self.method = method
        self.settings = settings
        self.shown = shown
        self.clock = Clock(check_integer("seed", seed))
        self.watched = Watched(self._parameters, is_possible=settings.sketch is None)
        self._base = base
        self._tasks = tasks
        self._diagnostics = diagnostics
        self.last = LastWeights()

    @property
    def seed(self) -> int:
        """Seed of the random choices, which depend on the step besides."""
        return self.clock.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.clock.seed = check_integer("seed", seed)

    @property
    def weighting(self) -> Method | Weighting:
        """Method or callable that makes weights of the tasks' gradients."""
        return self.method.weighting if isinstance(self.method, FromGram) else self.method

    def handling(self) -> Handling:
        """Decides what becomes of the tasks' gradients in the step that begins."""
        if self.method.is_sum:
            return "weighted" if self.settings.monitor else "plain"
        if self.method.has_fixed_weights:
            return "weighted"
        if not self.has_begun:
            return "plain"
        if self.knows_weights:
            return "weighted"
        return "apart" if self._is_due and self.settings.sketch is None else "weighted"

    @property
    def _is_due(self) -> bool:
        since = self.clock.num_steps - self.settings.start_step
        return since % self.settings.every == 0 or not self.last

    @property
    def sketches(self) -> bool:
        """Tells whether weights are made of sketches in this step."""
        is_asked = self.settings.sketch is not None and self.method.needs_gram
        return is_asked and self.has_begun and self._is_due

    def sketch_facts(self) -> tuple[int, bool]:
        """Gives the seed of the sketches, and whether task-specific parameters are in them."""
        return self.clock.seed, self.settings.scope == "all"

    @property
    def has_begun(self) -> bool:
        """Tells whether the steps of plain loss sum are over."""
        return self.clock.num_steps >= self.settings.start_step

    @property
    def sees_each_task(self) -> bool:
        """Tells whether tasks need a backward each although nothing is kept apart."""
        return self.settings.monitor or not self.method.has_fixed_weights

    @property
    def weighs_losses(self) -> bool:
        """Tells whether the method's weights go on the losses, before any backward."""
        return not (self.method.needs_gram or self.method.has_fixed_weights)

    @property
    def weighs_alone(self) -> bool:
        """Tells whether parameters that one task alone reached are weighted like the others."""
        return self.settings.scope == "all" or self.weighs_losses

    @property
    def knows_weights(self) -> bool:
        """Tells whether each task's weight is known before its loss. A share of the mean is not:
        it depends on how many tasks take part."""
        is_known = self.weighs_losses and self.method.has_known_weights
        return is_known and self.settings.reduction == "sum" and self.has_begun

    def weigh_losses(self, losses: Mapping[int, Tensor]) -> Tensor:  # [T]
        """Asks the method for the weights of some losses, by task in order of their numbers."""
        of_tasks = sorted(losses)
        device = next(iter(losses.values())).device
        with torch.no_grad():
            weights, _ = self.weigh(None, of_tasks, losses, device)
            self.record(of_tasks, None, weights, None)
            return self.reduced(weights[0])

    def reduced(self, weights: Tensor) -> Tensor:  # [..., T]
        """Gives the weights of the mean where that is wanted: the one place that divides by T."""
        return weights / weights.shape[-1] if self.settings.reduction == "mean" else weights

    def noise_of(self, tensors: Iterable[Tensor]) -> float | None:
        """Gives the relative error of inner products over tensors; ``None`` in float64."""
        return None if all(tensor.dtype in _PRECISE for tensor in tensors) else _NOISE

    def fixed_weight(self, task: int) -> float:
        """Gives the weight of a task's loss that depends on nothing; 1 where there is no such."""
        fixed = self.method.has_fixed_weights
        return self.method.fixed_weight(self._tasks.names[task]) if fixed else 1.0

    def scale(self, task: int, grads: Mapping[Tensor, Tensor]) -> None:
        """Multiplies a task's gradients by its weight, in place, where they are not kept apart."""
        if self.knows_weights:
            weights, _ = self.weigh(None, [task], {}, next(iter(grads.values())).device)
            dot_grad.multiply(grads.values(), weights[0, 0])
        elif not self.method.has_fixed_weights:
            self.last.scale(task, grads, mean=self.settings.reduction == "mean")
        elif (weight := self.fixed_weight(task)) != 1.0:
            torch._foreach_mul_([local(grad) for grad in grads.values()], weight)

    def operate(self, buffer: GradientBuffer, step: Step) -> None:
        """Performs surgery on what a buffer keeps, the step's or its average over processes; it is
        empty then."""
        self.watched.check()
        of_tasks = sorted(buffer.slots)
        touched = buffer.touched()
        chosen = self.kernels_for(touched)
        buffer.settle()
        sketch = self.settings.sketch if self.sketches else None
        is_delayed = sketch is not None and step.handling == "weighted"
        if sketch is not None and is_delayed and isinstance(buffer, SketchBuffer):
            buffer.average(sketch.momentum)
        units = units_of(buffer, self._base, self.settings, needs_gram=self.method.needs_gram)
        weighs_all = self.settings.scope == "all" or not self.method.needs_gram
        shared = touched if weighs_all else buffer.shared()
        gram = watched = None
        if self.method.needs_gram or self.settings.monitor:
            gram = buffer.grams(chosen.gram_matrices, units, alone=self.settings.scope == "all")
            gram = by_task(gram, buffer)
        noise, device = self.noise_of(touched), touched[0].device
        if self.method.needs_losses and (step.handling == "apart" or sketch is not None):
            self.shown.check(of_tasks, step.losses)
        weights, coefficients = self.weigh(
            gram, of_tasks, step.losses, device, noise, units.numbers if shared else (), chosen
        )
        if self.watched.groups and gram is not None:
            groups = Units(self.watched.groups.values())
            watched = by_task(buffer.grams(chosen.gram_matrices, groups, alone=False), buffer)
        self.record(of_tasks, gram, weights, coefficients, watched)
        if step.handling == "apart" or sketch is not None:
            place = {task: place for place, task in enumerate(of_tasks)}
            by_slot = [place[task] for task in buffer.slots]
            weights = picked(weights.T, by_slot).T
        if step.handling == "apart":
            self._write(buffer, chosen, units, weights)
        elif sketch is not None:
            chosen_weights = self.last.where_finite(buffer, weights) if is_delayed else weights
            self.last.keep(buffer, units, chosen_weights, alone=self.settings.scope == "all")
        step.losses.clear()
        buffer.clear()

    def weigh(
        self,
        gram: Tensor | None,  # [S, T, T]
        of_tasks: Sequence[int],
        losses: Mapping[int, Tensor],
        device: torch.device,
        noise: float | None = None,
        units: tuple[int, ...] = (0,),
        chosen: ModuleType | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # [S, T], [S, T, T]
        """Asks the method for the weights of some tasks in each unit, and for what the projections
        of a method that projects are made of. Where nothing is shared there are no units, the
        weights are 1, and nothing is asked: what a method keeps does not change."""
        method, num_tasks = self.method, len(of_tasks)
        if method.needs_gram and not units:
            assert gram is not None
            return torch.ones_like(gram[..., 0]), None
        if method.has_fixed_weights:
            like = torch.empty(1, device=device) if gram is None else gram[:, 0, 0]
            return torch.stack(
                [like.new_full(like.shape, self.fixed_weight(task)) for task in of_tasks], -1
            ), None
        sees_losses = method.needs_losses and not method.has_known_weights
        seen = Seen(
            gram if method.needs_gram else None,
            self.shown.seen(of_tasks, losses) if sees_losses else None,
            tuple(of_tasks),
            tuple(self._tasks.names),
            self.clock.seed,
            self.clock.on(device),
            fused=self.settings.fused is not False
            and _are_fused(chosen or kernels.choose(self.settings.fused, device)),
            noise=noise,
            units=units,
        )
        found = method.weights(seen).detach()
        if found.ndim == 3:
            return found.sum(-2), found
        if found.ndim != 2 or found.shape[-1] != num_tasks:
            raise ValueError(
                f"method: must return weights [S, {num_tasks}] of {num_tasks} tasks, got shape "
                f"{tuple(found.shape)}"
            )
        return found, None

    def settle(self, step: Step) -> None:
        """Ends a surgery: keeps the losses to learn from, and tells the diagnostics of blocks that
        were weighed when they ended."""
        step.to_learn = dict(step.all_losses)
        of_tasks = sorted(step.weighed)
        if self.method.needs_losses:
            self.shown.check(of_tasks, step.all_losses)
        if of_tasks and not self.settings.monitor:
            weights, _ = self.weigh(None, of_tasks, {}, next(self._parameters()).device)
            self.record(of_tasks, None, weights, None)
        step.weighed.clear()

    def record(
        self,
        of_tasks: Sequence[int],
        gram: Tensor | None,
        weights: Tensor,  # [S, T]
        coefficients: Tensor | None,  # [S, T, T]
        watched: Tensor | None = None,  # [K, T, T]
    ) -> None:
        """Tells the diagnostics of a surgery."""
        names = [self._tasks.names[task] for task in of_tasks]
        self._diagnostics.record(names, of_tasks, self._tasks.names, gram, weights, coefficients)
        groups = () if watched is None else tuple(self.watched.groups)
        self._diagnostics.record_groups(groups, watched)

    def kernels_for(self, tensors: Iterable[Tensor]) -> ModuleType:
        """Chooses the kernels for the devices of some tensors."""
        return kernels.choose(self.settings.fused, *{tensor.device for tensor in tensors})

    def facts(self) -> tuple[object, ...]:
        """Gives what processes must have alike."""
        used = self.settings
        chosen = used.reduction, used.scope, used.granularity, used.sketch
        return self.seed, *chosen, self.clock.num_steps

    def state_dict(self) -> dict[str, Any]:
        """Gives the clock, the method's state and the last weights."""
        state = {"seed": self.clock.seed, "num_steps": self.clock.read()}
        of_method = self.method.state_dict()
        if not self.method.has_fixed_weights:
            state.update(self.last.state_dict(list(self._parameters())))
        return {**state, "weighting": of_method} if of_method else state

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuses a state, before anything is changed.

        Raises:
            TypeError, ValueError: with what was found.
        """
        check_integer("state_dict: seed", state["seed"])
        if check_integer("state_dict: num_steps", state["num_steps"], at_least=0) >= 2**63:
            raise ValueError(
                f"state_dict: num_steps must be below 2**63, found {state['num_steps']}; "
                "take another checkpoint"
            )
        self.last.check_state(state, len(state["tasks"]), sum(1 for _ in self._parameters()))
        if "weighting" in state:
            check_state(self.method, state["weighting"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the state back; a method without a saved state begins anew."""
        self.clock.restore(check_integer("state_dict", state["seed"]), state["num_steps"])
        if "weighting" in state:
            self.method.load_state_dict(state["weighting"])
        self.last.load_state_dict(state, list(self._parameters()))

    def _write(
        self,
        buffer: GradientBuffer,
        chosen: ModuleType,
        units: Units,
        weights: Tensor,  # [S, T]
    ) -> None:
        """Adds the combined gradient to ``.grad``; weights are by slot."""
        if self.settings.every > 1:
            self.last.keep(buffer, units, weights, alone=self.settings.scope == "all")
        of_shared = self.reduced(weights)
        of_alone = weights if self.settings.scope == "all" else None
        if not self.method.needs_gram:
            of_alone = of_shared  # all of a loss is weighted
        dot_grad.add(buffer.combine(chosen.combine_segments, units, of_shared, of_alone))

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self._base.param_groups)


def _are_fused(chosen: ModuleType) -> bool:
    return chosen.__name__.endswith(".fused")
