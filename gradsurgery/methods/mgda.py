"""MGDA: the shortest gradient that a mixture of the tasks' gradients can have."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradsurgery.solvers.cosines import cosines, poisoned
from gradsurgery.solvers.nonneg import nonneg

Normalizer = Literal["none", "l2", "loss", "loss+"]


def mgda_weights(
    gram: Tensor,  # [..., T, T]
    *,
    skip_zeros: bool = False,
    noise: float | None = None,
    fixed: bool | None = None,
) -> Tensor:  # [..., T]
    r"""Weights of the shortest vector in the convex hull of the gradients.

    .. math:: w = \arg\min_{w \ge 0,\, \sum w = 1} w^\top G w

    Mean-like: the weights sum to 1. The update is no longer than the shortest gradient, which
    therefore dominates; of orthogonal gradients :math:`w_i \propto 1 / \lVert g_i \rVert^2`. A
    gradient that is zero takes all the weight, and the update is zero, as the definition has it.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        skip_zeros: whether gradients that are zero are left out.
        noise: relative error of an inner product; by default the precision of ``gram``'s type.
        fixed: whether to do a fixed amount of work; by default away from the CPU.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight, 4) for weight in mgda_weights(gram).tolist()]
        [0.6, 0.4]

    Sources: Jean-Antoine Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
    optimization", 2012; Ozan Sener and Vladlen Koltun, "Multi-Task Learning as Multi-Objective
    Optimization", 2018.
    """
    matrix, lengths, present = cosines(gram, noise)
    # With s the shortest length over each, C x >= s (1 - s.x) is the condition for the shortest
    # vector, whose weights are s x up to a factor: a nonnegative program, whatever the lengths.
    lengths = torch.where(present, lengths, torch.inf)
    inverse = lengths.amin(-1, keepdim=True) / lengths
    inverse = torch.where(present, inverse, 0)
    outer = inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    weights = nonneg(matrix + outer, -inverse.unsqueeze(-2), fixed=fixed).squeeze(-2) * inverse
    zeros = (~present).to(gram.dtype)
    use_zeros = (~present).all(-1, keepdim=True) if skip_zeros else zeros.any(-1, keepdim=True)
    weights = torch.where(use_zeros, zeros, weights)
    return poisoned(weights / weights.sum(-1, keepdim=True), gram)
