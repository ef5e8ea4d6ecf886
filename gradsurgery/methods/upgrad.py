"""UPGrad and DualProj: gradients projected so that no task's loss rises."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import cosines, poisoned, times
from gradsurgery.solvers.nonneg import nonneg


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
