"""UPGrad and DualProj: gradients projected so that no task's loss rises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from operator import mul
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import cosines, poisoned, ridge, times
from gradsurgery.solvers.nonneg import nonneg
from gradsurgery.solvers.plain import Matrix, cosines_of, lengths_of, nonneg_of, on_host

if TYPE_CHECKING:
    from typing_extensions import Unpack


def upgrad_weights(
    gram: Tensor,  # [..., T, T]
    preference: Tensor | None = None,  # [T]
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the mean of the gradients, each projected onto the cone in which none conflicts.

    .. math::
        u = \sum_i p_i\, \pi_K(g_i), \qquad
        K = \{v : g_j \cdot v \ge 0 \text{ for all } j\}

    Mean-like, with :math:`p_i = 1 / T`. The update conflicts with no gradient, and is linear in the
    length of each: a task with short gradients is protected like any other. For two tasks it is
    half of PCGrad's. Without a conflict the weights are the preference. A gradient that is zero is
    no constraint. Costs T small quadratic programs.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        preference: p, ``[T]``; by default 1 / T.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``, none below the preference.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in upgrad_weights(gram).tolist()]
        [1.1111, 0.7895]

    Source: Pierre Quinton and Valérian Rey, "Jacobian Descent for Multi-Objective Optimization",
    2024.
    """
    usual = _on_host(gram, preference, noise, fixed, _upgrad_of)
    if usual is not None:
        return usual
    matrix, lengths, present = cosines(gram, noise)
    preferred = _preferred(preference, lengths)
    more = nonneg(matrix, matrix, fixed=fixed)  # row i: what is added to gradient i, in cosines
    scaled = torch.where(present, preferred * lengths, 0)
    added = (scaled.unsqueeze(-1) * more).sum(-2) / lengths
    return poisoned(preferred + added, gram)


def dualproj_weights(
    gram: Tensor,  # [..., T, T]
    preference: Tensor | None = None,  # [T]
    *,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the mean gradient, projected onto the cone in which no gradient conflicts.

    .. math::
        u = \pi_K\Bigl(\sum_i p_i\, g_i\Bigr), \qquad
        K = \{v : g_j \cdot v \ge 0 \text{ for all } j\}

    Mean-like, with :math:`p_i = 1 / T`. The update conflicts with no gradient, but unlike UPGrad's
    is not linear in the length of each. Without a conflict between a gradient and the mean the
    weights are the preference. A gradient that is zero is no constraint.

    Args:
        gram, preference, noise, fixed: as in :func:`upgrad_weights`.

    Returns:
        Weights ``[..., T]``, none below the preference.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in dualproj_weights(gram).tolist()]
        [0.6111, 0.5]

    Sources: David Lopez-Paz and Marc'Aurelio Ranzato, "Gradient Episodic Memory for Continual
    Learning", 2017; Pierre Quinton and Valérian Rey, "Jacobian Descent for Multi-Objective
    Optimization", 2024.
    """
    usual = _on_host(gram, preference, noise, fixed, _dualproj_of)
    if usual is not None:
        return usual
    matrix, lengths, present = cosines(gram, noise)
    preferred = _preferred(preference, lengths)
    wanted = torch.where(present, preferred * lengths, 0)
    largest = wanted.abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, 1, largest)
    linear = times(matrix, wanted / largest)
    more = nonneg(matrix, linear.unsqueeze(-2), fixed=fixed).squeeze(-2)
    return poisoned(preferred + torch.where(present, more, 0) * largest / lengths, gram)


def _preferred(preference: Tensor | None, lengths: Tensor) -> Tensor:
    if preference is None:
        return torch.full_like(lengths, 1 / lengths.shape[-1])
    return preference.to(lengths)


def _on_host(
    gram: Tensor,  # [..., T, T]
    preference: Tensor | None,  # [T]
    noise: float | None,
    fixed: bool | None,
    added_of: Callable[[Matrix, list[float]], list[float] | None],
) -> Tensor | None:  # [..., T]
    """Solves few usual problems; ``added_of`` finds what is added to the preference, in lengths."""

    def of_one(matrix: Matrix) -> list[float] | None:
        lengths = lengths_of(matrix)
        if lengths is None:
            return None
        preferred = [1 / len(matrix)] * len(matrix) if preference is None else preference.tolist()
        wanted = [p * length for p, length in zip(preferred, lengths, strict=True)]
        added = added_of(cosines_of(matrix, lengths, 1 + ridge(gram, noise)), wanted)
        if added is None:
            return None
        every = zip(preferred, added, lengths, strict=True)
        return [p + number / length for p, number, length in every]

    return on_host(gram, of_one, fixed=fixed)


def _upgrad_of(matrix: Matrix, wanted: list[float]) -> list[float] | None:
    added = [0.0] * len(wanted)
    for row, scale in zip(matrix, wanted, strict=True):
        if min(row) < 0:
            more = nonneg_of(matrix, row)
            if more is None:
                return None
            added = [a + scale * b for a, b in zip(added, more, strict=True)]
    return added


def _dualproj_of(matrix: Matrix, wanted: list[float]) -> list[float] | None:
    largest = max(map(abs, wanted))
    if not largest:
        return None
    shares = [number / largest for number in wanted]
    more = nonneg_of(matrix, [sum(map(mul, row, shares)) for row in matrix])
    return None if more is None else [largest * number for number in more]


class ProjectionMethod(Method):
    """Weighs by :func:`upgrad_weights` or :func:`dualproj_weights`, with a preference by task."""

    def __init__(
        self, weigh: Callable[..., Tensor], preference: Mapping[Any, float] | Sequence[float] | None
    ) -> None:
        for number in [] if preference is None else _numbers(preference):
            if not (isinstance(number, Real) and math.isfinite(number) and number > 0):
                raise ValueError(f"preference: must be finite numbers above 0, got {number!r}")
        self.preference = preference
        self._weigh = weigh

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        if self.preference is None:
            return self._weigh(seen.gram, noise=seen.noise)
        present = [seen.names[task] for task in seen.tasks]
        if isinstance(self.preference, Mapping):
            missing = [name for name in present if name not in self.preference]
            chosen = [self.preference[name] for name in present if name in self.preference]
        else:
            missing = [seen.names[task] for task in seen.tasks if task >= len(self.preference)]
            chosen = [self.preference[task] for task in seen.tasks if task < len(self.preference)]
        if missing:
            raise ValueError(
                f"preference: must have a number for every task, has none for {missing}; add them"
            )
        like = seen.gram[0, 0, 0]
        return self._weigh(
            seen.gram, torch.stack([like.new_full((), p) for p in chosen]), noise=seen.noise
        )


def _numbers(preference: Mapping[Any, float] | Sequence[float]) -> Sequence[float]:
    return list(preference.values()) if isinstance(preference, Mapping) else preference


class UPGrad(MultiTaskOptimizer):
    r"""Projects each task's gradient so that it conflicts with no other, and takes their mean.

    .. math:: u = \sum_i p_i\, \pi_K(g_i), \qquad K = \{v : g_j \cdot v \ge 0 \text{ for all } j\}

    Mean-like. Conflicts with no task, however short its gradient. For two tasks it is half of
    PCGrad's update.

    Args:
        base: the optimizer that takes the step.
        preference: p, numbers above 0 by name of the task or in the order of ``tasks``; by default
            1 / T.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or a preference is not above 0.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = UPGrad(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], weight[1] - weight[0]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.25, 0.75]

    Source: Pierre Quinton and Valérian Rey, "Jacobian Descent for Multi-Objective Optimization",
    2024.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        preference: Mapping[Any, float] | Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, ProjectionMethod(upgrad_weights, preference), **options)


class DualProj(MultiTaskOptimizer):
    r"""Projects the mean gradient so that it conflicts with no task's.

    .. math::
        u = \pi_K\Bigl(\sum_i p_i\, g_i\Bigr), \qquad
        K = \{v : g_j \cdot v \ge 0 \text{ for all } j\}

    Mean-like. Conflicts with no task.

    Args:
        base, preference, options: as in :class:`UPGrad`.

    Raises:
        TypeError, ValueError: as :class:`UPGrad`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = DualProj(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], weight[1] - 3 * weight[0]])
        >>> [round(number, 4) + 0.0 for number in weight.grad.tolist()]
        [0.0, 0.5]

    Sources: David Lopez-Paz and Marc'Aurelio Ranzato, "Gradient Episodic Memory for Continual
    Learning", 2017; Pierre Quinton and Valérian Rey, "Jacobian Descent for Multi-Objective
    Optimization", 2024.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        preference: Mapping[Any, float] | Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, ProjectionMethod(dualproj_weights, preference), **options)
