"""CAGrad: the update near the mean gradient that helps the worst-off task most."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradsurgery.solvers.cone import cone
from gradsurgery.solvers.cosines import cosines, poisoned


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
