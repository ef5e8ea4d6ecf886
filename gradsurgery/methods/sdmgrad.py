"""SDMGrad on one batch: the shortest mixture of gradients that all lean to the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradsurgery.method import Method, Seen
from gradsurgery.methods.mgda import shortest
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def sdmgrad_weights(
    gram: Tensor,  # [..., T, T]
    lamb: float = 0.3,
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights between those of MGDA and the mean.

    .. math::
        w^* = \arg\min_{w \ge 0,\, \sum w = 1} \lVert g_w + \lambda g_0 \rVert^2, \qquad
        u = \frac{g_{w^*} + \lambda g_0}{1 + \lambda}

    This is the exact solution for the Gram matrix of one batch, where the paper takes projected
    steps on products of two. At :math:`\lambda = 0` MGDA, for large :math:`\lambda` the mean.
    Mean-like.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        lamb: :math:`\lambda`, at least 0; the paper's code has 0.3 in its scripts and 0.6 in its
            class.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in sdmgrad_weights(gram).tolist()]
        [0.6, 0.4]

    Source: Peiyao Xiao, Hao Ban and Kaiyi Ji, "Direction-oriented Multi-objective Learning: Simple
    and Provable Stochastic Algorithms", 2023.
    """
    with_mean = gram.mean(-1)
    shifted = gram + lamb * (with_mean.unsqueeze(-1) + with_mean.unsqueeze(-2))
    shifted = shifted + lamb**2 * with_mean.mean(-1)[..., None, None]
    # The mean may be tiny beside the gradients, and so may be the update.
    mixture = shortest(shifted, noise=noise, fixed=fixed, sharp=True)
    return (mixture + lamb / gram.shape[-1]) / (1 + lamb)


class SDMGradMethod(Method):
    """Weighs by :func:`sdmgrad_weights`."""

    def __init__(self, lamb: float) -> None:
        if not lamb >= 0:
            raise ValueError(f"lamb: must be at least 0, got {lamb}; 0 is MGDA")
        self.lamb = lamb

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return sdmgrad_weights(seen.gram, self.lamb, noise=seen.noise)


class SDMGrad(MultiTaskOptimizer):
    r"""Takes an update between MGDA's and the mean, exactly, from one batch.

    .. math:: u = \frac{g_{w^*} + \lambda g_0}{1 + \lambda}, \qquad
        w^* = \arg\min_{w \ge 0,\, \sum w = 1} \lVert g_w + \lambda g_0 \rVert^2

    Mean-like. The paper takes projected steps on the products of two batches instead.

    Args:
        base: the optimizer that takes the step.
        lamb: :math:`\lambda`, at least 0.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``lamb`` is negative.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = SDMGrad(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.5, 0.5]

    Source: Peiyao Xiao, Hao Ban and Kaiyi Ji, "Direction-oriented Multi-objective Learning: Simple
    and Provable Stochastic Algorithms", 2023.
    """

    def __init__(
        self, base: torch.optim.Optimizer, *, lamb: float = 0.3, **options: Unpack[Options]
    ) -> None:
        super().__init__(base, SDMGradMethod(lamb), **options)
