"""Lengths and cosines of a Gram matrix: the one place that knows of scale, zeros and noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_RIDGE = 1e-13


class Cosines(NamedTuple):
    """A Gram matrix in units of the gradients' lengths.

    Attributes:
        matrix: cosines of the gradients, the diagonal ``1 + ridge``, ``[..., T, T]``; a zero
            gradient has cosine 0 with every other.
        lengths: of the gradients, 1 for a zero gradient, ``[..., T]``.
        present: which gradients are not zero, ``[..., T]`` booleans.
    """

    matrix: Tensor
    lengths: Tensor
    present: Tensor


def cosines(gram: Tensor, noise: float | None = None) -> Cosines:  # [..., T, T]
    r"""Splits a Gram matrix into lengths and cosines, and makes the cosines positive definite.

    .. math:: C = D^{-1} G D^{-1} + \rho I, \qquad D = \mathrm{diag}(\lVert g_i \rVert)

    Rounding leaves C indefinite by up to about T times the relative error of the inner products.
    The ridge :math:`\rho = \max(10^{-13}, 4\,T\,\mathrm{noise})` lies above that. It also bounds
    the solutions: no weight exceeds about :math:`1 / \sqrt\rho` lengths.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        noise: relative error of an inner product, against the two lengths; by default the
            precision of ``gram``'s type.

    Example:
        >>> found = cosines(torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> found.lengths.tolist(), found.present.tolist(), round(found.matrix[0, 1].item(), 4)
        ([2.0, 3.0, 1.0], [True, True, False], 0.5)
    """
    squared = gram.diagonal(dim1=-2, dim2=-1)
    present = squared != 0  # NaN is present, so that it is not lost
    lengths = torch.where(present, squared, 1).sqrt()
    matrix = gram / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1 + ridge(gram, noise))
    return Cosines(matrix, lengths, present)


def ridge(gram: Tensor, noise: float | None = None) -> float:
    """Gives what is added to the diagonal of cosines with such errors."""
    noise = torch.finfo(gram.dtype).eps if noise is None else noise
    return max(_LEAST_RIDGE, 4 * gram.shape[-1] * noise)


def poisoned(weights: Tensor, gram: Tensor) -> Tensor:  # [..., T], [..., T, T] -> [..., T]
    """Makes every weight NaN where an inner product is not finite: no finite part of a wrong
    update."""
    return weights + 0 * gram.sum((-2, -1)).unsqueeze(-1)


def times(matrix: Tensor, vector: Tensor) -> Tensor:  # [..., n, n], [..., n] -> [..., n]
    """Multiplies matrices by vectors."""
    return torch.matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)


def solve(matrix: Tensor, right: Tensor) -> Tensor:  # [..., n, n], [..., n] -> [..., n]
    """Solves positive definite systems, without a wait for the device."""
    factor = torch.linalg.cholesky_ex(matrix).L
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
