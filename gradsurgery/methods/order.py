"""PCGrad as a function of the Gram matrix: pure, batched, and never read by the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor


def pcgrad_coefficients(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Tensor:  # [..., T, T]
    r"""How much of every original gradient each task's projected gradient holds.

    Task :math:`i` starts from its own gradient and visits the others in its order. Where the
    projected gradient :math:`\sum_m C_{im} g_m` conflicts with the *original* :math:`g_j`, the
    component along :math:`g_j` is removed:

    .. math::
        C_{ij} \leftarrow C_{ij} - \frac{\min(0, \sum_m C_{im} G_{mj})}{G_{jj}}, \qquad j \ne i

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        order: row ``i`` lists the tasks in the order in which task ``i`` visits them,
            ``[..., T, T]`` integers; a task's visit to itself is skipped.

    Returns:
        Coefficients ``[..., T, T]``, row ``i`` for the projected gradient of task ``i``.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
        >>> pcgrad_coefficients(gram, torch.tensor([[1, 0], [0, 1]])).tolist()
        [[1.0, 0.5], [1.0, 1.0]]

    Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1.
    """
    num_tasks = gram.shape[-1]
    batch = torch.broadcast_shapes(gram.shape, order.shape)
    gram, order = gram.expand(batch), order.expand(batch)
    # Everything in units of what a visit divides by, and turned: what is above zero conflicts. A
    # gradient that is zero conflicts with nobody, and nobody conflicts with itself.
    norms = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    turned = torch.where(norms == 0, 0, gram / -norms)
    # Not infinite where one gradient is beyond all measure larger than another: 0 times that is 0.
    turned.clamp_(torch.finfo(gram.dtype).min, torch.finfo(gram.dtype).max)
    conflicts = turned.clone()
    conflicts.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    visits = order.unsqueeze(-1).unbind(-2)  # [..., T, 1] each: whom each task visits now
    removed = torch.empty_like(conflicts)
    rows = _rows_of_visits(turned, order)
    for visit, row, part in zip(visits, rows, removed.unsqueeze(-1).unbind(-2), strict=True):
        torch.gather(conflicts, -1, visit, out=part)
        conflicts.addcmul_(part.clamp_min_(0), row)
    # A gradient that is not finite makes every coefficient NaN: no finite part of a wrong update.
    poison = 0 * gram.sum((-2, -1), keepdim=True)
    coefficients = torch.eye(num_tasks, dtype=gram.dtype, device=gram.device) + poison
    return coefficients.scatter_add_(-1, order, removed)


def pcgrad_weights(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Tensor:  # [..., T]
    r"""Weights that turn the tasks' original gradients into PCGrad's update.

    .. math:: w_j = \sum_i C_{ij}

    with :math:`C` from :func:`pcgrad_coefficients`. Every weight is at least 1, and exactly 1 for a
    task that nobody conflicts with.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        order: row ``i`` lists the tasks in the order in which task ``i`` visits them,
            ``[..., T, T]`` integers.

    Returns:
        Weights ``[..., T]`` of the sum; divide by T for the mean.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> weights = pcgrad_weights(gram, projection_order(2, seed=0, step=0))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [2.2222, 1.5789]

    Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1.
    """
    return pcgrad_coefficients(gram, order).sum(-2)


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
    if isinstance(step, Tensor):
        device = step.device if device is None else device
        step = step.to(device, torch.int64)
    key: int | Tensor = 0  # of the host's numbers as long as there are no others
    for part in (seed, seed >> 32, step, step >> 32):
        key = _mix(key, part)
    cells = torch.arange(num_tasks * num_tasks, dtype=torch.int64, device=device)
    keys = cast("Tensor", _mix(key, cells)).view(num_tasks, num_tasks)
    return keys.argsort(dim=-1, stable=True)


_MOST_AT_ONCE = 1 << 20  # numbers


def _rows_of_visits(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Iterable[Tensor]:  # [..., T, T] each
    """For every visit the rows of ``gram`` of those whom the tasks visit."""
    num_tasks = gram.shape[-1]
    one_order = order.ndim == 2 or all(stride == 0 for stride in order.stride()[:-2])
    if one_order and 0 < gram.numel() * num_tasks <= _MOST_AT_ONCE:
        common = order[(0,) * (order.ndim - 2)]
        rows: Tensor = gram.index_select(-2, common.T.flatten())
        shape = (*gram.shape[:-2], num_tasks, num_tasks, num_tasks)
        return rows.view(shape).unbind(-3)
    return (gram.gather(-2, visit.expand(gram.shape)) for visit in order.unsqueeze(-1).unbind(-2))


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
