"""DB-MTL without its average of gradients: every gradient as long as the longest."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import poisoned


def dbmtl_weights(
    gram: Tensor,  # [..., T, T]
    losses: Tensor,  # [T]
) -> Tensor:  # [..., T]
    r"""Weights that make all gradients of the logarithms of the losses equally long.

    .. math:: w_i = \max_j \frac{\lVert g_j \rVert}{\ell_j} \Big/ \lVert g_i \rVert

    The losses enter the common factor alone. Without the paper's moving average of the gradients,
    which needs one more number for every task and parameter. Sum-like. A gradient that is zero is
    left out, with weight 0.

    Args:
        gram: inner products of the gradients of the losses themselves, ``[..., T, T]``.
        losses: above 0, ``[T]``.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[4.0, 0.0], [0.0, 9.0]])
        >>> dbmtl_weights(gram, torch.tensor([1.0, 2.0])).tolist()
        [1.0, 0.6666666865348816]

    Source: Baijiong Lin et al., "Dual-Balancing for Multi-Task Learning", 2023.
    """
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    longest = (lengths / losses.to(gram)).amax(-1, keepdim=True)
    is_zero = lengths == 0
    return poisoned(torch.where(is_zero, 0, longest / torch.where(is_zero, 1, lengths)), gram)
