"""The two losses, and where every method of the table goes from the same starts.

After the didactic landscape of Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020,
figure 1, with functions of our own: conflicting gradients, of very different lengths, in valleys so
narrow that the gradient turns around within a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Stage
from benchmarks.multitask_bert.training.optimizers import make_optimizer
from gradsurgery import Method, MultiTaskOptimizer

TASKS = ("first", "second")
HEIGHTS = (1.0, 6.0)  # the second task's gradients are six times as long
_BEND, _WIDTH, _LEAST = 0.6, 0.05, 0.05
STARTS = ((-1.4, 1.6), (1.5, 1.2), (1.0, -1.4))
# Where both losses are at their minimum: the valleys cross.
CROSSINGS = ((-math.pi, 0.0), (0.0, 0.0), (math.pi, 0.0))
LR = 0.02
NUM_STEPS = 250


def losses(point: Tensor) -> list[Tensor]:  # [2, ...] -> [...] each
    r"""Gives both losses at a point (x, y).

    .. math:: \ell_i = a_i \bigl(0.05 + \tfrac{1}{2} \log(1 + (y \mp 0.6 \sin x)^2 / 0.05^2)\bigr)

    Args:
        point: coordinates, ``[2, ...]``.

    Example:
        >>> [round(float(loss), 2) for loss in losses(torch.tensor([0.0, 0.0]))]
        [0.05, 0.3]
    """
    x, y = point
    valley = _BEND * torch.sin(x)
    return [
        height * (_LEAST + 0.5 * torch.log1p(((y - side * valley) / _WIDTH) ** 2))
        for height, side in zip(HEIGHTS, (1, -1), strict=True)
    ]


@dataclass(frozen=True)
class Trail:
    """Where a method went.

    Args:
        points: the start and the point after each step.
        losses: both, at its end.
    """

    points: Sequence[tuple[float, float]]
    losses: tuple[float, float]

    @property
    def distance(self) -> float:
        """How far its end is from the nearest crossing."""
        return min(math.dist(self.points[-1], crossing) for crossing in CROSSINGS)


def titles() -> Mapping[str, str]:
    """Every method of the table that trains: its name there, and its title."""
    return {name: method.title for name, method in METHODS.items() if name != "none"}


def wrapped(
    name: str, base: torch.optim.Optimizer, tasks: Sequence[str] = TASKS
) -> MultiTaskOptimizer:
    """Puts a method of the table, with the library's defaults, around an optimizer."""
    stage = Stage(method=name, monitored=False, reduction="sum", scope="shared")
    return make_optimizer(stage, base, tuple(tasks), seed=0)


def follow(name: str, start: tuple[float, float], num_steps: int = NUM_STEPS) -> Trail:
    """Trains the two coordinates with Adam, whose steps do not depend on an update's length."""
    point = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = wrapped(name, torch.optim.Adam([point], lr=LR))
    looks_twice = _look_again(type(optimizer.weighting)) is not _look_again(Method)
    points = [start]
    for _ in range(num_steps):
        optimizer.zero_grad()
        optimizer.backward(dict(zip(TASKS, losses(point), strict=True)))
        optimizer.step()
        if looks_twice:
            again = dict(zip(TASKS, losses(point.detach()), strict=True))
            optimizer.look_again(again)
        x, y = point.tolist()
        points.append((x, y))
    first, second = (float(loss) for loss in losses(point.detach()))
    return Trail(points, (first, second))


def _look_again(method: type) -> object:
    return getattr(method, "look_again", None)


# What a method makes of a few arrows.
ARROWS: Mapping[str, Sequence[tuple[float, float]]] = {
    "two": ((1.0, 0.15), (-0.9, 1.3)),
    "three": ((1.0, 0.1), (-0.9, 1.3), (-0.6, 0.25)),
}


def update_of(name: str, arrows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Gives the first step that a method makes of gradients at losses of 1."""
    point = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    tasks = [str(i) for i in range(len(arrows))]
    optimizer = wrapped(name, torch.optim.SGD([point], lr=1.0), tasks)
    values = 1 + torch.tensor(arrows, dtype=torch.float64) @ point
    optimizer.backward(dict(zip(tasks, values.unbind(), strict=True)))
    optimizer.step()
    x, y = (-point.detach()).tolist()
    return x, y
