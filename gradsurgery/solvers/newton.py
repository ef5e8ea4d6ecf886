"""The bargaining equation of Nash-MTL and FairGrad, by Newton's method."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import solve, times

_NUM_STEPS = 12  # where nothing is read; 28 near stationarity
_MOST_STEPS = 200
_LARGEST_GROWTH = 9.0  # of a number in one step: to ten times itself, or to a tenth


def bargain(
    matrix: Tensor,  # [..., T, T]
    log_target: Tensor,  # [..., T]
    power: float,
    *,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Solves a symmetric system with a power of the unknown on its right.

    .. math:: (C v)_i = b_i\, v_i^{-p}, \qquad v > 0

    It is the condition for the minimum of the convex function
    :math:`\tfrac12 v^\top C v - \sum_i b_i v_i^{1-p} / (1-p)`, so there is exactly one solution.
    Newton's steps, each multiplicative: no number grows or shrinks more than ten times in one.

    Args:
        matrix: positive definite, ``[..., T, T]``.
        log_target: log b, ``[..., T]``; a logarithm, because b may span any range.
        power: p, above 0.
        fixed: whether to do a fixed amount of work; by default away from the CPU, where steps end
            when they change nothing.

    Returns:
        log v, ``[..., T]``.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
        >>> bargain(matrix, torch.zeros(2, dtype=torch.float64), power=1.0).exp().tolist()
        [1.0, 0.5]
    """
    fixed = matrix.device.type != "cpu" if fixed is None else fixed
    # b's common factor goes to the result, so that v begins around 1.
    common = log_target.mean(-1, keepdim=True)
    log_target = log_target - common
    v = ((log_target - matrix.clamp_min(0).sum(-1).log()) / (1 + power)).exp()
    for _ in range(_NUM_STEPS if fixed else _MOST_STEPS):
        target = (log_target - power * v.log()).exp() if power != 1 else log_target.exp() / v
        jacobian = matrix + torch.diag_embed(power * target / v)
        change = solve(jacobian, target - times(matrix, v)) / v
        # 1 + d upwards and 1 / (1 - d) downwards agree to first order with Newton's step.
        growth = 1 + change.abs().clamp_max(_LARGEST_GROWTH)
        v = torch.where(change > 0, v * growth, v / growth)
        if not fixed and not (change.abs() > 1e-14).any():
            break
    return v.log() + common / (1 + power)
