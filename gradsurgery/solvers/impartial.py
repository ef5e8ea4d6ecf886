"""Equal shares: the direction that IMTL-G and ConFIG have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import Cosines, ridge, times
from gradsurgery.solvers.nonneg import masked

CERTAIN = 3.0  # times the rank threshold, over e: a determinant of cosines above it is of full rank


def impartial(
    found: Cosines,
    noise: float | None = None,
    *,
    fixed: bool | None = None,
) -> tuple[Tensor, Tensor]:  # [..., T], [..., T]
    r"""Finds coefficients of unit gradients that make equal angles with all of them.

    .. math:: v = C^{+} \mathbf 1, \qquad
        C = B\, C_{SS}\, B^\top \;\Rightarrow\;
        C^{+} = B (B^\top B)^{-1} C_{SS}^{-1} (B^\top B)^{-1} B^\top

    with S a set of independent gradients and B the coefficients of all gradients in those. A
    gradient joins S, the farthest first, while it has a part of squared length above
    :math:`\tau = \max(10^{-13}, 4\,T\,\mathrm{noise})` beyond those in it, in units of its own
    length: that is the threshold of the rank. Nothing is damped, so what is above it is found to
    the precision of C. Where :math:`\mathbf 1` has no part of length :math:`\tau \sqrt T` that the
    gradients reach, as of opposite ones, v is 0.

    On a CPU a determinant above :math:`3\,\tau` spares the search for S, and S is everything.

    Args:
        found: cosines of the gradients; a zero gradient gets 0.
        noise: relative error of an inner product, as in
            :func:`gradsurgery.solvers.cosines.cosines`.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        v, ``[..., T]``, and the cosines that it makes with the gradients, times its length,
        ``[..., T]``: 1 unless gradients depend on each other.

    Example:
        >>> from gradsurgery.solvers.cosines import cosines
        >>> gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> v, _ = impartial(cosines(gram))
        >>> [round(number, 6) for number in v.tolist()]
        [0.666667, 0.666667]
    """
    matrix = found.matrix.clone()
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1)  # a ridge would give opposite gradients a direction
    ones = found.present.to(matrix.dtype)
    least = ridge(matrix, noise)
    if not (matrix.device.type != "cpu" if fixed is None else fixed):
        factor, info = torch.linalg.cholesky_ex(matrix)
        determinant = factor.diagonal(dim1=-2, dim2=-1).square().prod(-1)
        if not (info.any() or (determinant <= CERTAIN * least).any()):
            return torch.cholesky_solve(ones.unsqueeze(-1), factor).squeeze(-1) * ones, ones
    on = _independent(matrix, ones, least)
    factor = torch.linalg.cholesky_ex(masked(matrix, on)).L
    inside = torch.cholesky_solve(matrix * on.unsqueeze(-1), factor)  # [..., S, T]
    basis = torch.addcmul(torch.diag_embed(on), inside, (1 - on).unsqueeze(-2)).mT  # B
    square = torch.linalg.cholesky_ex(basis.mT @ basis + torch.diag_embed(1 - on)).L
    share = torch.cholesky_solve(times(basis.mT, ones).unsqueeze(-1), square)
    reached = (basis @ share).squeeze(-1)
    v = torch.cholesky_solve(torch.cholesky_solve(share, factor), square)
    is_nothing = reached.square().mean(-1, keepdim=True) <= least**2
    v = torch.where(is_nothing, 0, (basis @ v).squeeze(-1))
    return v, torch.where(is_nothing, 0, reached)


def _independent(matrix: Tensor, ones: Tensor, least: float) -> Tensor:  # [..., T] zeros and ones
    """Picks the gradient that is farthest from all those picked before, as long as one is far."""
    left = matrix * ones.unsqueeze(-1)
    places, are_far = [], []
    for _ in range(matrix.shape[-1]):
        farthest, place = left.diagonal(dim1=-2, dim2=-1).max(-1, keepdim=True)
        is_far = farthest > least
        column = left.gather(-1, place.unsqueeze(-2).expand_as(left[..., :1]))
        share = column / torch.where(is_far, farthest, torch.inf).unsqueeze(-1)
        left = torch.addcmul(left, column, share.mT, value=-1)
        places.append(place)
        are_far.append(is_far)
    chosen = torch.cat(are_far, -1).to(matrix.dtype)
    return torch.zeros_like(ones).scatter_add(-1, torch.cat(places, -1), chosen)
