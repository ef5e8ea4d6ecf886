"""Random orders and numbers as a function of a seed and a step alone, on every device alike."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from gradsurgery.hashing import drawn, key_of, mix


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
    key, device = key_of(seed, step, device)
    if isinstance(key, int) and num_tasks <= _MOST_ON_HOST and str(device or "cpu") == "cpu":
        rows = [range(task * num_tasks, (task + 1) * num_tasks) for task in range(num_tasks)]
        cells = [[cast("int", mix(key, cell)) for cell in row] for row in rows]
        order = [sorted(range(num_tasks), key=row.__getitem__) for row in cells]
        return torch.tensor(order, device=device)
    keys = drawn(num_tasks * num_tasks, key, device)
    return keys.view(num_tasks, num_tasks).argsort(dim=-1, stable=True)


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


_MOST_ON_HOST = 4  # a third of the time for three tasks, more for six
