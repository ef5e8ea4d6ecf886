"""The bargaining equation of Nash-MTL and FairGrad, by Newton's method."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import solve, times

_NUM_STEPS = 8  # where nothing is read, and a last one; near stationarity 28 would be needed
_MOST_STEPS = 200
_LONGEST = 2.3  # change of a logarithm in one step
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
    if matrix.device.type != "cpu" if fixed is None else fixed:
        return _by_few(matrix, log_target, power)
    # b's common factor goes to the result, so that v begins around 1.
    common = log_target.mean(-1, keepdim=True)
    log_target = log_target - common
    v = ((log_target - matrix.clamp_min(0).sum(-1).log()) / (1 + power)).exp()
    for _ in range(_MOST_STEPS):
        target = (log_target - power * v.log()).exp() if power != 1 else log_target.exp() / v
        jacobian = matrix + torch.diag_embed(power * target / v)
        change = solve(jacobian, target - times(matrix, v)) / v
        # 1 + d upwards and 1 / (1 - d) downwards agree to first order with Newton's step.
        growth = 1 + change.abs().clamp_max(_LARGEST_GROWTH)
        v = torch.where(change > 0, v * growth, v / growth)
        if not (change.abs() > 1e-14).any():
            break
    return v.log() + common / (1 + power)


def _by_few(matrix: Tensor, log_target: Tensor, power: float) -> Tensor:
    """Newton's steps on log v in few operations: (C + p b v^(-p-1)) v' = (1 + p) b v^-p has no
    residual to compute. The last step has one, for its accuracy."""
    eye, minus = _constants(matrix.shape[-1], matrix.dtype, matrix.device)
    log_v = (log_target - matrix.clamp_min(0).sum(-1).log()) / (1 + power)
    target = log_target.exp()
    for step in range(_NUM_STEPS + 1):
        v = log_v.exp()
        pull = target / v if power == 1 else log_target.sub(log_v, alpha=power).exp()
        ratio = (pull / v).unsqueeze(-1)
        factor = torch.linalg.cholesky_ex(torch.addcmul(matrix, eye, ratio, value=power)).L
        if step < _NUM_STEPS:
            reached = torch.cholesky_solve(pull.unsqueeze(-1), factor).squeeze(-1)
            change = torch.addcdiv(minus, reached, v, value=1 + power)
            log_v = log_v.add(change.clamp(-_LONGEST, _LONGEST))
        else:
            left = (pull - times(matrix, v)).unsqueeze(-1)
            change = torch.cholesky_solve(left, factor).squeeze(-1) / v
            log_v = log_v.add(change.clamp(-_LONGEST, _LONGEST))
    return log_v


@lru_cache
def _constants(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The identity and -1, made once for each device, because a captured CUDA graph cannot."""
    eye = torch.eye(size, dtype=dtype, device=device)
    return eye, -torch.ones(1, dtype=dtype, device=device)
