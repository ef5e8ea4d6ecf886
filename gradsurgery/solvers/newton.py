"""The bargaining equation of Nash-MTL and FairGrad, by Newton's method."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import solve, times

_NUM_STEPS = 11  # where nothing is read, and a last one
_NEAREST = 1e-4  # to the end of a logistic scale: what bounds those steps
_MOST_STEPS = 200
_NEARLY = 1e-5  # change of a number, after which one more step and the last are exact
_LONGEST = 2.3  # change of a logarithm in the last step
_LARGEST_GROWTH = 9.0  # of a number in one step: to ten times itself, or to a tenth


def bargain(
    matrix: Tensor,  # [..., T, T]
    log_target: Tensor,  # [..., T]
    power: float,
    *,
    ridge: float = 0.0,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Solves a symmetric system with a power of the unknown on its right.

    .. math:: (C v)_i = b_i\, v_i^{-p}, \qquad v > 0

    It is the condition for the minimum of the convex function
    :math:`\tfrac12 v^\top C v - \sum_i b_i v_i^{1-p} / (1-p)`, so there is exactly one solution.
    Newton's steps, each multiplicative: no number grows or shrinks more than ten times in one. The
    last one is on C without the ridge, which biased the solution where C is nearly singular.

    Args:
        matrix: positive definite, ``[..., T, T]``.
        log_target: log b, ``[..., T]``; a logarithm, because b may span any range.
        power: p, above 0.
        ridge: what was added to the diagonal of C to make it definite.
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
        return _by_few(matrix, log_target, power, ridge)
    # b's common factor goes to the result, so that v begins around 1.
    common = log_target.mean(-1, keepdim=True)
    log_target = log_target - common
    v = ((log_target - matrix.clamp_min(0).sum(-1).log()) / (1 + power)).exp()
    is_last = False
    for _ in range(_MOST_STEPS):
        target = (log_target - power * v.log()).exp() if power != 1 else log_target.exp() / v
        jacobian = matrix + torch.diag_embed(power * target / v)
        left = target - times(matrix, v)
        change = solve(jacobian, left + ridge * v if is_last else left) / v
        # 1 + d upwards and 1 / (1 - d) downwards agree to first order with Newton's step.
        growth = 1 + change.abs().clamp_max(_LARGEST_GROWTH)
        v = torch.where(change > 0, v * growth, v / growth)
        if is_last:
            break
        is_last = not (change.abs() > _NEARLY).any()
    return v.log() + common / (1 + power)


def _by_few(matrix: Tensor, log_target: Tensor, power: float, ridge: float) -> Tensor:
    """Newton's steps in few operations, on the unknown's logarithm and B = p b v^(1-p) together.

    In units of v it is (V C V + B) t = B, where t = p / (1 + p) solves the equation. For one
    number, t says how far it is off: by log((1 - t) p / t) / (1 + p), which is taken for every one;
    to first order that is Newton's step. The last one has a residual, for its accuracy.
    """
    eye, slopes = _constants(matrix.shape[-1], power, matrix.dtype, matrix.device)
    start = log_target / (1 + power)
    logs = torch.stack((start, 2 * start + math.log(power)), -2)  # of v and B, [..., 2, T]
    for step in range(_NUM_STEPS + 1):
        v, pull = logs.exp().unbind(-2)
        # Each step leaves out -log(p) times the slopes, so V C V / B lacks a factor 1 / p.
        part = power**-step
        scaled = matrix * v.unsqueeze(-1)
        pulled = eye * pull.unsqueeze(-1)
        system = torch.addcmul(pulled, scaled, v.unsqueeze(-2), value=part)
        factor = torch.linalg.cholesky_ex(system).L
        if step < _NUM_STEPS:
            t = torch.cholesky_solve(pull.unsqueeze(-1), factor).mT
            logs = torch.addcmul(logs, slopes, t.logit(_NEAREST))
    over = torch.sub(system.sum(-1), pull, alpha=(1 + power) / power)
    over = torch.addcmul(over, v, v, value=-ridge * part)
    over = torch.cholesky_solve(over.unsqueeze(-1), factor).squeeze(-1)
    log_v = logs[..., 0, :] - over.clamp(-_LONGEST, _LONGEST)
    return log_v - _NUM_STEPS * math.log(power) / (1 + power)


@lru_cache
def _constants(
    size: int, power: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:  # [T, T], [2, 1]
    """The identity, and what logarithms of v and B change by; made once for each device, because a
    captured CUDA graph cannot."""
    slopes = [[1 / (1 + power)], [(1 - power) / (1 + power)]]
    eye = torch.eye(size, dtype=dtype, device=device)
    return eye, torch.tensor(slopes, dtype=dtype, device=device)
