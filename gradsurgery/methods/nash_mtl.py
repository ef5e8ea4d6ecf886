"""Nash-MTL and FairGrad: updates that a fair bargain between the tasks leads to."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import cosines, poisoned, times
from gradsurgery.solvers.newton import bargain


def nash_mtl_weights(
    gram: Tensor,  # [..., T, T]
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the update with the largest product of the tasks' improvements.

    .. math:: (G w)_i = 1 / w_i, \qquad w > 0

    The update has a length of its own: always :math:`\sqrt T`, whatever the lengths of the
    gradients, on which it does not depend. It conflicts with no gradient. A gradient that is zero
    is left out, with weight 0. Near stationarity the weights grow, up to
    :math:`1 / \sqrt\rho` lengths with the ridge of :func:`gradsurgery.solvers.cosines.cosines`.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in nash_mtl_weights(gram).tolist()]
        [0.5915, 0.4071]

    Source: Aviv Navon et al., "Multi-Task Learning as a Bargaining Game", 2022.
    """
    return fairgrad_weights(gram, noise=noise, fixed=fixed)


def fairgrad_weights(
    gram: Tensor,  # [..., T, T]
    alpha: float = 1.0,
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the update that is alpha-fair to the tasks' improvements.

    .. math:: (G w)_i = w_i^{-1/\alpha}, \qquad w > 0

    At :math:`\alpha = 1` that of Nash-MTL; large :math:`\alpha` lead to the direction of MGDA. The
    update has a length of its own: gradients s times as long make it
    :math:`s^{(1-\alpha)/(1+\alpha)}` times as long, so for :math:`\alpha > 1` it *shrinks* as they
    grow. It conflicts with no gradient. A gradient that is zero is left out, with weight 0.

    Away from :math:`\alpha = 1` the equation itself is badly conditioned where lengths differ by
    many powers of ten: its two sides agree to the precision of the type times the ratio of the
    largest :math:`w_i \lVert g_i \rVert` to the least, squared, and fixed work may not reach that.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        alpha: fairness, above 0; the paper's code has 1.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Raises:
        ValueError: ``alpha`` is not above 0.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in fairgrad_weights(gram, alpha=2.0).tolist()]
        [0.4714, 0.3195]

    Source: Hao Ban and Kaiyi Ji, "Fair Resource Allocation in Multi-Task Learning", 2024.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: must be above 0, got {alpha}; 1 is Nash-MTL")
    matrix, lengths, present = cosines(gram, noise)
    power = 1 / alpha
    # In units of the lengths, v = w d: C v = b v^-p with b = d^(p - 1).
    log_lengths = lengths.log()
    log_v = bargain(matrix, (power - 1) * log_lengths, power, fixed=fixed)
    return poisoned(torch.where(present, (log_v - log_lengths).exp(), 0), gram)


def length_of(gram: Tensor, weights: Tensor) -> Tensor:  # [..., T, T], [..., T] -> [..., 1]
    """Gives the length of the update that weights lead to."""
    return (weights * times(gram, weights)).sum(-1, keepdim=True).clamp_min(0).sqrt()
