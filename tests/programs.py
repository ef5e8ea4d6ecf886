"""Random training programs, run with the library and with float64 loops over plain autograd.

`python -m tests.programs --programs 20000` runs many, and prints the shortest one that it finds of
those that differ.
"""

from __future__ import annotations

import argparse
import copy
import io
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradsurgery
from gradsurgery.optimizer.awaited import Awaited
from tests.plain_loops import Options, PlainLoops, Unclear, real

# What programs may be made of. What is off here is never drawn.
FEATURES = {
    "absent tasks": True,
    "accumulation": True,  # over steps, without zero_grad()
    "buffer_dtype": True,
    "channels last": True,
    "closures": True,
    "complex": True,
    "conversions of dtype": True,
    "conversions of memory": True,
    "edits of .grad": True,
    "edits of .grad.data": True,
    "edits of .grad before surgery": True,  # and reading it there, which performs surgery
    "edits of weights": True,
    "embeddings": True,
    "empty parameters": True,
    "empty parameters, on_nonfinite": True,
    "every": True,
    "features": True,
    "features, around": True,  # with paths from losses to parameters that go around them
    "fused": True,
    "generators": True,
    "granularity": True,
    "kept gradients": True,
    "keeping base": True,  # a base optimizer that keeps .grad in its state
    "monitor": True,
    "names by numpy": True,
    "narrow types": True,
    "on_nonfinite": True,
    "outside": True,
    "pc_backward": True,
    "pending before closures": True,
    "pruning": True,
    "reduction": True,
    "reload": True,
    "samplers": True,
    "scope": True,
    "several blocks": True,
    "shared=": True,
    "stacked losses": True,
    "step without gradients": True,
    "tensor of losses": True,
    "tensors, none shared": True,  # granularity="tensor" in a step without a shared parameter
    "two groups": True,
    "watch": True,
}
WIDTH = 4  # of the representation
DATA = torch.randn(97, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.tensor([[0, 2, 2], [4, 1, 0], [3, 3, 3], [1, 2, 4]])
TOLERANCE = {  # relative to the largest gradient of a task
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    # Rows in bfloat16 round each sum to 8 bits, and one bit of a weight is 1/128 of it.
    torch.bfloat16: 0.1,
}
KINDS = ("vector", "matrix", "scalar", "empty", "complex", "conv", "embedding")
SHAPES = {
    "vector": (5,),
    "matrix": (3, WIDTH),
    "scalar": (),
    "empty": (0, WIDTH),
    "complex": (4,),
    "conv": (WIDTH, 2, 2, 2),
    "embedding": (5, WIDTH),
}

Action = tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """A model, an optimizer, and what a training loop does with them.

    Args:
        trunk: kind and type of each parameter below the representation.
        heads: type of each head's parameter.
        head_of: the head of each task, ``None`` for none; tasks may have one in common.
        names: of the tasks.
        base: the optimizer inside, one of ``BASES``.
        method: one of ``METHODS``.
        options: of the method.
        num_groups: of parameters.
        actions: in order; the methods of ``Run`` with their arguments.
    """

    trunk: tuple[tuple[str, torch.dtype], ...]
    heads: tuple[torch.dtype, ...]
    head_of: tuple[int | None, ...]
    names: tuple[Hashable, ...]
    base: str
    method: str
    options: Mapping[str, Any]
    num_groups: int
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        lines = [
            f"trunk    {', '.join(f'{kind}: {dtype}' for kind, dtype in self.trunk)}",
            f"heads    {list(self.heads)}; of the tasks {list(self.head_of)}",
            f"tasks    {list(self.names)}",
            f"method   {self.method}, {dict(self.options)}",
            f"base     {self.base}, {self.num_groups} group(s)",
            *(
                f"{place:4d}     {action_as_text(action)}"
                for place, action in enumerate(self.actions)
            ),
        ]
        return "\n".join(lines)

    @property
    def narrowest(self) -> torch.dtype:
        """The narrowest type that a gradient is ever kept in."""
        given = [*(dtype for _, dtype in self.trunk), *self.heads, self.options.get("buffer_dtype")]
        given += [action[1] for action in self.actions if action[0] == "convert"]
        for dtype in (torch.bfloat16, torch.float32):
            if dtype in given or (dtype == torch.float32 and torch.complex64 in given):
                return dtype
        return torch.float64


def action_as_text(action: Action) -> str:
    name, *arguments = action
    return f"{name}({', '.join(map(repr, arguments))})"


# The model


class Model(nn.Module):
    """A trunk of parameters of all kinds, heads, and a parameter that nobody reaches."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.trunk = nn.ParameterList()
        for place, (kind, dtype) in enumerate(program.trunk):
            numbers = data(place, 11)
            if kind == "complex":
                numbers = torch.complex(numbers, data(place, 12))
            count = int(np.prod(SHAPES[kind]))
            values = (
                0.5 * numbers[:count] if count <= 24 else torch.cat([numbers, -numbers])[:count]
            )
            values = values.reshape(SHAPES[kind]).to(dtype)
            self.trunk.append(nn.Parameter(values.clone()))
        self.heads = nn.ParameterList(
            nn.Parameter(data(place, 17)[:WIDTH].to(dtype, copy=True))
            for place, dtype in enumerate(program.heads)
        )
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def below(self, batch: int, reached: Sequence[int]) -> Tensor:  # [WIDTH]
        """What the trunk makes of a batch, before the last nonlinearity."""
        total = data(batch, 3)[:WIDTH]
        for place in reached:
            kind, parameter = self.program.trunk[place][0], self.trunk[place]
            total = total + _contribution(kind, parameter, batch + 5 * place)
        return total

    def loss(self, task: int, features: Tensor, batch: int) -> Tensor:  # []
        """A task's loss as a function of the representation, and of its head."""
        direction, target = data(task, batch)[:WIDTH], data(batch, task)[5]
        head = self.program.head_of[task]
        # Large beside what the heads have in common, so that tasks conflict.
        found = 2 * features @ direction
        if head is not None:
            found = found + 0.3 * (features @ self.heads[head].double() - target).square()
        return found


def data(first: int, second: int) -> Tensor:  # [24]
    return DATA[(first * 29 + second * 13 + 7) % len(DATA)]


def _contribution(kind: str, parameter: Tensor, batch: int) -> Tensor:  # [WIDTH]
    numbers = data(batch, 5)
    if kind == "scalar":
        return parameter.double() * numbers[:WIDTH]
    if kind == "complex":
        matrix = torch.complex(numbers[:4], data(batch, 6)[:4])
        product = parameter.to(torch.complex128) * matrix
        return product.real + 0.3 * product.imag.square()
    wide = parameter.double()
    if kind == "vector":
        length = wide.numel()
        return (
            DATA[: WIDTH * length].view(-1)[: WIDTH * length].view(WIDTH, length).roll(batch, 0)
            @ wide
            / 2
        )
    if kind == "matrix":
        return numbers[:3] @ wide
    if kind == "empty":
        return wide.sum(0)
    if kind == "conv":
        images = numbers[:18].view(1, 2, 3, 3)
        return nn.functional.conv2d(images, wide).mean((0, 2, 3))
    return nn.functional.embedding(IDS[batch % len(IDS)], wide).sum(0)


# Base optimizers


class Keeping(torch.optim.Optimizer):
    """Steps along ``2 g_t - g_(t-1)``, and keeps the last gradient without a copy."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    last = self.state[parameter].get("last", parameter.grad)
                    parameter.add_(2 * parameter.grad - last, alpha=-group["lr"])
                    self.state[parameter]["last"] = parameter.grad


class Ascending(torch.optim.Optimizer):
    """Uses ``.grad``, then the gradient where that leads to, as SAM does."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        moved = [(p, 0.05 * p.grad) for p in parameters if p.grad is not None]
        for parameter, change in moved:
            parameter.add_(change)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for parameter, change in moved:
            parameter.sub_(change)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


# Adam's epsilon is large: what rounding leaves of a gradient must not become a step of full length.
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02, eps=1e-2),
    "adamw foreach": lambda groups: torch.optim.AdamW(groups, lr=0.02, eps=1e-2, foreach=True),
    "keeping": lambda groups: Keeping(groups, lr=0.05),
    "ascending": lambda groups: Ascending(groups, lr=0.05),
    "lbfgs": lambda groups: torch.optim.LBFGS(groups, lr=0.05, max_iter=2, history_size=2),
}


def parameter_groups(model: Model) -> list[dict[str, Any]]:
    """The parameters in one group, or every second one in a group of its own."""
    parameters = list(model.parameters())
    if model.program.num_groups == 1:
        return [{"params": parameters}]
    return [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.03}]


def equal_norms(gram: Tensor) -> Tensor:  # [T, T] -> [T]
    return 1 / (1e-3 + gram.diagonal()).sqrt()


METHODS: dict[str, Callable[..., gradsurgery.MultiTaskOptimizer]] = {
    "pcgrad": gradsurgery.PCGrad,
    "loss sum": gradsurgery.LossSum,
    "weighted sum": gradsurgery.WeightedSum,
    "equal norms": lambda base, **options: gradsurgery.MultiTaskOptimizer(
        base, equal_norms, **options
    ),
}


# A run


class Difference(AssertionError):  # noqa: N818, what is found is no error of the test
    """The library does something else than the loops."""


class Run:
    """Runs a program with both, and compares them after every action.

    Each action is a method; what it is given is all that it depends on.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = Model(program)
        options = dict(program.options)
        declared = options.get("tasks")
        task_weights = options.get("weights", {})
        if not isinstance(task_weights, Mapping):
            task_weights = dict(zip(program.names, task_weights, strict=True))
        shared = options.get("shared")
        self.reference = PlainLoops(
            Model(program),
            self.bare,
            Options(
                method=program.method,
                task_weights=task_weights,
                declared=list(task_weights) if task_weights and declared is None else declared,
                shared=None if shared is None else frozenset(shared),
                **{
                    key: value
                    for key, value in options.items()
                    if key not in ("tasks", "weights", "shared", "buffer_dtype", "fused")
                },
            ),
            program.narrowest,
        )
        self.optimizer = self.wrapped(self.model)
        self.tolerance = TOLERANCE[program.narrowest]
        self.kept: list[tuple[str, Tensor]] = []
        self.released: list[tuple[str, Tensor, Tensor]] = []
        self.sampler: gradsurgery.TaskSampler | None = None
        self.draws: Iterator[str] | None = None
        self.right_draws: Iterator[str] | None = None

    def bare(self, model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, Model)
        return BASES[self.program.base](parameter_groups(model))

    def wrapped(self, model: Model, **changed: Any) -> gradsurgery.MultiTaskOptimizer:
        options = {**self.program.options, **changed}
        if "shared" in options:
            named = dict(model.named_parameters())
            options["shared"] = [named[name] for name in options["shared"]]
        if self.program.method in ("pcgrad", "equal norms"):
            options["warn"] = False  # steps of one task are meant
        return METHODS[self.program.method](self.bare(model), **options)

    @np.errstate(invalid="ignore", over="ignore")
    def run(self) -> None:
        for place, (name, *arguments) in enumerate(self.program.actions):
            try:
                getattr(self, name)(*arguments)
                self.compare()
            except (Unclear, Difference):
                raise
            except Exception as error:
                if isinstance(error, StopIteration) and not FEATURES["tensors, none shared"]:
                    raise Unclear from error
                raise Difference(
                    f"action {place}, {name}: {type(error).__name__}: {error}\n{self.program}"
                ) from error

    # Losses

    def losses(
        self, model: Model, tasks: Sequence[int], batch: int, reached: Sequence[int]
    ) -> dict[int, Tensor]:
        """Losses that share a graph."""
        features = model.below(batch, reached).tanh()
        return {task: model.loss(task, features, batch) for task in tasks}

    def both(self, ours: Callable[[], None], right: Callable[[], None]) -> None:
        """Does the same with both, which may both refuse a gradient that is not finite."""
        refused = [False, False]
        for place, act in enumerate((ours, right)):
            try:
                act()
            except FloatingPointError:
                refused[place] = True
        if refused[0] != refused[1]:
            raise Difference(f"FloatingPointError: {refused}\n{self.program}")

    # Actions

    def block(
        self, task: int, batch: int, reached: tuple[int, ...], times: int, poison: float
    ) -> None:
        """A block of a task with examples of its own."""

        def losses(model: Model) -> list[Tensor]:
            return [
                poison * self.losses(model, [task], batch + k, reached)[task] for k in range(times)
            ]

        name = self.program.names[task]

        def ours() -> None:
            with self.optimizer.task(name):
                for loss in losses(self.model):
                    loss.backward()

        self.both(ours, lambda: self.reference.block(name, losses(self.reference.model)))

    def blocks(self, tasks: tuple[int, ...], batch: int, reached: tuple[int, ...]) -> None:
        """Blocks of several tasks over one forward."""
        for task, loss in self.losses(self.model, tasks, batch, reached).items():
            with self.optimizer.task(self.program.names[task]):
                loss.backward(retain_graph=True)
        for task, loss in self.losses(self.reference.model, tasks, batch, reached).items():
            self.reference.block(self.program.names[task], [loss])

    def outside(self, task: int, batch: int, reached: tuple[int, ...]) -> None:
        """A backward outside every block."""
        self.losses(self.model, [task], batch, reached)[task].backward()
        self.reference.outside(self.losses(self.reference.model, [task], batch, reached)[task])

    def backward(
        self,
        form: str,
        tasks: tuple[int, ...],
        batch: int,
        reached: tuple[int, ...],
        poisoned: int | None = None,
        poison: float = 1.0,
    ) -> None:
        self._backward("backward", form, tasks, batch, reached, poisoned, poison)

    def pc_backward(
        self, form: str, tasks: tuple[int, ...], batch: int, reached: tuple[int, ...]
    ) -> None:
        self.reference.zero_grad()
        self._backward("pc_backward", form, tasks, batch, reached)

    def _backward(
        self,
        method: str,
        form: str,
        tasks: Sequence[int],
        batch: int,
        reached: Sequence[int],
        poisoned: int | None = None,
        poison: float = 1.0,
    ) -> None:
        names = self.program.names

        def poisonous(losses: dict[int, Tensor]) -> dict[int, Tensor]:
            return {t: poison * loss if t == poisoned else loss for t, loss in losses.items()}

        def ours() -> None:
            if form in ("generator", "pairs"):
                given: Any = (
                    loss if form == "generator" else (names[t], loss)
                    for task in tasks
                    for t, loss in poisonous(
                        self.losses(self.model, [task], batch, reached)
                    ).items()
                )
            else:
                losses = poisonous(self.losses(self.model, tasks, batch, reached))
                given = in_form(form, losses, names)
            getattr(self.optimizer, method)(given)

        def right() -> None:
            losses = poisonous(self.losses(self.reference.model, tasks, batch, reached))
            self.reference.backward({names[t]: loss for t, loss in losses.items()})

        self.both(ours, right)

    def feature_backward(
        self, kind: str, tasks: tuple[int, ...], batch: int, reached: tuple[int, ...]
    ) -> None:
        """Surgery on the representation, or on part of it."""
        names = self.program.names

        def made(model: Model, replace: bool) -> tuple[dict[Hashable, Tensor], Any, Any]:
            below = model.below(batch, reached)
            whole = below.tanh()
            parts = list(whole.chunk(2)) if kind in ("both parts", "one part") else [whole]
            features = parts[:1] if kind == "one part" else parts
            leaves = [f.detach().requires_grad_() if replace else f for f in features]
            seen = torch.cat([*leaves, *parts[len(leaves) :]])
            if kind == "skip":
                seen = seen + below
            losses = {names[task]: model.loss(task, seen, batch) for task in tasks}
            if kind == "penalty":
                for name in losses:
                    first = model.trunk[reached[0]]
                    losses[name] = losses[name] + 0.1 * first.abs().square().sum().double()
            return losses, features, leaves

        losses, features, _ = made(self.model, False)
        given = [features[0], features[0]] if kind == "twice" else features
        try:
            self.optimizer.feature_backward(losses, given[0] if len(given) == 1 else given)
        except ValueError as error:
            around = kind in ("skip", "penalty", "one part", "twice")
            if not (around and "backward()" in str(error)):
                raise
            return  # that nothing has changed is compared
        self.reference.feature_backward(*made(self.reference.model, True))

    def draw(self, number: int, batch: int, reached: tuple[int, ...]) -> None:
        """Blocks of tasks that a sampler chooses."""
        if self.sampler is None:
            self.new_sampler()
        for place in range(number):
            assert self.draws is not None
            assert self.right_draws is not None
            task, right = next(self.draws, None), next(self.right_draws, None)
            if task != right:
                raise Difference(f"the sampler drew {task}, not {right}\n{self.program}")
            if task is None:
                return
            self.block(int(task), batch + place, reached, 1, 1.0)

    def new_sampler(self) -> gradsurgery.TaskSampler:
        sizes = {str(task): task + 2 for task in range(len(self.program.names))}
        kinds = [gradsurgery.Proportional, gradsurgery.RoundRobin, gradsurgery.Sequential]
        made = [kinds[self.program.num_groups](sizes) for _ in range(2)]
        self.sampler = made[0]
        if self.right_draws is None:
            self.right_draws = iter(made[1])
        self.draws = iter(made[0])
        return made[0]

    def surgery(self) -> None:
        self.optimizer.surgery()
        self.reference.surgery()

    def step(self) -> None:
        self.reference.step()
        if not (FEATURES["step without gradients"] or self.reference.stepped):
            raise Unclear
        self.optimizer.step()

    def step_with_closure(self, actions: tuple[Action, ...]) -> None:
        """A step whose closure does what the actions say."""
        with_zero_grad = self.program.base != "ascending"
        at = self.reference.num_steps

        def closure(run: Any) -> float:
            if with_zero_grad:
                (self.optimizer if run is self else self.reference).zero_grad()
            for name, *arguments in actions:
                getattr(Half(self, run is self), name)(*arguments)
            return 1.0

        self.optimizer.step(lambda: closure(self))
        self.reference.step(lambda: closure(None))
        assert self.reference.num_steps == at + 1

    def zero_grad(self, set_to_none: bool) -> None:
        # From here on nobody but their holders has the gradients.
        if set_to_none:
            self.released += [(name, grad, grad.clone()) for name, grad in self.kept]
        self.kept.clear()
        self.optimizer.zero_grad(set_to_none)
        self.reference.zero_grad(set_to_none)

    def keep(self) -> None:
        """Holds on to the gradients that there are."""
        named = self.model.named_parameters()
        self.kept = [
            (name, p.grad)
            for name, p in named
            # A step that is left out forgets what awaits surgery.
            if not (p.grad is None or (self.reference.failed and isinstance(p.grad, Awaited)))
        ]

    def edit(self, how: str, place: int) -> None:
        """Changes gradients, or reads them; where they are kept apart surgery comes first."""
        ours, right = dict(self.model.named_parameters()), self.reference.parameters
        named = [name for name, parameter in ours.items() if parameter.grad is not None]
        if not named:
            return
        name = named[place % len(named)]
        is_awaited = isinstance(ours[name].grad, Awaited)
        if is_awaited and how in ("drop", "replace unread"):
            for grads in self.reference.pending.values():
                grads.pop(name, None)
            if not any(self.reference.pending.values()):
                self.reference.pending.clear()
        elif is_awaited or (
            how in ("clip", "read") and any(isinstance(p.grad, Awaited) for p in ours.values())
        ):
            self.reference.surgery()
        if how == "clip":
            norms = [
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                for model in (self.model, self.reference.model)
            ]
            self.check("total norm", *norms)
            return
        if how == "read":
            norms = [
                torch.stack([p.grad.abs().sum().double() for p in given if p.grad is not None])
                for given in (ours.values(), right.values())
            ]
            self.check("norms", *norms, scale=100 * self.reference.scale)
            return
        for parameter in (ours[name], right[name]):
            grad = parameter.grad
            if how == "drop":
                parameter.grad = None
            elif how == "replace unread":
                parameter.grad = torch.ones_like(parameter)
            else:
                assert grad is not None
                edit(grad, parameter, how)

    def edit_weights(self, how: str, place: int) -> None:
        for model in (self.model, self.reference.model):
            parameters = list(model.parameters())
            parameter = parameters[place % len(parameters)]
            if how == "in place":
                with torch.no_grad():
                    parameter.mul_(0.9)
            else:
                parameter.data = parameter.data * 0.9

    def convert(self, dtype: torch.dtype) -> None:
        for model in (self.model, self.reference.model):
            model.to(dtype)

    def reorder(self, memory_format: torch.memory_format) -> None:
        for model in (self.model, self.reference.model):
            model.to(memory_format=memory_format)

    def prune(self) -> None:
        """Makes every vector one number shorter."""
        for model in (self.model, self.reference.model):
            for (kind, _), parameter in zip(self.program.trunk, model.trunk, strict=True):
                if kind == "vector" and len(parameter) > 2:
                    parameter.data = parameter.data[:-1].clone()

    def reload(self) -> None:
        """Goes on with a new model and optimizer from a checkpoint."""
        saved = io.BytesIO()
        sampler = None if self.sampler is None else self.sampler.state_dict()
        torch.save({"optimizer": self.optimizer.state_dict(), "sampler": sampler}, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=True)
        self.model = copied(self.model)
        changed = {"seed": 999} if "seed" in self.program.options else {}
        self.optimizer = self.wrapped(self.model, **changed)
        self.optimizer.load_state_dict(loaded["optimizer"])
        if sampler is not None:
            self.new_sampler().load_state_dict(loaded["sampler"])
        reference = self.reference
        state = copy.deepcopy(reference.base.state_dict())
        reference.use(copied(reference.model), self.bare)
        reference.base.load_state_dict(state)
        reference.pending, reference.handling, reference.failed = {}, None, False
        reference.gram = reference.weights = None
        reference.watched, reference.group_grams = {}, {}
        self.kept.clear()

    def watch(self, names: tuple[str, ...]) -> None:
        named = dict(self.model.named_parameters())
        self.optimizer.watch({"group": [named[name] for name in names]})
        self.reference.watched = {"group": list(names)}

    # Comparison

    def compare(self) -> None:
        reference = self.reference
        right = reference.parameters
        for name, parameter in self.model.named_parameters():
            awaits = reference.handling == "apart" and any(
                name in grads for grads in reference.pending.values()
            )
            if awaits != isinstance(parameter.grad, Awaited):
                raise Difference(f"{name}.grad: {type(parameter.grad)}\n{self.program}")
            if awaits:
                form = parameter.grad.shape, parameter.grad.dtype
                if form != (parameter.shape, parameter.dtype):
                    raise Difference(f"{name}.grad: {form}\n{self.program}")
            else:
                self.check(f"{name}.grad", parameter.grad, right[name].grad, reference.scale)
            self.check(name, parameter, right[name], 10.0 if self.program.base == "lbfgs" else 1.0)
        for name, grad, before in self.released:
            if not torch.equal(grad.nan_to_num(1.25), before.nan_to_num(1.25)):
                raise Difference(f"{name}.grad, kept, has changed\n{self.program}")
        diagnostics = self.optimizer.diagnostics
        if reference.gram is not None and not np.isfinite(reference.gram).all():
            # Which of its entries are infinite, and which NaN, depends on the order of the sums.
            if diagnostics.gram.isfinite().all():
                raise Difference(f"gram: finite\n{self.program}")
        elif reference.gram is not None:
            found = diagnostics.gram
            self.check("gram", found, torch.from_numpy(reference.gram), reference.scale**2)
            if reference.weights is not None:
                self.check(
                    "weights", diagnostics.weights, torch.from_numpy(reference.weights), 10.0
                )
            for place, gram in enumerate(reference.group_grams.values()):
                found = diagnostics.group_grams[place]
                self.check("group gram", found, torch.from_numpy(gram), reference.scale**2)
        reference.gram = None

    def check(
        self, what: str, found: Tensor | None, right: Tensor | None, scale: float = 1.0
    ) -> None:
        if found is None or right is None:
            if found is not right:
                raise Difference(f"{what}: {found}, not {right}\n{self.program}")
            return
        a, b = real(found), real(right)
        if found.shape != right.shape:
            raise Difference(f"{what}: {tuple(found.shape)}, not {tuple(right.shape)}")
        if what.endswith("grad") and found.dtype != right.dtype:
            raise Difference(f"{what}: {found.dtype}, not {right.dtype}\n{self.program}")
        finite = np.isfinite(b)
        allowed = self.tolerance * (scale + np.abs(b[finite]))
        if (np.isfinite(a) != finite).any() or (np.abs(a - b)[finite] > allowed).any():
            raise Difference(f"{what}: {found}, not {right}\n{self.program}")


def edit(grad: Tensor, parameter: Tensor, how: str) -> None:
    if how == "mul_":
        grad.mul_(0.5)
    elif how == "zero first":
        grad[(slice(1),) * grad.ndim] = 0  # one number, whatever the memory order
    elif how == "replace":
        parameter.grad = grad * 0.5
    elif how == "data":
        grad.data = grad.data * 0.5
    elif how == "same data":
        grad.data = grad.data.clone()


class Half:
    """Actions of one of the two only, for their closures."""

    def __init__(self, run: Run, ours: bool) -> None:
        self.run, self.ours = run, ours

    def block(
        self, task: int, batch: int, reached: tuple[int, ...], times: int, poison: float
    ) -> None:
        run, name = self.run, self.run.program.names[task]
        model = run.model if self.ours else run.reference.model
        losses = [run.losses(model, [task], batch + k, reached)[task] for k in range(times)]
        if not self.ours:
            run.reference.block(name, losses)
            return
        with run.optimizer.task(name):
            for loss in losses:
                loss.backward()

    def backward(
        self, form: str, tasks: tuple[int, ...], batch: int, reached: tuple[int, ...]
    ) -> None:
        run = self.run
        names = run.program.names
        model = run.model if self.ours else run.reference.model
        losses = run.losses(model, tasks, batch, reached)
        if self.ours:
            run.optimizer.backward(in_form(form, losses, names))
        else:
            run.reference.backward({names[t]: loss for t, loss in losses.items()})


def in_form(form: str, losses: Mapping[int, Tensor], names: Sequence[Hashable]) -> Any:
    """Losses of a shared graph as `backward` may be given them."""
    given = list(losses.values())
    if form == "mapping":
        return {names[task]: loss for task, loss in losses.items()}
    if form == "tensor":
        return torch.stack(given)
    if form == "unbound":
        return torch.stack(given).unbind()
    if form == "assigned":
        out = torch.zeros(len(given), dtype=torch.float64)
        for place, loss in enumerate(given):
            out[place] = loss
        return list(out)
    return given


def copied(model: Model) -> Model:
    new = Model(model.program)
    for into, parameter in zip(new.parameters(), model.parameters(), strict=True):
        into.data = parameter.detach().clone()
    return new


# Drawing


@st.composite
def programs(draw: Any, features: Mapping[str, bool] = FEATURES) -> Program:
    """Draws a program of the features that are on."""
    return Drawing(draw, features).program()


class Drawing:
    """One drawing of a program."""

    def __init__(self, draw: Any, features: Mapping[str, bool]) -> None:
        self._draw = draw
        self.features = features

    def one_of(self, *choices: Any) -> Any:
        return choices[self._draw(st.integers(0, len(choices) - 1))]

    def chance(self, feature: str, times: int = 3) -> bool:
        """Once in so many times, where a feature is on."""
        return self.features[feature] and self._draw(st.integers(0, times - 1)) == times - 1

    def some(self, choices: Sequence[int]) -> tuple[int, ...]:
        """One or more of the choices, mostly all."""
        if self._draw(st.integers(0, 2)) < 2:
            return tuple(choices)
        bits = self._draw(st.integers(1, 2 ** len(choices) - 1))
        return tuple(choice for place, choice in enumerate(choices) if bits >> place & 1)

    def program(self) -> Program:
        on = self.features
        on_nonfinite = (
            self.one_of("raise", "skip_task", "skip_step", "propagate")
            if self.chance("on_nonfinite")
            else "propagate"
        )
        wide, wide_complex = torch.float64, torch.complex128
        types = [wide]
        if self.chance("narrow types"):
            types = self.one_of([torch.float32], [wide, torch.float32], [torch.bfloat16])
        kinds = ["vector", "matrix", "scalar"]
        kinds += ["embedding"] if on["embeddings"] else []
        kinds += ["conv"]
        may_be_empty = on_nonfinite == "propagate" or on["empty parameters, on_nonfinite"]
        kinds += ["empty"] if on["empty parameters"] and may_be_empty else []
        kinds += ["complex"] if on["complex"] and torch.bfloat16 not in types else []
        trunk = []
        for _ in range(self.one_of(2, 1, 3, 4)):
            kind, dtype = self.one_of(*kinds), self.one_of(*types)
            if kind == "complex":
                dtype = wide_complex if dtype == wide else torch.complex64
            trunk.append((kind, dtype))
        num_tasks = self.one_of(3, 2, 4, 4, 1)
        heads = tuple(self.one_of(*types) for _ in range(self.one_of(2, 1, 3)))
        head_of = tuple(self.one_of(*range(len(heads)), None) for _ in range(num_tasks))
        self.num_tasks = num_tasks
        self.tasks = range(num_tasks)
        self.places = range(len(trunk))
        self.on_nonfinite = on_nonfinite
        names = self.draw_names()
        self.by_number = names == tuple(range(num_tasks))
        method = self.one_of(
            "pcgrad", "pcgrad", "pcgrad", "equal norms", "loss sum", "weighted sum"
        )
        options = self.draw_options(method, names)
        bases = ["sgd", "momentum", "adam", "adamw foreach"]
        bases += ["keeping"] if on["keeping base"] else []
        if on["closures"] and on_nonfinite in ("propagate", "skip_task"):
            bases += ["ascending"] if on["pending before closures"] else []
            bases += ["lbfgs"] if types == [wide] else []
        self.base = base = self.one_of(*bases)
        self.types = types
        num_groups = 2 if base != "lbfgs" and self.chance("two groups") else 1
        actions = self.draw_actions(method, trunk, len(heads))
        if options.get("shared") is not None:
            options["shared"] = tuple(f"trunk.{place}" for place in self.some(self.places))
        return Program(
            tuple(trunk), heads, head_of, names, base, method, options, num_groups, tuple(actions)
        )

    def draw_names(self) -> tuple[Hashable, ...]:
        kinds: list[tuple[Hashable, ...]] = [(0, 1, 2, 3), ("a", "b", "c", "d"), (7, "7", "x", -1)]
        if self.features["names by numpy"]:
            kinds += [tuple(np.arange(3, 7)), tuple(np.array(["u", "v", "w", "z"]))]
        return self.one_of(*kinds)[: self.num_tasks]

    def draw_options(self, method: str, names: tuple[Hashable, ...]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        self.declared = self.on_nonfinite == "raise" or self.one_of(True, False)
        if method == "weighted sum":
            weights = [self.one_of(1.0, 0.5, 2.0, 0.0) for _ in names]
            options["weights"] = (
                weights if self.declared else dict(zip(names, weights, strict=True))
            )
            if self.declared:
                options["tasks"] = list(names)
            self.declared = True
        elif self.declared:
            options["tasks"] = list(names)
        if self.on_nonfinite != "propagate":
            options["on_nonfinite"] = self.on_nonfinite
        if self.chance("scope"):
            options["scope"] = "all"
        if self.chance("buffer_dtype", 5):
            options["buffer_dtype"] = self.one_of(torch.float64, torch.float32)
        if self.chance("fused", 2):
            options["fused"] = False
        if method in ("loss sum", "weighted sum"):
            if self.chance("monitor"):
                options["monitor"] = True
            return options
        if self.chance("reduction"):
            options["reduction"] = "mean"
        if self.chance("granularity"):
            options["granularity"] = self.one_of("group", "tensor")
        if "scope" not in options and self.chance("shared=", 5):
            options["shared"] = ()
        if method == "pcgrad":
            options["seed"] = self.one_of(0, 1, 12345, -3, 2**40 + 1)
            if self.chance("every"):
                options["every"] = self.one_of(2, 3)
            if self.chance("every", 5):
                options["start_step"] = self.one_of(1, 2)
        return options

    # Actions

    def draw_actions(
        self, method: str, trunk: Sequence[tuple[str, torch.dtype]], num_heads: int
    ) -> Iterator[Action]:
        for step in range(self.one_of(2, 3, 4, 1, 5)):
            by_closure = self.base in ("lbfgs", "ascending")
            if self.chance("watch", 8):
                named = [f"trunk.{place}" for place in self.some(self.places)]
                yield ("watch", (*named, "heads.0"))
            if step and not (self.chance("accumulation", 4) and self.base != "keeping"):
                yield ("zero_grad", self.base == "keeping" or self.one_of(True, True, False))
            if by_closure:
                # Whoever uses .grad before the closure must find one there.
                if self.base == "ascending" or self.chance("pending before closures"):
                    yield self.draw_work(step, in_closure=True)
                work = [self.draw_work(step, in_closure=True) for _ in range(self.one_of(1, 2))]
                yield ("step_with_closure", tuple(work))
            else:
                yield from self.draw_step(step, method)
            if self.chance("edits of weights", 10):
                yield ("edit_weights", self.one_of("in place", "data"), self.one_of(*range(4)))
            yield from self.draw_conversions(method)
            if self.chance("reload", 5):
                yield ("reload",)

    def draw_step(self, step: int, method: str) -> Iterator[Action]:
        if self.chance("step without gradients", 8):
            yield ("zero_grad", True)
            yield ("step",)
        poisoned = self.on_nonfinite == "propagate" and method in (
            "pcgrad",
            "loss sum",
            "weighted sum",
        )
        poisoned = poisoned and self.chance("on_nonfinite", 12)
        if poisoned:
            task = self.one_of(*self.tasks)
            yield ("block", task, step, tuple(self.places), 1, self.one_of(torch.inf, torch.nan))
        works = self.one_of(1, 2, 3, 4) if self.features["several blocks"] else 1
        for _ in range(works):
            yield self.draw_work(step)
            if not poisoned and self.chance("edits of .grad before surgery", 8):
                yield self.draw_edit()
        if poisoned:
            # What a GradScaler does: it sees the gradients and leaves the step out.
            yield ("surgery",)
            yield ("zero_grad", True)
            if self.features["every"]:
                yield ("block", 0, step, tuple(self.places), 1, 1.0)
                yield ("surgery",)
                yield ("zero_grad", True)
            return
        if self.one_of(False, True):
            yield ("surgery",)
            if self.chance("several blocks", 8):
                yield self.draw_work(step)
                yield ("surgery",)
        edits = self.features["edits of .grad"]
        if edits and self.one_of(False, False, True):
            yield self.draw_edit()
        if self.chance("kept gradients", 3):
            yield ("keep",)
        yield ("step",)
        if edits and self.one_of(*[False] * 5, True):
            yield self.draw_edit()

    def draw_edit(self) -> Action:
        hows = ["mul_", "zero first", "replace", "drop", "clip", "read", "replace unread"]
        hows += ["data", "same data"] if self.features["edits of .grad.data"] else []
        return ("edit", self.one_of(*hows), self.one_of(*range(5)))

    def draw_conversions(self, method: str) -> Iterator[Action]:
        if self.base != "lbfgs" and self.chance("conversions of memory", 5):
            yield ("reorder", self.one_of(torch.channels_last, torch.contiguous_format))
        if self.base == "sgd" and torch.bfloat16 not in self.types:
            if self.chance("conversions of dtype", 5):
                yield ("convert", self.one_of(torch.float64, torch.float32))
            if self.chance("pruning", 8):
                yield ("zero_grad", True)
                yield ("prune",)

    def draw_poison(self) -> float:
        """A factor of a loss, mostly 1."""
        if self.on_nonfinite == "propagate" or self.one_of(*[True] * 4, False):
            return 1.0
        return float(self.one_of(torch.inf, torch.nan))

    def draw_work(self, step: int, in_closure: bool = False) -> Action:
        """Something that makes gradients."""
        batch = 3 * step + self.one_of(0, 1, 2)
        reached = self.some(self.places)
        kinds = ["backward", "block", "blocks"]
        kinds += ["outside"] if self.features["outside"] else []
        kinds += ["feature_backward"] if self.features["features"] else []
        kinds += ["pc_backward"] if self.features["pc_backward"] else []
        kinds += ["draw"] if self.features["samplers"] else []
        kind = self.one_of("backward", "block") if in_closure else self.one_of(*kinds)
        some = self.some(self.tasks) if self.features["absent tasks"] else tuple(self.tasks)
        if kind == "block":
            poison = 1.0 if in_closure else self.draw_poison()
            return (kind, self.one_of(*self.tasks), batch, reached, self.one_of(1, 1, 2), poison)
        if kind == "blocks":
            return (kind, some[:: self.one_of(1, -1)], batch, reached)
        if kind == "outside":
            return (kind, self.one_of(*self.tasks), batch, reached)
        if kind == "draw":
            return (kind, self.one_of(2, 3, 1), batch, reached)
        if kind == "feature_backward":
            how = self.one_of("whole", "both parts")
            if self.chance("features, around", 2):
                how = self.one_of("skip", "penalty", "one part", "twice")
            return (kind, how, some, batch, reached)
        forms = ["mapping"]
        forms += ["pairs"] if self.features["generators"] and not in_closure else []
        if self.declared or self.by_number:
            # Losses without names are those of the first tasks, or of all that were declared.
            forms += ["list"]
            forms += ["unbound", "assigned"] if self.features["stacked losses"] else []
            forms += ["tensor"] if self.features["tensor of losses"] else []
            forms += ["generator"] if self.features["generators"] and not in_closure else []
        form = self.one_of(*forms)
        if form not in ("mapping", "pairs"):
            some = tuple(self.tasks)[: self.num_tasks if self.declared else len(some)]
        if kind == "backward" and not in_closure:
            return (kind, form, some, batch, reached, self.one_of(*some), self.draw_poison())
        return (kind, form, some, batch, reached)


# The long run


def run(program: Program) -> None:
    """Runs a program.

    Raises:
        Difference: with the program, where the library and the loops do not agree.
    """
    try:
        Run(program).run()
    except Unclear:
        assume(False)


def run_many(number: int, start: int) -> tuple[int, str | None]:
    """Runs programs until one differs; says how many were run, and the shortest that differs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    num_run = 0
    batch = 0
    while num_run < number:

        @seed(start * 1_000_003 + batch)
        @settings(
            max_examples=min(500, number - num_run),
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(programs())
        def some(program: Program) -> None:
            nonlocal num_run
            run(program)
            num_run += 1

        try:
            some()
        except Difference as difference:
            return num_run, str(difference)
        batch += 1
    return num_run, None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given_ = parser.parse_args(arguments)
    share = -(-given_.programs // given_.processes)
    tasks = [(share, given_.seed * given_.processes + place) for place in range(given_.processes)]
    began = time.perf_counter()
    if given_.processes == 1:
        results = [run_many(*tasks[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(given_.processes) as pool:
            results = pool.starmap(run_many, tasks)
    took = time.perf_counter() - began
    differences = [text for _, text in results if text is not None]
    print(
        f"{sum(number for number, _ in results)} programs in {took:.0f} s, "
        f"{len(differences)} difference(s)"
    )
    print("\n\n".join(differences), end="")
    return min(len(differences), 1)


if __name__ == "__main__":
    sys.exit(main())
