"""DB-MTL without its average of gradients: every gradient as long as the longest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

from gradsurgery.solvers.cosines import poisoned


def dbmtl_weights(
    gram: Tensor,  # [..., T, T]
    losses: Tensor,  # [T]
) -> Tensor:  # [..., T]
    r"""Weights that make all gradients of the logarithms of the losses equally long.

    .. math:: w_i = \frac{1}{\lVert g_i \rVert} \max_j \frac{\lVert g_j \rVert}{\ell_j}

    The losses enter the common factor alone. Without the paper's moving average of the gradients,
    which needs one more number for every task and parameter. Sum-like. A gradient that is zero is
    left out, with weight 0.

    Args:
        gram: inner products of the gradients of the losses themselves, ``[..., T, T]``.
        losses: above 0, ``[T]``; with one that is not, weights are NaN.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[4.0, 0.0], [0.0, 9.0]])
        >>> dbmtl_weights(gram, torch.tensor([1.0, 2.0])).tolist()
        [1.0, 0.6666666865348816]

    Source: Baijiong Lin et al., "Dual-Balancing for Multi-Task Learning", 2023.
    """
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    losses = torch.where(losses > 0, losses, torch.nan).to(gram)
    longest = (lengths / losses).amax(-1, keepdim=True)
    is_zero = lengths == 0
    return poisoned(torch.where(is_zero, 0, longest / torch.where(is_zero, 1, lengths)), gram)


class DBMTLMethod(Method):
    """Weighs by :func:`dbmtl_weights`."""

    needs_losses = True

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        assert seen.losses is not None
        losses = seen.losses.to(seen.gram).expand(seen.gram.shape[:-1])
        return dbmtl_weights(seen.gram, losses)


class DBMTL(MultiTaskOptimizer):
    r"""Makes every task's gradient as long as the longest of the logarithms of the losses.

    .. math:: u = \sum_i \frac{\max_j \lVert g_j \rVert / \ell_j}{\lVert g_i \rVert}\, g_i

    As long as the gradients of the logarithms, T of them where they agree: losses that are scaled
    leave it as it is, so that ``GradScaler`` must not scale them. A gradient that is zero is left
    out. Without the paper's moving average of the gradients, which would need a second T×P buffer.
    In blocks the losses must be shown: ``block.backward(loss)``.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = DBMTL(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], 4 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [1.0, 1.0]

    Source: Baijiong Lin et al., "Dual-Balancing for Multi-Task Learning", 2023.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, DBMTLMethod(), **options)
