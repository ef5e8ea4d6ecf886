"""CAGrad: the update near the mean gradient that helps the worst-off task most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cone import cone
from gradsurgery.solvers.cosines import cosines, poisoned

if TYPE_CHECKING:
    from typing_extensions import Unpack


def cagrad_weights(
    gram: Tensor,  # [..., T, T]
    c: float = 0.4,
    *,
    rescale: Literal[0, 1, 2] = 0,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the update that raises the least improvement within a ball around the mean.

    .. math::
        \max_u \min_i\; g_i \cdot u \quad \text{such that} \quad
        \lVert u - g_0 \rVert \le c \lVert g_0 \rVert, \qquad g_0 = \tfrac1T \sum_i g_i

    Mean-like. At c = 0 the mean; from c = 1 on it conflicts with no gradient; large c lead to the
    direction of MGDA. A gradient that is zero is left out of the least, but counts in the mean. A
    mean that is zero gives the mean.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        c: radius of the ball in lengths of the mean gradient, at least 0; the paper tunes it
            between 0.2 and 0.8, its code has 0.5 or 0.4.
        rescale: 0 leaves the update as it is, 1 divides it by 1 + c², 2 by 1 + c.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in cagrad_weights(gram, c=0.5).tolist()]
        [0.7041, 0.5]

    Source: Bo Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021.
    """
    found = cosines(gram, noise)
    # In units of the longest gradient, so that no square overflows.
    lengths = torch.where(found.present, found.lengths, 0)
    longest = lengths.amax(-1, keepdim=True)
    longest = torch.where(longest == 0, 1, longest)
    relative = found._replace(lengths=found.lengths / longest)
    with_mean = gram.mean(-1) / longest / longest
    radius = c * with_mean.mean(-1, keepdim=True).clamp_min(0).sqrt()
    has_radius = radius > 0
    x = cone(relative, with_mean, torch.where(has_radius, radius, 1), fixed=fixed)
    more = torch.where(has_radius & found.present, x / relative.lengths, 0)
    share = (1.0, 1 + c * c, 1 + c)[rescale]
    return poisoned((1 / gram.shape[-1] + more) / share, gram)


class CAGradMethod(Method):
    """Weighs by :func:`cagrad_weights`."""

    def __init__(self, c: float, rescale: Literal[0, 1, 2]) -> None:
        if not c >= 0:
            raise ValueError(f"c: must be at least 0, got {c}; 0 is the mean")
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale: must be 0, 1 or 2, got {rescale!r}")
        self.c = c
        self.rescale = rescale

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return cagrad_weights(seen.gram, self.c, rescale=self.rescale, noise=seen.noise)


class CAGrad(MultiTaskOptimizer):
    r"""Takes the update near the mean gradient that improves the worst-off task most.

    .. math::
        u = \arg\max_u \min_i\; g_i \cdot u \quad \text{such that} \quad
        \lVert u - g_0 \rVert \le c \lVert g_0 \rVert, \qquad g_0 = \tfrac1T \sum_i g_i

    Mean-like. With c = 0 the mean; from c = 1 on it conflicts with no task.

    Args:
        base: the optimizer that takes the step.
        c: radius of the ball in lengths of the mean gradient, at least 0; the paper tunes it
            between 0.2 and 0.8.
        rescale: 0 leaves the update as it is, 1 divides it by 1 + c², 2 by 1 + c.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``c`` is negative.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = CAGrad(torch.optim.SGD([weight], lr=1.0), c=0.5)
        >>> optimizer.backward([weight[0], weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.75, 0.75]

    Source: Bo Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        c: float = 0.4,
        rescale: Literal[0, 1, 2] = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, CAGradMethod(c, rescale), **options)
