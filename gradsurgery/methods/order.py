"""Random orders and numbers as a function of a seed and a step alone, on every device alike."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradsurgery.hashing import drawn, key_of


def projection_order(
    num_tasks: int,
    seed: int,
    step: int | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:  # [T, T]
    """The random order in which each task visits the others, as a function of seed and step alone.

    Equal arguments give equal orders on every device and process, no global random state is read
    or changed, and a ``step`` that lives on the device is not read by the host, so a captured CUDA
    graph draws a new order at every replay.

    Args:
        num_tasks: T.
        seed: any integer.
        step: number of optimizer steps done, an integer or a 0-d integer tensor.
        device: where the order is wanted; that of ``step`` when it is a tensor.

    Returns:
        ``[T, T]`` integers; row ``i`` is a permutation of ``0..T-1``.

    Raises:
        ValueError: ``num_tasks`` below 1.

    Example:
        >>> order = projection_order(4, seed=7, step=3)
        >>> order.sort(dim=-1).values[0].tolist()
        [0, 1, 2, 3]
        >>> bool((order == projection_order(4, seed=7, step=torch.tensor(3))).all())
        True
    """
    if num_tasks < 1:
        raise ValueError(f"num_tasks: must be at least 1, got {num_tasks}")
    if isinstance(step, int) and num_tasks <= _MOST_ON_HOST and str(device or "cpu") == "cpu":
        return torch.tensor(_orders(num_tasks, seed, step // _AHEAD)[step % _AHEAD], device=device)
    return _order(num_tasks, *key_of(seed, step, device))


@lru_cache(maxsize=8)
def _orders(num_tasks: int, seed: int, place: int) -> list[list[list[int]]]:  # [_AHEAD, T, T]
    """Draws the orders of several steps at once."""
    steps = place * _AHEAD + torch.arange(_AHEAD, device="cpu")
    found: list[list[list[int]]]
    found = _order(num_tasks, *key_of(seed, steps.unsqueeze(-1), None)).tolist()
    return found


def _order(
    num_tasks: int, key: int | Tensor, device: torch.device | str | None
) -> Tensor:  # [..., T, T]
    keys = drawn(num_tasks * num_tasks, key, device)
    return keys.view(*keys.shape[:-1], num_tasks, num_tasks).argsort(dim=-1, stable=True)


def standard_normals(
    number: int, seed: int, step: int | Tensor, device: torch.device | str | None = None
) -> Tensor:  # [number]
    """Draws from the standard normal distribution, as a function of seed and step alone.

    Like :func:`projection_order` in all else; the first numbers are the same however many there
    are.

    Returns:
        ``[number]``, in float64 where the device has it.

    Example:
        >>> bool((standard_normals(3, 7, 1)[:2] == standard_normals(2, 7, 1)).all())
        True
    """
    pairs = drawn(2 * number, *key_of(seed, step, device)).view(number, 2)
    dtype = torch.float32 if pairs.device.type == "mps" else torch.float64
    radius, angle = ((pairs.to(dtype) + 0.5) / 2**32).unbind(-1)  # between 0 and 1, never at either
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


# On the host orders of few tasks are drawn for many steps at once: 7 µs a step for three tasks and
# 25 for ten, where one by one they take 14 and 35, of the 1,000 of a step of a small network.
_MOST_ON_HOST = 10  # tasks
_AHEAD = 64  # steps
