"""Nonnegative quadratic programs: MGDA, UPGrad, DualProj and SDMGrad are each one of them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import solve, times

_MOST_SUPPORTS = 4096  # that are enumerated at once, over all matrices
_NUM_ITERATIONS = 16  # of the interior point: 8 are enough but for many, nearly equal gradients
_MOST_ROUNDS = 60  # of pivoting
_PATIENCE = 3  # rounds without a new least number of wrong signs
_TOLERANCE = 1e-14


def nonneg(
    matrix: Tensor,  # [..., T, T]
    linear: Tensor,  # [..., n, T]
    *,
    fixed: bool | None = None,
) -> Tensor:  # [..., n, T]
    r"""Solves n nonnegative quadratic programs of one positive definite matrix.

    .. math:: \min_{x \ge 0} \tfrac12 x^\top M x + q^\top x

    The solution is the x with :math:`x \ge 0`, :math:`z = Mx + q \ge 0` and :math:`x_i z_i = 0`.

    On a CPU, where reading costs nothing, supports are exchanged until every sign is right (block
    principal pivoting, 1 to 5 rounds); what has not ended after 60 rounds, as rank-deficient
    matrices of many tasks may not, goes to the interior point. Elsewhere the work is fixed and
    nothing is read: all supports at once where there are few, otherwise the interior point.

    Args:
        matrix: positive definite, of entries around 1, ``[..., T, T]``.
        linear: ``[..., n, T]``.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Example:
        >>> matrix = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
        >>> nonneg(matrix, matrix).tolist()  # UPGrad's: each conflicts with the other
        [[0.0, 0.5], [0.5, 0.0]]

    Sources: Joaquim J. Júdice and Fernanda M. Pires, "A block principal pivoting algorithm for
    large-scale strictly monotone linear complementarity problems", 1994; Sanjay Mehrotra, "On the
    implementation of a primal-dual interior point method", 1992.
    """
    num_tasks = matrix.shape[-1]
    if not (matrix.device.type != "cpu" if fixed is None else fixed):
        return _by_pivoting(matrix, linear)
    if matrix[..., 0, 0].numel() << num_tasks <= _MOST_SUPPORTS:
        return _by_enumeration(matrix, linear)
    return _by_interior_point(matrix.unsqueeze(-3).expand(*linear.shape, num_tasks), linear)


def masked(matrix: Tensor, support: Tensor) -> Tensor:  # [..., T, T], [..., T] -> [..., T, T]
    """Leaves a matrix as it is on a support of zeros and ones, makes it the identity beyond."""
    both = support.unsqueeze(-1) * support.unsqueeze(-2)
    return torch.addcmul(torch.diag_embed(1 - support), matrix, both)


def exchanged(
    support: Tensor,  # [..., T] booleans
    wrong: Tensor,  # [..., T] booleans
    least: Tensor,  # [...]
    patience: Tensor,  # [...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchanges what has a wrong sign: all at once as long as that helps, then the last one alone,
    which cannot go round in circles.

    Returns:
        The new support, and ``least`` and ``patience`` for the next call.
    """
    num_wrong = wrong.sum(-1)
    better = num_wrong < least
    least = torch.where(better, num_wrong, least)
    patience = torch.where(better, _PATIENCE, patience - 1)
    last = wrong & (wrong.flip(-1).cumsum(-1).flip(-1) == 1)
    return support ^ torch.where((patience < 0).unsqueeze(-1), last, wrong), least, patience


def _by_pivoting(matrix: Tensor, linear: Tensor) -> Tensor:
    shape = linear.shape
    linear = linear.reshape(-1, shape[-1])
    matrices = matrix.unsqueeze(-3).expand(*shape, shape[-1]).reshape(-1, shape[-1], shape[-1])
    found = torch.zeros_like(linear)
    left = torch.arange(len(linear))  # places of the programs that are not yet solved
    support = linear < 0
    least = torch.full((len(linear),), shape[-1] + 1)
    patience = torch.full((len(linear),), _PATIENCE)
    scale = linear.abs()
    for _ in range(_MOST_ROUNDS):
        x = solve(masked(matrices, support.to(linear.dtype)), torch.where(support, -linear, 0))
        product = times(matrices, x)
        largest = x.abs().amax(-1, keepdim=True)
        slack = product + linear
        wrong = torch.where(
            support, x < -_TOLERANCE * largest, slack < -_TOLERANCE * (scale + largest)
        )
        going_on = wrong.any(-1)
        if not going_on.any():
            found[left] = x
            return found.clamp_min_(0).view(shape)
        support, least, patience = exchanged(support, wrong, least, patience)
        if not going_on.all():
            found[left[~going_on]] = x[~going_on]
            left, linear, matrices, scale, support, least, patience = (
                of[going_on] for of in (left, linear, matrices, scale, support, least, patience)
            )
    found[left] = _by_interior_point(matrices, linear)
    return found.clamp_min_(0).view(shape)


def _by_enumeration(matrix: Tensor, linear: Tensor) -> Tensor:
    """Tries every support, and takes the feasible one of the least value: exact, with no tolerance
    that ties could hurt."""
    on = supports(matrix.shape[-1], matrix.dtype, matrix.device)  # [A, T]
    factors = torch.linalg.cholesky_ex(masked(matrix.unsqueeze(-3), on)).L  # [..., A, T, T]
    right = -linear.mT.unsqueeze(-3) * on.unsqueeze(-1)  # [..., A, T, n]
    x = torch.cholesky_solve(right, factors)
    value = -(x * right).sum(-2)  # twice the objective
    best = torch.where((x >= 0).all(-2), value, torch.inf).argmin(-2, keepdim=True)
    places = best.unsqueeze(-2).expand(*x.shape[:-3], 1, *x.shape[-2:])
    return x.gather(-3, places).squeeze(-3).mT


def _by_interior_point(matrix: Tensor, linear: Tensor) -> Tensor:  # [..., T, T], [..., T]
    """Mehrotra's predictor and corrector from x = z = 1, and an exact solution on the support that
    they lead to."""
    x, z = torch.ones_like(linear), torch.ones_like(linear)
    for _ in range(_NUM_ITERATIONS):
        residual = times(matrix, x) + linear
        ratio = z / x
        factor = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ratio)).L
        dx = _solved(factor, -residual)
        dz = -z - ratio * dx
        length = _longest(x, dx, z, dz, 1.0)
        centre = (x * z).mean(-1, keepdim=True)
        reached = ((x + length * dx) * (z + length * dz)).mean(-1, keepdim=True)
        target = (reached / centre) ** 3 * centre - dx * dz
        dx = _solved(factor, target / x - residual)
        dz = (target - z * dx) / x - z
        length = _longest(x, dx, z, dz, 0.995)
        x, z = x + length * dx, z + length * dz
    return _settled(matrix, linear, x, z)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def _longest(x: Tensor, dx: Tensor, z: Tensor, dz: Tensor, share: float) -> Tensor:
    """The longest step, at most 1, that takes no more than a share of any x and z."""
    steepest = torch.minimum(dx / x, dz / z).amin(-1, keepdim=True)
    return share / (-steepest).clamp_min(share)


def _settled(matrix: Tensor, linear: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """The exact solution on the support x > z where it is feasible, otherwise x beyond z."""
    support = x > z
    on = support.to(linear.dtype)
    exact = solve(masked(matrix, on), -linear * on)
    slack = times(matrix, exact) + linear
    least = -1e-12 * (1 + linear.abs().amax(-1, keepdim=True))
    is_feasible = ((exact >= 0) & (support | (slack >= least))).all(-1, keepdim=True)
    return torch.where(is_feasible, exact, (x - z).clamp_min(0))


@lru_cache
def supports(num_tasks: int, dtype: torch.dtype, device: torch.device) -> Tensor:  # [2**T, T]
    """Lists all sets of tasks, in zeros and ones; made once for each device, because a captured
    CUDA graph cannot."""
    sets = torch.arange(1 << num_tasks, device=device).unsqueeze(-1)
    return (sets >> torch.arange(num_tasks, device=device) & 1).to(dtype)
