"""PCGrad: each gradient without what conflicts with another's; on the Gram matrix alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.methods.order import projection_order
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.plain import Matrix, lengths_of, on_host

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    if order.ndim == 2:
        usual = on_host(gram, lambda matrix: _coefficients_of(matrix, order.tolist()))
        if usual is not None:
            return usual
    num_tasks = gram.shape[-1]
    one_order = order.ndim == 2 or all(stride == 0 for stride in order.stride()[:-2])
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
    removed = torch.empty_like(conflicts)
    parts = removed.unsqueeze(-1).unbind(-2)  # [..., T, 1] each: what each visit removes
    if one_order and 0 < gram.numel() * num_tasks <= _MOST_AT_ONCE:
        # Columns in the order of the visits: one operation less for each visit, which is 0.7 of the
        # time for 12 tasks and 0.8 for 40; for 50 moving T³ numbers costs more.
        common = order[(0,) * (order.ndim - 2)]
        rows = turned.index_select(-2, common.flatten()).view(*batch, num_tasks)
        rows = rows.gather(-1, order.unsqueeze(-2).expand(rows.shape))
        state = conflicts.gather(-1, order)
        visited = state.unsqueeze(-1).unbind(-2)
        for visit, row, part in zip(visited, rows.unbind(-2), parts, strict=True):
            torch.clamp_min(visit, 0, out=part)
            state.addcmul_(part, row)
    else:
        for visit, part in zip(order.unsqueeze(-1).unbind(-2), parts, strict=True):
            torch.gather(conflicts, -1, visit, out=part)
            conflicts.addcmul_(part.clamp_min_(0), turned.gather(-2, visit.expand(batch)))
    # A gradient that is not finite makes every coefficient NaN: no finite part of a wrong update.
    poison = 0 * gram.sum((-2, -1), keepdim=True)
    coefficients = torch.eye(num_tasks, dtype=gram.dtype, device=gram.device) + poison
    return coefficients.scatter_add_(-1, order, removed)


def _coefficients_of(gram: Matrix, order: list[list[int]]) -> Matrix | None:
    if lengths_of(gram) is None:
        return None
    squared = [row[i] for i, row in enumerate(gram)]
    # turned[i][j] = -G_ij / G_jj: above zero where the two conflict, and then the step to take.
    turned = [[-number / of for number, of in zip(row, squared, strict=True)] for row in gram]
    if not math.isfinite(sum(map(sum, turned))):
        return None
    found = []
    for i, visits in enumerate(order):
        conflicts = turned[i]
        mixed = [0.0] * len(gram)
        mixed[i] = 1.0
        for j in visits:
            removed = conflicts[j]
            if removed > 0 and j != i:
                mixed[j] += removed
                steps = zip(conflicts, turned[j], strict=True)
                conflicts = [number + removed * step for number, step in steps]
        found.append(mixed)
    return found


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


class PCGradMethod(Method):
    """Projects in the random orders of each step."""

    def weights(self, seen: Seen) -> Tensor:  # [S, T, T]
        assert seen.gram is not None
        order = projection_order(len(seen.tasks), seen.seed, seen.step)
        if seen.fused:
            from gradsurgery.kernels.fused.projection import project

            return project(seen.gram, order)
        return pcgrad_coefficients(seen.gram, order)


class PCGrad(MultiTaskOptimizer):
    r"""Projects each task's gradient onto the normal plane of those it conflicts with.

    For every task i, over the other tasks j in random order:

    .. math::
        g_i^{PC} \leftarrow g_i^{PC}
        - \frac{\min(0,\; g_i^{PC} \cdot g_j)}{\lVert g_j \rVert^2} g_j, \qquad u = \sum_i g_i^{PC}

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`, such as ``tasks``, ``reduction``, ``scope``
            (``"all"`` projects task-specific parameters as well, as older implementations do;
            heads then weaken the projection of the trunk), ``every`` and ``seed``, of the orders.

    Raises:
        TypeError: ``base`` is not an optimizer, or a whole number is not one.
        ValueError: ``base`` has no parameters, or an option is out of its range.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
        >>> for name, inputs in {"a": torch.ones(3, 2), "b": torch.zeros(3, 2)}.items():
        ...     with optimizer.task(name):
        ...         model(inputs).sum().backward()
        >>> optimizer.step()
        >>> optimizer.diagnostics.weights.tolist()
        [1.0, 1.0]

    Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, PCGradMethod(), **options)


_MOST_AT_ONCE = 1 << 16  # numbers
