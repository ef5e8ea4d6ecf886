"""The step under way, what was gathered for it, and how many there were before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_integer, check_places
from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.sketch_buffer import SketchBuffer
from gradsurgery.optimizer.seal import Seal
from gradsurgery.optimizer.tasks import Tasks

# What becomes of a task's gradient when its block ends. It is kept apart until surgery; or added to
# .grad, multiplied by the task's weight; or held back until all processes know whether it is
# finite, and then added likewise; or autograd itself has added it and nothing is left to do.
# While a sketch of it is all that is wanted, because another backward follows, it is dropped.
Handling = Literal["apart", "weighted", "held", "plain", "sketched"]


class Clock:
    """Counts the steps, on the host and, once asked for it there, on a device.

    Args:
        seed: what random choices depend on, besides the count.

    Example:
        >>> clock = Clock(seed=0)
        >>> clock.tick()
        >>> clock.num_steps, clock.on(torch.device("cpu"))
        (1, 1)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.num_steps = 0
        self._on_device: Tensor | None = None

    def on(self, device: torch.device) -> int | Tensor:  # []
        """The count for the work of a device: away from the CPU a tensor there, which ticks along,
        in a replayed CUDA graph too."""
        if device.type == "cpu":
            return self.num_steps
        if self._on_device is None or self._on_device.device != device:
            self._on_device = torch.full((), self.num_steps, dtype=torch.int64, device=device)
        return self._on_device

    def tick(self) -> None:
        """One step more."""
        self.num_steps += 1
        if self._on_device is not None:
            self._on_device += 1

    def read(self) -> int:
        """The count of the device, where there is one."""
        return self.num_steps if self._on_device is None else int(self._on_device)

    def restore(self, seed: int, num_steps: int) -> None:
        """Goes on from there."""
        self.seed, self.num_steps, self._on_device = seed, num_steps, None


@dataclass
class Step:
    """Holds what the blocks of a step have left so far.

    Args:
        buffer: the tasks' gradients that are kept apart.
        seal: lies in `.grad` meanwhile.
        handling: what becomes of a task's gradient; ``None`` until the first block.
        is_open: whether a block is.
        averaged: the parameters whose ``.grad`` is already the mean over the processes.
        counts: whether the step that is being taken is one for the clock.
        has_graph: whether a gradient was made with ``create_graph=True``.
        failed: by task, whether a gradient was not finite, ``[]`` booleans: what nobody has acted
            upon yet.
        losses: of the tasks, where the method asks for them, ``[]`` each: of what awaits surgery.
        all_losses: those of the whole step.
        to_learn: those that the method learns from when the step has been taken, whatever a hook
            forgets meanwhile.
        weighed: the tasks whose blocks were weighed when they ended.
    """

    buffer: GradientBuffer
    seal: Seal
    handling: Handling | None = None
    is_open: bool = False
    averaged: set[Tensor] = field(default_factory=set)
    counts: bool = False
    has_graph: bool = False
    failed: dict[int, Tensor] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    all_losses: dict[int, Tensor] = field(default_factory=dict)
    to_learn: dict[int, Tensor] = field(default_factory=dict)
    weighed: set[int] = field(default_factory=set)

    def note(self, task: int, failed: Tensor) -> None:  # []
        """Remembers of a task's gradient whether it was not finite."""
        self.failed[task] = self.failed[task] | failed if task in self.failed else failed

    def note_loss(self, task: int, loss: Tensor) -> None:  # []
        """Adds a loss to those that a task has in this step."""
        self.losses[task] = self.losses[task] + loss if task in self.losses else loss
        self.note_all({task: loss})

    def note_all(self, losses: Mapping[int, Tensor]) -> None:
        """Adds losses to those of the whole step; these have gone into weights already."""
        for task, loss in losses.items():
            before = self.all_losses.get(task)
            self.all_losses[task] = loss if before is None else before + loss

    def flags(self, num_tasks: int, device: torch.device) -> Tensor:  # [N] of uint8
        """Tells of which tasks a gradient was not finite."""
        flags = torch.zeros(num_tasks, dtype=torch.uint8, device=device)
        for task, failed in self.failed.items():
            flags[task] = failed.to(device)
        return flags

    def end(self) -> None:
        """Begins anew, with the gradients that are still kept apart."""
        self.handling = None
        self.averaged.clear()
        self.has_graph = False
        self.failed.clear()
        self.losses.clear()
        self.all_losses.clear()
        self.weighed.clear()

    def forget(self) -> None:
        """Begins anew without them."""
        self.seal.forget()
        self.buffer.clear()
        self.end()

    def state_dict(self, parameters: Sequence[Tensor]) -> dict[str, Any]:
        """Gives what decides where gradients will lie, and so how their sums are rounded."""
        places = {parameter: place for place, parameter in enumerate(parameters)}
        in_rows, num_rows = self.buffer.layout()
        state: dict[str, Any] = {
            "in_rows": [places[parameter] for parameter in in_rows if parameter in places],
            "num_rows": num_rows,
        }
        if isinstance(self.buffer, SketchBuffer):
            state["sketches"] = self.buffer.averages()
        return state

    def check_state(self, state: Mapping[str, Any], num_parameters: int) -> None:
        """Refuses a state that none can have, before anything is changed.

        Raises:
            TypeError, ValueError: with what was found.
        """
        check_places("state_dict: in_rows", state["in_rows"], num_parameters)
        check_integer("state_dict: num_rows", state["num_rows"], at_least=0)
        if state["num_rows"] > len(state["tasks"]):
            raise ValueError(
                f"state_dict: num_rows must be at most the {len(state['tasks'])} tasks, found "
                f"{state['num_rows']}; take another checkpoint"
            )
        for by_task in state.get("sketches", ()):
            check_places("state_dict: sketches", list(by_task), len(state["tasks"]))
            for kept in by_task.values():
                if not (isinstance(kept, Tensor) and kept.is_floating_point() and kept.ndim == 1):
                    raise TypeError(
                        "state_dict: sketches must be floating tensors in 1-d, found "
                        f"{type(kept).__name__}; take another checkpoint"
                    )

    def load_state_dict(self, state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Takes the state back."""
        in_rows = [parameters[place] for place in state["in_rows"]]
        if isinstance(self.buffer, SketchBuffer):
            self.buffer.restore(in_rows, state["num_rows"], state.get("sketches", ()))
        else:
            self.buffer.restore(in_rows, state["num_rows"])

    def check_closed(self, what: str) -> None:
        """Refuses a call inside a block.

        Raises:
            ValueError: with the call's name.
        """
        if self.is_open:
            raise ValueError(
                f"{what}: must not be called inside a task block; leave the block first"
            )

    def explain_second_order(
        self, error: RuntimeError, base: Optimizer, even_without_graph: bool
    ) -> None:
        """Says why a base optimizer that differentiates gradients cannot do so here.

        Args:
            error: what its step has raised.
            base: the optimizer.
            even_without_graph: whether to do so even where no gradient was made with
                ``create_graph=True``; a closure may have errors of its own.

        Raises:
            ValueError: for such an error; none for another.
        """
        is_about_graphs = re.search("not require grad|grad_fn|create_graph", str(error))
        if is_about_graphs and (self.has_graph or even_without_graph):
            raise ValueError(
                "base: must be an optimizer that needs no gradients of gradients, "
                f"{type(base).__name__} asks for them ({str(error).splitlines()[0]}); combined "
                "gradients have no graph: choose a first-order base"
            ) from error

    @contextmanager
    def all_or_nothing(
        self, parameters: Sequence[Tensor], tasks: Tasks, *, replace: bool = False
    ) -> Iterator[None]:
        """Undoes every change to gradients and tasks if the block fails.

        Args:
            parameters: all of the optimizer's.
            tasks: its tasks.
            replace: whether the block's gradients replace those from before it, of ``.grad`` and
                those kept apart; by default they are added.
        """
        names, handling, failed = list(tasks.names), self.handling, dict(self.failed)
        averaged, has_graph = set(self.averaged), self.has_graph
        losses, all_losses = dict(self.losses), dict(self.all_losses)
        weighed = set(self.weighed)
        self.seal.lift()
        outside = dot_grad.hide(parameters, self.buffer)
        before = self.buffer
        if before.slots:
            self.buffer = before.empty()
        if replace:
            self.seal.forget()
            self.end()
        self.seal.pause(True)
        try:
            yield
        except BaseException:
            self.seal.pause(False)
            tasks.restore(names)
            self.handling, self.failed = handling, failed
            self.averaged, self.has_graph, self.losses = averaged, has_graph, losses
            self.all_losses, self.weighed = all_losses, weighed
            if self.buffer is before:
                before.clear()
            self.buffer = before
            dot_grad.put(parameters, outside)
            self.seal.lay(before, handling)
            raise
        self.seal.pause(False)
        if self.buffer is not before:
            if replace:
                before.clear()
            self.buffer.move_into(before)
            self.buffer = before
        if replace:
            return
        for parameter, grad in outside.items():
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
