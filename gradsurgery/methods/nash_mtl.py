"""Nash-MTL and FairGrad: updates that a fair bargain between the tasks leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_choice
from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import cosines, poisoned, ridge, times
from gradsurgery.solvers.newton import bargain

if TYPE_CHECKING:
    from typing_extensions import Unpack


Length = Literal["own", "gradients"]


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
    :math:`1 / \sqrt\rho` lengths, with :math:`\rho` the ridge that keeps C definite.

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
    largest :math:`w_i \lVert g_i \rVert` to the least, squared. Below :math:`\alpha = 1` fixed work
    may not reach that where, moreover, a mixture of the gradients is nearly zero: for lengths that
    span 16 powers of ten it was off by 1e-2.

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
    target = (power - 1) * log_lengths
    log_v = bargain(matrix, target, power, ridge=ridge(gram, noise), fixed=fixed)
    return poisoned(torch.where(present, (log_v - log_lengths).exp(), 0), gram)


def length_of(gram: Tensor, weights: Tensor) -> Tensor:  # [..., T, T], [..., T] -> [..., 1]
    """Gives the length of the update that weights lead to."""
    return (weights * times(gram, weights)).sum(-1, keepdim=True).clamp_min(0).sqrt()


class BargainMethod(Method):
    """Weighs by :func:`fairgrad_weights`, and sets the update's length."""

    def __init__(self, alpha: float, max_norm: float | None, length: Length) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha: must be above 0, got {alpha}; 1 is Nash-MTL")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm: must be above 0 or None, got {max_norm}")
        check_choice("length", length, ("own", "gradients"))
        self.alpha = alpha
        self.max_norm = max_norm
        self.length = length

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        weights = fairgrad_weights(seen.gram, self.alpha, noise=seen.noise)
        length = length_of(seen.gram, weights)
        if self.length == "gradients":
            wanted = seen.gram.diagonal(dim1=-2, dim2=-1).sqrt().mean(-1, keepdim=True)
            weights = torch.where(length > 0, weights * wanted / length, weights)
            length = torch.where(length > 0, wanted, length)
        if self.max_norm is not None:
            weights = weights * (self.max_norm / length).clamp_max(1)
        return weights


class NashMTL(MultiTaskOptimizer):
    r"""Takes the update on which the tasks would agree in a fair bargain.

    .. math:: u = \sum_t w_t\, g_t, \qquad (G w)_i = 1 / w_i, \quad w > 0

    The update conflicts with no task and does not depend on the lengths of their gradients: its own
    length is always :math:`\sqrt T`, in each unit, and with ``max_norm`` 1 always 1. Learning rates
    must be chosen anew, or ``length="gradients"`` makes it as long as the gradients are on average;
    so it must be with ``GradScaler``, which relies on longer gradients making a longer update.

    Args:
        base: the optimizer that takes the step.
        max_norm: what the length is clipped to; 1 in the paper's code, ``None`` for no limit.
        length: ``"own"``, or ``"gradients"`` for the mean of the gradients' lengths, before the
            limit, which then is best ``None``.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``max_norm`` is not above 0.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = NashMTL(torch.optim.SGD([weight], lr=1.0), max_norm=None)
        >>> optimizer.backward([weight[0], 100 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [1.0, 1.0]

    Source: Aviv Navon et al., "Multi-Task Learning as a Bargaining Game", 2022.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        max_norm: float | None = 1.0,
        length: Length = "own",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, BargainMethod(1.0, max_norm, length), **options)


class FairGrad(MultiTaskOptimizer):
    r"""Takes the update that is alpha-fair to the tasks.

    .. math:: u = \sum_t w_t\, g_t, \qquad (G w)_i = w_i^{-1/\alpha}, \quad w > 0

    With :math:`\alpha = 1` that of Nash-MTL without its limit. For :math:`\alpha > 1` the update
    shrinks as the gradients grow, so that ``GradScaler`` needs ``length="gradients"``. Conflicts
    with no task.

    Args:
        base: the optimizer that takes the step.
        alpha: fairness, above 0; 1 in the paper's code, which tunes it.
        max_norm: what the length is clipped to; the paper's code has 1.
        length: as in :class:`NashMTL`.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``alpha`` or ``max_norm`` is not
            above 0.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = FairGrad(torch.optim.SGD([weight], lr=1.0), alpha=2.0)
        >>> optimizer.backward([weight[0], 8 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [1.0, 0.5]

    Source: Hao Ban and Kaiyi Ji, "Fair Resource Allocation in Multi-Task Learning", 2024.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        alpha: float = 1.0,
        max_norm: float | None = None,
        length: Length = "own",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, BargainMethod(alpha, max_norm, length), **options)
