"""Random orders and numbers as a function of a seed and a step alone, on every device alike."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor


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
    key, device = _key(seed, step, device)
    return _order(num_tasks, key, device)


@lru_cache(maxsize=8)
def _orders(num_tasks: int, seed: int, place: int) -> list[list[list[int]]]:  # [_AHEAD, T, T]
    """Draws the orders of several steps at once."""
    steps = place * _AHEAD + torch.arange(_AHEAD, device="cpu")
    key, device = _key(seed, steps.unsqueeze(-1), None)
    found: list[list[list[int]]] = _order(num_tasks, key, device).tolist()
    return found


def _order(
    num_tasks: int, key: int | Tensor, device: torch.device | str | None
) -> Tensor:  # [..., T, T]
    keys = _random(num_tasks * num_tasks, key, device)
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
    pairs = _random(2 * number, *_key(seed, step, device)).view(number, 2)
    dtype = torch.float32 if pairs.device.type == "mps" else torch.float64
    radius, angle = ((pairs.to(dtype) + 0.5) / 2**32).unbind(-1)  # between 0 and 1, never at either
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _key(
    seed: int, step: int | Tensor, device: torch.device | str | None
) -> tuple[int | Tensor, torch.device | str | None]:
    """Mixes seed and step into one number, and tells the device that it is wanted on."""
    if isinstance(step, Tensor):
        device = step.device if device is None else device
        step = step.to(device, torch.int64)
    key: int | Tensor = 0  # of the host's numbers as long as there are no others
    for part in (seed, seed >> 32, step, step >> 32):
        key = _mix(key, part)
    return key, device


def _random(
    number: int, key: int | Tensor, device: torch.device | str | None
) -> Tensor:  # [number]
    """Draws 32-bit integers."""
    cells = torch.arange(number, dtype=torch.int64, device=device)
    return cast("Tensor", _mix(key, cells))


# On the host orders of few tasks are drawn for many steps at once: 7 µs a step for three tasks and
# 25 for ten, where one by one they take 14 and 35, of the 1,000 of a step of a small network.
_MOST_ON_HOST = 10  # tasks
_AHEAD = 64  # steps
_MASK = 0xFFFFFFFF
# Odd and below 2**27, so that its product with a 32-bit number never overflows a signed 64-bit one
# and the same bits come out of every device.
_MULTIPLIER = 0x45D9F3B


def _mix(key: int | Tensor, value: int | Tensor) -> int | Tensor:
    """A 32-bit number that depends on every bit of a 32-bit key and the low 32 of a value."""
    mixed = ((key ^ (value & _MASK)) + 0x9E3779B9) & _MASK
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * _MULTIPLIER) & _MASK
    return mixed ^ (mixed >> 16)
