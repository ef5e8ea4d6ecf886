"""GradVac: PCGrad with a target for the cosine of every pair, which follows their usual cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.methods.by_task import ByTask
from gradsurgery.methods.order import projection_order
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import cosines
from gradsurgery.solvers.plain import Matrix, lengths_of, on_host

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LARGEST_TARGET = 1 - 1e-6


def gradvac_weights(
    gram: Tensor,  # [..., T, T]
    targets: Tensor,  # [..., T, T]
    order: Tensor,  # [T, T]
    beta: float = 0.5,
) -> tuple[Tensor, Tensor]:  # [..., T], [..., T, T]
    r"""Weights that lift every pair's cosine to its target, and the targets of the next step.

    Task :math:`i` visits the others in its order. With :math:`\phi` the cosine of its vector
    :math:`g_i^V` with the *original* :math:`g_j`, and :math:`\hat\phi` the pair's target:

    .. math::
        \phi < \hat\phi:\; g_i^V \leftarrow g_i^V + \frac{\lVert g_i^V \rVert
        (\hat\phi \sqrt{1 - \phi^2} - \phi \sqrt{1 - \hat\phi^2})}
        {\lVert g_j \rVert \sqrt{1 - \hat\phi^2}}\, g_j, \qquad
        \hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi

    Sum-like. With all targets 0 it is PCGrad with the same orders. A gradient that is zero is not
    visited, and its targets stay; so do those of visits by a vector of which only rounding is left,
    and all where a gradient is not finite.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        targets: target cosines, row i those of task i's visits, 0 at first, ``[..., T, T]``.
        order: row i lists the tasks in the order in which task i visits them, ``[T, T]`` integers;
            a task's visit to itself is skipped.
        beta: how fast targets follow; 0.5 in the usual implementations.

    Returns:
        Weights ``[..., T]`` and new targets ``[..., T, T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> order = torch.tensor([[1, 0], [0, 1]])
        >>> weights, _ = gradvac_weights(gram, torch.zeros_like(gram), order)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [2.2222, 1.5789]

    Source: Zirui Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models", 2021.
    """

    def ones() -> Iterator[Matrix]:  # not read before somebody asks
        yield from targets.expand_as(gram).reshape(-1, *gram.shape[-2:]).tolist()

    of_each = ones()

    def of_one(one: Matrix) -> Matrix | None:
        return _gradvac_of(one, next(of_each), order.tolist(), beta, _nothing(gram))

    usual = on_host(gram, of_one)
    if usual is not None:
        return usual[..., 0, :], usual[..., 1:, :].to(targets)
    poison = 0 * gram.sum((-2, -1))
    if gram.shape[-1] == 1:
        return torch.ones_like(gram[..., 0]) + poison.unsqueeze(-1), targets
    # In everybody's own order of the others; the visit to itself is sorted to the end and left out.
    me = torch.arange(gram.shape[-1], device=gram.device).unsqueeze(-1)
    others = order.gather(-1, (order == me).long().argsort(dim=-1, stable=True))[:, :-1]
    places = others.expand(*gram.shape[:-1], -1)
    unit, lengths, present = cosines(gram)
    between = unit[..., others.unsqueeze(-1), others.unsqueeze(-2)]  # [..., T, T - 1, T - 1]
    kept = targets.expand_as(gram)
    aims = kept.gather(-1, places)
    aim = aims.clamp(max=_LARGEST_TARGET)
    met = present[..., others]
    is_open = met & (aim > -1)
    slopes = torch.where(is_open, aim * (1 - aim * aim).rsqrt(), 0)
    lowest = torch.where(is_open, -torch.inf, torch.zeros_like(slopes))
    # All tasks make their k-th visit at once, in units of their own and of the visited gradient.
    products = unit.gather(-1, places)  # of the vector with those that are still to be visited
    squared = present.to(gram.dtype)  # the vector's length
    product = less = nothing = torch.zeros_like(squared)
    visits = []
    for k in range(places.shape[-1]):
        if k:
            squared = torch.addcmul(squared, less, torch.sub(less, product, alpha=2))
            row = between[..., k - 1, k:]
            products = torch.addcmul(products[..., 1:], less.unsqueeze(-1), row, value=-1)
        product = products[..., 0]
        beside = torch.addcmul(squared, product, product, value=-1).clamp_min(0).sqrt()
        # Below the target cosine, and only there, this is below zero: what is to be added.
        less = torch.addcmul(product, slopes[..., k], beside, value=-1)
        less = less.clamp(lowest[..., k], nothing)
        visits.append((squared, product, less))
    squares, reached, steps = (torch.stack(each, -1) for each in zip(*visits, strict=True))
    own_lengths = squares.clamp_min(0).sqrt()
    met = met & (squares > _nothing(gram))
    moved = torch.where(met, torch.lerp(aims, (reached / own_lengths).clamp(-1, 1), beta), aims)
    taken = torch.zeros_like(gram).scatter_(-1, places, steps * lengths.unsqueeze(-1)).sum(-2)
    # One gradient that is not finite spoils this update, not the targets of all to come.
    moved = torch.where((poison == 0)[..., None, None], kept.scatter(-1, places, moved), kept)
    return 1 - taken / lengths + poison.unsqueeze(-1), moved


def _nothing(gram: Tensor) -> float:  # [..., T, T]
    """The squared length, in units of the first one, of a vector of which only rounding is left."""
    return 4 * gram.shape[-1] * torch.finfo(gram.dtype).eps


def _gradvac_of(
    gram: Matrix, targets: Matrix, order: list[list[int]], beta: float, nothing: float
) -> Matrix | None:
    """The weights, and below them the new targets."""
    lengths = lengths_of(gram)
    if lengths is None:
        return None
    weights, moved = [1.0] * len(gram), []
    least = math.sqrt(nothing)
    for i, visits in enumerate(order):
        aims, products, squared = list(targets[i]), gram[i], lengths[i] ** 2
        for j in visits:
            if j == i:
                continue
            length, own_length = lengths[j], math.sqrt(max(squared, 0.0))
            if not own_length > least * lengths[i]:
                return None
            cosine = min(max(products[j] / own_length / length, -1.0), 1.0)
            aim = min(aims[j], _LARGEST_TARGET)
            if cosine < aim:
                beside = math.sqrt((1 - cosine * cosine) / (1 - aim * aim))
                step = own_length / length * (aim * beside - cosine)
                weights[j] += step
                squared += step * (2 * products[j] + step * length * length)
                products = [a + step * b for a, b in zip(products, gram[j], strict=True)]
            aims[j] += beta * (cosine - aims[j])
        moved.append(aims)
    return [weights, *moved]


class GradVacMethod(Method):
    """Weighs by :func:`gradvac_weights`, with targets that it keeps by task."""

    def __init__(self, beta: float) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: must be between 0 and 1, got {beta}")
        self.beta = beta
        self._targets = ByTask(start=0.0, pairs=True)

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        order = projection_order(len(seen.tasks), seen.seed, seen.step, seen.gram.device)
        targets = self._targets.get(seen, like=seen.gram)
        weights, targets = gradvac_weights(seen.gram, targets, order, self.beta)
        self._targets.set(seen, targets)
        return weights

    def state_dict(self) -> dict[str, Any]:
        targets = self._targets.saved()
        return {} if targets is None else {"targets": targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._targets.restore(state.get("targets"))


class GradVac(MultiTaskOptimizer):
    r"""Lifts the cosine of every pair of gradients to a target that follows their usual cosine.

    .. math::
        \phi < \hat\phi:\; g_i^V \leftarrow g_i^V + a\, g_j \text{ with cosine } \hat\phi,
        \qquad \hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi

    Sum-like. Its first step is PCGrad's. Keeps a number for each pair of tasks in each unit.

    Args:
        base: the optimizer that takes the step.
        beta: how fast targets follow, from 0 to 1.
        options: those of :class:`MultiTaskOptimizer`; ``seed`` is that of the orders.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``beta`` is out of its range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = GradVac(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], weight[1] - weight[0]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.5, 1.5]

    Source: Zirui Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models", 2021.
    """

    def __init__(self, base: Optimizer, *, beta: float = 0.5, **options: Unpack[Options]) -> None:
        super().__init__(base, GradVacMethod(beta), **options)
