"""What an optimizer with task blocks must do, in float64 loops over plain autograd.

Nothing here is the library's but `projection_order`. The gradients of every task are taken with
`torch.autograd.grad` and added up in float64, each complex number as two real ones; Algorithm 1 is
the oracle's; the step is that of a bare optimizer over the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradsurgery import projection_order
from tests.oracle import project

Grads = dict[str, np.ndarray]  # by a parameter's name, flat and real

# How much smaller than another a gradient may be: below, what rounding leaves of it may point
# anywhere, and a projection onto it too.
LEAST_RATIO = {torch.float64: 1e-6, torch.float32: 3e-3, torch.bfloat16: 0.1}


class Unclear(Exception):  # noqa: N818, no error: the program decides nothing
    """Rounding decides what this program does."""


def real(tensor: Tensor) -> np.ndarray:  # [P], or [2P] of a complex one
    """Copies a tensor's numbers to flat float64."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.to(torch.float64).reshape(-1).numpy().copy()


def as_grad(values: np.ndarray, parameter: Tensor) -> Tensor:
    """Gives flat float64 numbers the shape and type of a parameter."""
    flat = torch.from_numpy(values.copy())
    if parameter.is_complex():
        flat = torch.view_as_complex(flat.view(-1, 2))
    return flat.view(parameter.shape).to(parameter.dtype)


@dataclass
class Options:
    """The options of the optimizer, as far as they change the numbers."""

    method: str = "pcgrad"
    task_weights: Mapping[Hashable, float] = field(default_factory=dict)
    declared: Sequence[Hashable] | None = None
    reduction: str = "sum"
    scope: str = "shared"
    granularity: str = "model"
    shared: frozenset[str] | None = None
    seed: int = 0
    every: int = 1
    start_step: int = 0
    on_nonfinite: str = "propagate"
    monitor: bool = False


class PlainLoops:
    """Runs what a program asks of the optimizer.

    Args:
        model: the parameters, which are changed.
        base: makes the bare optimizer of a model.
        options: those of the wrapper.
        narrowest: the narrowest type that any gradient is kept in.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Callable[[nn.Module], torch.optim.Optimizer],
        options: Options,
        narrowest: torch.dtype,
    ) -> None:
        self.options = options
        self.narrowest = narrowest
        self.names: list[Hashable] = list(options.declared or ())
        self.num_steps = 0
        self.pending: dict[int, Grads] = {}
        self.handling: str | None = None
        self.failed = False
        self.stepped = True  # the last step had a gradient
        self.last: dict[tuple[int, str], float] = {}
        self.scale = 1e-3  # the largest norm of a task's gradient so far
        self.gram: np.ndarray | None = None
        self.weights: np.ndarray | None = None
        self.watched: dict[str, list[str]] = {}
        self.group_grams: dict[str, np.ndarray] = {}
        self.use(model, base)

    def use(self, model: nn.Module, base: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        """Takes another model of the same parameters, and makes its optimizer."""
        self.model = model
        self.base = base(model)
        self.parameters = dict(model.named_parameters())
        name_of = {parameter: name for name, parameter in self.parameters.items()}
        self.groups = [[name_of[p] for p in group["params"]] for group in self.base.param_groups]
        self.held = [name for group in self.groups for name in group]

    # Gradients

    def grads_of(self, loss: Tensor) -> Grads:
        """Differentiates one loss by every parameter that it reaches."""
        held = [self.parameters[name] for name in self.held]
        found = torch.autograd.grad(loss, held, retain_graph=True, allow_unused=True)
        return {
            name: real(grad)
            for name, grad in zip(self.held, found, strict=True)
            if grad is not None
        }

    def add_to_grad(self, grads: Grads) -> None:
        for name, values in grads.items():
            parameter = self.parameters[name]
            grad = as_grad(values, parameter)
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    def outside(self, loss: Tensor) -> None:
        """A backward outside every block."""
        self.add_to_grad(self.grads_of(loss))

    def number(self, name: Hashable) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    # Blocks

    def begin(self) -> str:
        """Decides what becomes of the gradients of the step, when its first block begins."""
        if self.handling is None:
            self.handling = self.chosen_handling()
        return self.handling

    def chosen_handling(self) -> str:
        options = self.options
        if options.method == "loss sum":
            return "weighted" if options.monitor or options.on_nonfinite != "propagate" else "plain"
        if options.method == "weighted sum":
            return "weighted"
        if options.method == "pcgrad":
            since = self.num_steps - options.start_step
            if since < 0:
                return "plain" if options.on_nonfinite == "propagate" else "weighted"
            return "apart" if since % options.every == 0 or not self.last else "weighted"
        return "apart"

    def block(self, name: Hashable, losses: Sequence[Tensor]) -> None:
        """One task block with a backward for each of its losses."""
        handling = self.begin()
        total: Grads = {}
        for loss in losses:
            for key, values in self.grads_of(loss).items():
                total[key] = total[key] + values if key in total else values
        task = self.number(name)
        if not total:
            return
        self.look(total)
        size = np.sqrt(sum((values**2).sum() for values in total.values()))
        self.scale = max(self.scale, size) if np.isfinite(size) else self.scale
        if size > 1e4 and np.isfinite(size):
            raise Unclear
        declared = self.options.shared
        alone = {} if declared is None else {k: v for k, v in total.items() if k not in declared}
        if handling == "apart":
            self.add_to_grad(alone)
        if handling == "apart" or self.options.monitor:
            total = total if handling != "apart" else {k: total[k] for k in total if k not in alone}
            into = self.pending.setdefault(task, {})
            for key, values in total.items():
                into[key] = into[key] + values if key in into else values
        if handling != "apart":
            self.add_to_grad({key: self.weight(task, key) * v for key, v in total.items()})

    def look(self, grads: Grads) -> None:
        choice = self.options.on_nonfinite
        if all(np.isfinite(values).all() for values in grads.values()):
            return
        if choice == "raise":
            raise FloatingPointError
        if choice == "skip_step":
            self.failed = True
        if choice == "skip_task":
            for key, values in grads.items():
                grads[key] = np.zeros_like(values)

    def weight(self, task: int, parameter: str) -> float:
        """Weight of a task's loss on a parameter, in a step without surgery."""
        if self.options.method == "weighted sum":
            return self.options.task_weights[self.names[task]]
        if self.handling == "plain" or self.num_steps < self.options.start_step:
            return 1.0
        return self.last.get((task, parameter), 1.0)

    def backward(self, losses: Mapping[Hashable, Tensor]) -> None:
        before = self.names[:], {t: dict(g) for t, g in self.pending.items()}, self.handling
        grads = {name: p.grad for name, p in self.parameters.items()}
        failed = self.failed
        try:
            for name, loss in losses.items():
                self.block(name, [loss])
        except FloatingPointError:
            self.names, self.pending, self.handling = before
            self.failed = failed
            for name, grad in grads.items():
                self.parameters[name].grad = grad
            raise
        self.surgery()

    def feature_backward(
        self,
        losses: Mapping[Hashable, Tensor],
        features: Sequence[Tensor],
        leaves: Sequence[Tensor],
    ) -> None:
        """Surgery on features.

        Args:
            losses: made of ``leaves``, in place of the features.
            features: made of the parameters.
            leaves: their copies without a graph.
        """
        names, handling = self.names[:], self.handling
        plain = self.begin() == "plain"
        tasks = sorted((self.number(name), loss) for name, loss in losses.items())
        rows, beyond = [], []
        for task, loss in tasks:
            found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            of_features = np.concatenate(
                [
                    np.zeros(leaf.numel()) if grad is None else real(grad)
                    for leaf, grad in zip(leaves, found, strict=True)
                ]
            )
            grads = {"": of_features, **self.grads_of(loss)}
            try:
                self.look(grads)
            except FloatingPointError:
                self.names, self.handling = names, handling
                raise
            rows.append(grads.pop(""))
            if self.options.method == "weighted sum":
                weight = self.options.task_weights[self.names[task]]
                grads = {key: weight * values for key, values in grads.items()}
            beyond.append(grads)
        matrix = np.stack(rows)
        self.check_sizes(matrix)
        of_tasks = [task for task, _ in tasks]
        weights = np.ones(len(rows)) if plain else self.weigh(matrix, of_tasks)
        if not plain:
            self.gram, self.weights = matrix @ matrix.T, weights
            self.group_grams = {}
            if self.options.reduction == "mean":
                weights = weights / len(rows)
        update = weights @ matrix
        sizes = [leaf.numel() for leaf in leaves]
        parts = np.split(update, np.cumsum(sizes)[:-1])
        upstream = [as_grad(part, leaf) for part, leaf in zip(parts, leaves, strict=True)]
        held = [self.parameters[name] for name in self.held]
        below = torch.autograd.grad(features, held, upstream, retain_graph=True, allow_unused=True)
        self.scale = max(
            [self.scale, *(float(np.abs(r).max()) for r in rows if np.isfinite(r).all())]
        )
        for name, grad in zip(self.held, below, strict=True):
            if grad is not None:
                self.add_to_grad({name: real(grad)})
        for grads in beyond:
            self.add_to_grad(grads)

    # Surgery

    def surgery(self) -> None:
        """Makes one gradient of the tasks' and adds it to ``.grad``."""
        pending, self.pending = self.pending, {}
        if not any(pending.values()):
            return
        options = self.options
        tasks = sorted(pending)
        reached_by = {
            key: [task for task in tasks if key in pending[task]]
            for key in self.held
            if any(key in grads for grads in pending.values())
        }
        shared = [key for key, by in reached_by.items() if len(by) > 1]
        if options.shared is not None:
            shared = [key for key in shared if key in options.shared]
        together = list(reached_by) if options.scope == "all" else shared
        if options.granularity == "model":
            units = [together]
        elif options.granularity == "group":
            units = [[key for key in group if key in together] for group in self.groups]
        else:
            units = [[key] for key in together]
        grams, weights_of = [], {}
        for unit in units:
            rows = self.rows(pending, tasks, unit)
            self.check_sizes(rows)
            is_asked = together or options.method == "weighted sum"  # not where nothing is shared
            weights = self.weigh(rows, tasks) if is_asked else np.ones(len(tasks))
            grams.append(rows @ rows.T)
            weights_of.update(dict.fromkeys(unit, weights))
            self.weights = weights if len(units) == 1 else None
        self.gram = sum(grams) if grams else None
        self.group_grams = {}
        for group, keys in self.watched.items():
            rows = self.rows(pending, tasks, [key for key in keys if key in shared])
            self.group_grams[group] = rows @ rows.T
        if self.handling != "apart":
            return
        self.last = {} if options.every > 1 else self.last
        for key, by in reached_by.items():
            factors = weights_of.get(key, np.ones(len(tasks)))
            if options.reduction == "mean" and key in shared:
                factors = factors / len(tasks)
            update = sum(factors[tasks.index(task)] * pending[task][key] for task in by)
            mixed = factors if len(by) > 1 else factors[tasks.index(by[0])]
            if key in weights_of and not np.isfinite(mixed).all():
                update = np.full_like(update, np.nan)
            self.add_to_grad({key: update})
            if options.every > 1:
                for place, task in enumerate(tasks):
                    self.last[task, key] = factors[place] if key in weights_of else 1.0
        if options.every > 1:
            self.last.setdefault((-1, ""), 1.0)  # there was a surgery

    def rows(self, pending: Mapping[int, Grads], tasks: Sequence[int], keys: Sequence[str]) -> Any:
        """The tasks' gradients of some parameters, zero where there are none: ``[T, P]``."""
        empty: list[np.ndarray] = [np.zeros(0)]
        return np.stack(
            [
                np.concatenate(
                    empty
                    + [
                        pending[task].get(key, np.zeros(real(self.parameters[key]).size))
                        for key in keys
                    ]
                )
                for task in tasks
            ]
        )

    def check_sizes(self, rows: np.ndarray) -> None:  # [T, P]
        """Gives up where one gradient is so small that rounding decides its direction."""
        with np.errstate(invalid="ignore", over="ignore"):
            sizes = np.sqrt((rows**2).sum(1))
        if np.isfinite(sizes).all() and (sizes > 0).any():
            positive = sizes[sizes > 0]
            limit = LEAST_RATIO[self.narrowest]
            if positive.min() < limit * max(positive.max(), self.scale * limit):
                raise Unclear

    def weigh(self, rows: np.ndarray, tasks: Sequence[int]) -> np.ndarray:  # [T]
        """The weights ``[T]`` of the tasks' gradients ``[T, P]``."""
        options = self.options
        if options.method == "loss sum":
            return np.ones(len(rows))
        if options.method == "weighted sum":
            return np.array([options.task_weights[self.names[task]] for task in tasks])
        if options.method == "equal norms":
            with np.errstate(divide="ignore"):
                return 1 / np.sqrt(1e-3 + (rows**2).sum(1))
        if not np.isfinite(rows).all():
            return np.full(len(rows), np.nan)
        order = projection_order(len(rows), options.seed, self.num_steps).tolist()
        weights = np.zeros(len(rows))
        for task in range(len(rows)):
            weights = weights + project(rows, task, order[task])[1]
        return weights

    # The rest of an optimizer

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.pending, self.handling, self.failed = {}, None, False
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.stepped = True
        if self.failed:
            self.zero_grad()
            return
        self.surgery()
        counts = self.handling is not None
        self.stepped = any(self.parameters[name].grad is not None for name in self.held)
        if closure is None:
            self.base.step()
        else:
            evaluate = closure

            def with_surgery() -> Any:
                nonlocal counts
                loss = evaluate()
                self.surgery()
                counts |= self.handling is not None
                return loss

            self.base.step(with_surgery)
        self.num_steps += counts
        self.handling = None
