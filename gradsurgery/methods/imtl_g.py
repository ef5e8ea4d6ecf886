"""IMTL-G and ConFIG: the direction that makes equal angles with all gradients."""

from __future__ import annotations

from functools import partial
from operator import mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import cosines, poisoned, ridge
from gradsurgery.solvers.impartial import CERTAIN, impartial
from gradsurgery.solvers.plain import Matrix, lengths_of, on_host, solved

if TYPE_CHECKING:
    from typing_extensions import Unpack

_VANISHING = 1e-12  # of a sum, in units of its absolute terms


def imtl_g_weights(
    gram: Tensor,  # [..., T, T]
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights, of sum 1, of the update whose projections onto the gradients are equally long.

    .. math::
        u \cdot \frac{g_i}{\lVert g_i \rVert} = u \cdot \frac{g_j}{\lVert g_j \rVert}, \qquad
        w \propto D^{-1} C^{+} \mathbf 1, \quad \sum_i w_i = 1

    Mean-like. Weights may be negative, and large where their sum nearly vanishes; where it does the
    weights are 0. A gradient that is zero is left out, with weight 0. One linear solve where the
    cosines C have full rank; a gradient counts as dependent on others where the squared sine of its
    angle to them is below :math:`\max(10^{-13}, 4\,T\,\mathrm{noise})`.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in imtl_g_weights(gram).tolist()]
        [0.5923, 0.4077]

    Source: Liyang Liu et al., "Towards Impartial Multi-task Learning", 2021.
    """
    usual = on_host(gram, partial(_imtl_g_of, least=ridge(gram, noise)), fixed=fixed)
    if usual is not None:
        return usual
    found = cosines(gram, noise)
    equal, _ = impartial(found, noise, fixed=fixed)
    weights = equal / found.lengths
    total = weights.sum(-1, keepdim=True)
    vanishes = total.abs() <= _VANISHING * weights.abs().sum(-1, keepdim=True)
    weights = torch.where(vanishes, 0, weights / torch.where(vanishes, 1, total))
    return poisoned(weights, gram)


def _impartial_of(gram: Matrix, least: float) -> tuple[list[float], list[float]] | None:
    """Weights of an update whose projections have length 1, and the lengths of the gradients."""
    lengths = lengths_of(gram)
    found = lengths and solved(gram, lengths)
    # The least eigenvalue of the cosines is above their determinant / e.
    if not lengths or not found or not found[1] > CERTAIN * least:
        return None
    return found[0], lengths


def _imtl_g_of(gram: Matrix, least: float) -> list[float] | None:
    found = _impartial_of(gram, least)
    if found is None:
        return None
    weights, _ = found
    total = sum(weights)
    if not abs(total) > _VANISHING * sum(map(abs, weights)):
        return None
    return [weight / total for weight in weights]


def _config_of(gram: Matrix, least: float) -> list[float] | None:
    found = _impartial_of(gram, least)
    if found is None:
        return None
    weights, lengths = found
    share = sum(lengths) / sum(map(mul, weights, lengths))
    return [share * weight for weight in weights]


def config_weights(
    gram: Tensor,  # [..., T, T]
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the update that makes equal angles with all gradients, as long as they are on it.

    .. math::
        u = \Bigl(\sum_i g_i \cdot \hat u\Bigr)\, \hat u, \qquad
        \hat u \parallel \sum_i \frac{(C^{+} \mathbf 1)_i}{\lVert g_i \rVert}\, g_i

    The direction is that of IMTL-G, the length sum-like. Linear in the length of each gradient.
    Opposite gradients give 0. A gradient that is zero is left out, with weight 0. One linear solve,
    and a threshold of the rank, as :func:`imtl_g_weights`.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in config_weights(gram).tolist()]
        [1.2265, 0.8441]

    Source: Qiang Liu, Mengyu Chu and Nils Thuerey, "ConFIG: Towards Conflict-free Training of
    Physics Informed Neural Networks", 2024.
    """
    usual = on_host(gram, partial(_config_of, least=ridge(gram, noise)), fixed=fixed)
    if usual is not None:
        return usual
    found = cosines(gram, noise)
    equal, onto = impartial(found, noise, fixed=fixed)
    squared = equal.sum(-1, keepdim=True)  # the direction's length, squared
    has_direction = squared > 0
    share = (found.lengths * onto).sum(-1, keepdim=True)
    share = share / torch.where(has_direction, squared, 1)
    return poisoned(torch.where(has_direction, share * equal / found.lengths, 0), gram)


class IMTLGMethod(Method):
    """Weighs by :func:`imtl_g_weights`."""

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return imtl_g_weights(seen.gram, noise=seen.noise)


class ConFIGMethod(Method):
    """Weighs by :func:`config_weights`."""

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return config_weights(seen.gram, noise=seen.noise)


class IMTLG(MultiTaskOptimizer):
    r"""Takes the update whose projections onto the tasks' gradients are equally long.

    .. math::
        u = \sum_t w_t\, g_t, \qquad
        u \cdot \frac{g_i}{\lVert g_i \rVert} = u \cdot \frac{g_j}{\lVert g_j \rVert}, \quad
        \sum_t w_t = 1

    Mean-like. Weights may be negative, and are large where their sum would nearly vanish.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = IMTLG(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], 3 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.75, 0.75]

    Source: Liyang Liu et al., "Towards Impartial Multi-task Learning", 2021.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, IMTLGMethod(), **options)


class ConFIG(MultiTaskOptimizer):
    r"""Takes the direction that makes equal angles with all gradients, as long as they are on it.

    .. math:: u = \Bigl(\sum_i g_i \cdot \hat u\Bigr)\, \hat u

    Sum-like. The direction is that of :class:`IMTLG`.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ConFIG(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], 3 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [2.0, 2.0]

    Source: Qiang Liu, Mengyu Chu and Nils Thuerey, "ConFIG: Towards Conflict-free Training of
    Physics Informed Neural Networks", 2024.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, ConFIGMethod(), **options)
