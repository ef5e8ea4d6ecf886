"""Numbers of the tasks that a method learns, by Adam and gradients in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradsurgery.method import Seen
from gradsurgery.methods.by_task import ByTask

_BETAS, _EPS = (0.9, 0.999), 1e-8


class Learned:
    """Learns a number for each of N tasks by Adam; tasks that are absent keep theirs.

    Each task has averages and a count of its own, so that for tasks that are never absent this is
    ``torch.optim.Adam``.

    Args:
        lr: learning rate.
        weight_decay: how much of the number is added to its gradient.

    Raises:
        ValueError: one of them is negative or not finite.

    Example:
        >>> learned = Learned(lr=0.1)
        >>> seen = Seen(None, torch.ones(2), (0, 2), ("a", "b", "c"), seed=0, step=0)
        >>> _ = learned.get(seen)
        >>> learned.descend(seen, torch.tensor([[3.0, -2.0]], dtype=torch.float64))
        >>> [round(number, 6) for number in learned.all.tolist()]
        [-0.1, 0.0, 0.1]
    """

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = check_number("lr", lr, at_least=0)
        self.weight_decay = check_number("weight_decay", weight_decay, at_least=0)
        self._kept = {name: ByTask(0.0) for name in ("value", "mean", "mean_square", "num_steps")}

    @property
    def all(self) -> Tensor | None:  # [N]
        """The numbers of all tasks, once there are any."""
        values = self._kept["value"].all
        return None if values is None else values[0]

    def get(self, seen: Seen) -> Tensor:  # [1, T]
        """Gives the numbers of the tasks that take part."""
        return self._kept["value"].get(seen, like=zeros(seen))

    def descend(self, seen: Seen, gradient: Tensor) -> None:  # [1, T]
        """Takes a step of Adam for every task whose gradient is finite."""
        like = zeros(seen)
        value, mean, square, count = (kept.get(seen, like) for kept in self._kept.values())
        is_finite = gradient.isfinite()
        gradient = gradient + self.weight_decay * value
        new_mean = mean.lerp(gradient, 1 - _BETAS[0])
        new_square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square()
        new_count = count + 1
        slope = new_mean / (1 - _BETAS[0] ** new_count)
        size = (new_square / (1 - _BETAS[1] ** new_count)).sqrt() + _EPS
        moved = (value - self.lr * slope / size, new_mean, new_square, new_count)
        olds = (value, mean, square, count)
        for kept, new, old in zip(self._kept.values(), moved, olds, strict=True):
            kept.set(seen, torch.where(is_finite, new, old))

    def state_dict(self) -> dict[str, Tensor | None]:
        return {name: kept.saved() for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, kept in self._kept.items():
            kept.restore(state[name])


def zeros(seen: Seen) -> Tensor:  # [1, T]
    """Makes a zero for each task that takes part, where its numbers are to lie and of their type:
    float64 where the device has it."""
    if seen.losses is not None:
        device = seen.losses.device
    else:
        device = seen.step.device if isinstance(seen.step, Tensor) else torch.device("cpu")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(1, len(seen.tasks), dtype=dtype, device=device)


def losses_of(seen: Seen) -> Tensor:  # [1, T]
    """Gives the losses as exactly as numbers of the tasks are kept."""
    assert seen.losses is not None
    return seen.losses[None].to(zeros(seen))


def given_by_name(argument: str, given: Mapping[Any, float], seen: Seen) -> Tensor:  # [1, T]
    """Gives numbers that a user gave by the names of the tasks, for those that take part.

    Raises:
        ValueError: there is none for one of them.
    """
    names = [seen.names[task] for task in seen.tasks]
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"{argument}: must have a number for each task, found none for {missing}; add them"
        )
    # Filled one by one: a list would have to travel to the device in every step.
    like = zeros(seen)
    return torch.stack([like.new_full((1,), given[name]) for name in names], -1)


def check_given(argument: str, given: Mapping[Any, float] | None) -> dict[Any, float] | None:
    """Refuses numbers that are not finite or not by name.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument}: must be a mapping of task names to numbers, got {type(given).__name__}"
        )
    return {name: check_number(f"{argument}: {name!r}", value) for name, value in given.items()}


def check_number(argument: str, found: Any, at_least: float | None = None) -> float:
    """Refuses what is not a finite number, or is too small; returns it as a ``float``.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise TypeError(f"{argument}: must be a number, got {type(found).__name__}")
    if not math.isfinite(found) or (at_least is not None and found < at_least):
        least = "" if at_least is None else f" and at least {at_least}"
        raise ValueError(f"{argument}: must be finite{least}, got {found}")
    return float(found)
