"""Equal shares: the direction that IMTL-G and ConFIG have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import Cosines, times

_LEAST_DAMPING = 1e-6


def impartial(found: Cosines, noise: float | None = None) -> Tensor:  # [..., T]
    r"""Finds coefficients of unit gradients that make equal angles with all of them.

    .. math:: v = (C^2 + \tau^2 I)^{-1} C \mathbf 1 \approx C^{+} \mathbf 1

    and once more on what remains of :math:`\mathbf 1`. One factorisation, and no decision about
    the rank: eigenvalues well above :math:`\tau = \max(10^{-6}, T \cdot \mathrm{noise})` are
    inverted to a relative error of :math:`(\tau / \lambda)^4`, those below fade out. No number
    exceeds :math:`1 / \tau`. Rounding divides what equal gradients share evenly only to about
    :math:`10^{-4}`, which their sum does not see.

    Args:
        found: cosines of the gradients; a zero gradient gets 0.
        noise: relative error of an inner product, as in
            :func:`gradsurgery.solvers.cosines.cosines`.

    Returns:
        v, ``[..., T]``.

    Example:
        >>> from gradsurgery.solvers.cosines import cosines
        >>> gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> [round(number, 6) for number in impartial(cosines(gram)).tolist()]
        [0.666667, 0.666667]
    """
    matrix = found.matrix.clone()
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1)  # a ridge would give opposite gradients a direction
    squared = matrix @ matrix
    squared.diagonal(dim1=-2, dim2=-1).add_(damping(matrix, noise) ** 2)
    ones = found.present.to(matrix.dtype)
    factor = torch.linalg.cholesky_ex(squared).L
    v = torch.cholesky_solve(times(matrix, ones).unsqueeze(-1), factor)
    left = ones.unsqueeze(-1) - matrix @ v
    return (v + torch.cholesky_solve(matrix @ left, factor)).squeeze(-1) * ones


def damping(matrix: Tensor, noise: float | None = None) -> float:  # [..., T, T]
    """Gives the size of the eigenvalues that fade out, of cosines with such errors."""
    noise = torch.finfo(matrix.dtype).eps if noise is None else noise
    return max(_LEAST_DAMPING, matrix.shape[-1] * noise)
