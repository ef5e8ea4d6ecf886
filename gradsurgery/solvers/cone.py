"""CAGrad's problem: the best worst improvement within a ball around the mean gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import Cosines, times
from gradsurgery.solvers.nonneg import exchanged, masked, supports

_MOST_SUPPORTS = 4096
_MOST_ROUNDS = 100  # 2 to 7 are usual; 31 were seen for 40 tasks of very different lengths
_FIXED_ROUNDS = 40
_PATIENCE = 3
_TOLERANCE = 1e-13


def cone(
    found: Cosines,  # of T tasks
    linear: Tensor,  # [..., T]
    radius: Tensor,  # [..., 1]
    *,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Finds the point of a ball at which the least of the gradients' products is largest.

    .. math::
        \max_{\lVert v \rVert \le r} \min_i\; g_i \cdot v + m_i
        \quad\Leftrightarrow\quad v = \sum_i \frac{x_i}{d_i} g_i,\;
        x \ge 0,\; z = Cx + \frac{m - \nu}{d} \ge 0,\; x_i z_i = 0,\; x^\top C x = r^2

    in cosines C and lengths d. On a known support x is linear in the level :math:`\nu`, which is
    the larger root of a quadratic equation; so supports are exchanged until every sign is right, as
    in :func:`gradsurgery.solvers.nonneg.nonneg`, with the level of each support. Lengths enter the
    signs alone, so that gradients of very different lengths are no harder than others.

    Args:
        found: cosines and lengths; zero gradients are left out of the least.
        linear: m, ``[..., T]``.
        radius: r, above 0, ``[..., 1]``.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        x, ``[..., T]``, in units of the lengths.

    Example:
        >>> from gradsurgery.solvers.cosines import cosines
        >>> found = cosines(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64))
        >>> x = cone(found, torch.zeros(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        >>> [round(number, 4) for number in x.tolist()]
        [1.0, 1.0]
    """
    scaled = torch.where(found.present, linear / found.lengths, 0)
    slope = found.present / found.lengths
    fixed = found.matrix.device.type != "cpu" if fixed is None else fixed
    num_tasks = linear.shape[-1]
    if fixed and linear[..., 0].numel() << num_tasks <= _MOST_SUPPORTS:
        return _by_enumeration(found, scaled, slope, radius)
    return _by_pivoting(found, scaled, slope, radius, fixed=fixed)


def _on_support(
    matrix: Tensor,  # [..., T, T]
    on: Tensor,  # [..., T] zeros and ones
    scaled: Tensor,  # [..., T]
    slope: Tensor,  # [..., T]
    radius: Tensor,  # [..., 1]
) -> tuple[Tensor, Tensor, Tensor]:  # [..., T], [..., 1], [..., 1]
    """The x of a support, its level, and what is below zero where no level reaches the radius."""
    right = torch.stack((slope * on, -scaled * on), -1)
    factor = torch.linalg.cholesky_ex(masked(matrix, on)).L
    rising, start = torch.cholesky_solve(right, factor).unbind(-1)
    # The length of start + level * rising, squared, is q0 + 2 q1 level + q2 level^2.
    q2 = (right[..., 0] * rising).sum(-1, keepdim=True)
    q1 = (right[..., 0] * start).sum(-1, keepdim=True)
    q0 = (right[..., 1] * start).sum(-1, keepdim=True)
    reached = q1 * q1 - q2 * (q0 - radius * radius)
    level = (reached.clamp_min(0).sqrt() - q1) / q2
    return start + level * rising, level, reached


def _by_pivoting(
    found: Cosines, scaled: Tensor, slope: Tensor, radius: Tensor, *, fixed: bool
) -> Tensor:
    matrix, present = found.matrix, found.present
    support = present
    least = torch.full_like(scaled[..., 0], scaled.shape[-1] + 1, dtype=torch.int64)
    patience = torch.full_like(least, _PATIENCE)
    # Where every sign is wrong the support may run empty, which has no level.
    first = (scaled / torch.where(present, slope, 1)).where(present, torch.inf)
    first = first == first.amin(-1, keepdim=True)
    x = scaled
    for _ in range(_FIXED_ROUNDS if fixed else _MOST_ROUNDS):
        on = support.to(scaled.dtype)
        x, level, _ = _on_support(matrix, on, scaled, slope, radius)
        slack = times(matrix, x) + scaled - level * slope
        largest = x.abs().amax(-1, keepdim=True)
        scale = largest + scaled.abs() + level.abs() * slope
        wrong = torch.where(support, x < -_TOLERANCE * largest, slack < -_TOLERANCE * scale)
        wrong = wrong & present
        if not fixed and not wrong.any():
            break
        support, least, patience = exchanged(support, wrong, least, patience)
        support = support | (first & ~support.any(-1, keepdim=True))
    return x.clamp_min(0)


def _by_enumeration(found: Cosines, scaled: Tensor, slope: Tensor, radius: Tensor) -> Tensor:
    on = supports(scaled.shape[-1], scaled.dtype, scaled.device)[1:]  # [A, T]
    x, _, reached = _on_support(
        found.matrix.unsqueeze(-3),
        on,
        scaled.unsqueeze(-2),
        slope.unsqueeze(-2),
        radius.unsqueeze(-2),
    )
    # No support can do better than the right one; of the feasible ones that is the highest value
    # of the dual problem, (m.w + r |J'w|) / sum(w), and so the lowest over all.
    weights = x * slope.unsqueeze(-2)
    value = ((x * scaled.unsqueeze(-2)).sum(-1) + radius**2) / weights.sum(-1)
    is_without = (on.bool() & ~found.present.unsqueeze(-2)).any(-1)
    feasible = (x >= 0).all(-1) & (reached.squeeze(-1) >= 0) & value.isfinite() & ~is_without
    best = torch.where(feasible, value, torch.inf).argmin(-1, keepdim=True).unsqueeze(-1)
    return x.gather(-2, best.expand(*x.shape[:-2], 1, x.shape[-1])).squeeze(-2)
