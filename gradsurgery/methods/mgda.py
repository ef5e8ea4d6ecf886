"""MGDA: the shortest gradient that a mixture of the tasks' gradients can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_choice
from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import cosines, poisoned, ridge
from gradsurgery.solvers.nonneg import nonneg

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    return shortest(gram, skip_zeros=skip_zeros, noise=noise, fixed=fixed)


def shortest(
    gram: Tensor,  # [..., T, T]
    *,
    skip_zeros: bool = False,
    noise: float | None = None,
    fixed: bool | None = None,
    sharp: bool = False,
) -> Tensor:  # [..., T]
    """Finds :func:`mgda_weights`; ``sharp`` takes back what the ridge changes, by solving twice:
    about 1e-9 of the shortest gradient where gradients nearly cancel, and less elsewhere."""
    matrix, lengths, present = cosines(gram, noise)
    # With s the shortest length over each, C x >= s (1 - s.x) is the condition for the shortest
    # vector, whose weights are s x up to a factor: a nonnegative program, whatever the lengths.
    lengths = torch.where(present, lengths, torch.inf)
    inverse = lengths.amin(-1, keepdim=True) / lengths
    inverse = torch.where(present, inverse, 0)
    matrix = matrix + inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    linear = -inverse.unsqueeze(-2)
    x = nonneg(matrix, linear, fixed=fixed)
    if sharp:  # a proximal step: the ridge draws to x instead of to 0
        x = nonneg(matrix, linear - ridge(gram, noise) * x, fixed=fixed)
    weights = x.squeeze(-2) * inverse
    zeros = (~present).to(gram.dtype)
    use_zeros = (~present).all(-1, keepdim=True) if skip_zeros else zeros.any(-1, keepdim=True)
    weights = torch.where(use_zeros, zeros, weights)
    return poisoned(weights / weights.sum(-1, keepdim=True), gram)


class MGDAMethod(Method):
    """Weighs by :func:`mgda_weights` of gradients that may be normalised first."""

    def __init__(self, normalizer: Normalizer, skip_zeros: bool) -> None:
        check_choice("normalizer", normalizer, ("none", "l2", "loss", "loss+"))
        self.normalizer = normalizer
        self.skip_zeros = skip_zeros
        self.needs_losses = "loss" in normalizer

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        units = torch.ones_like(seen.gram[..., 0])
        if self.normalizer in ("l2", "loss+"):
            lengths = seen.gram.diagonal(dim1=-2, dim2=-1).sqrt()
            units = torch.where(lengths == 0, 1, lengths)
        if seen.losses is not None:
            units = units * seen.losses.to(units)
        gram = seen.gram / units.unsqueeze(-1) / units.unsqueeze(-2)
        return mgda_weights(gram, skip_zeros=self.skip_zeros, noise=seen.noise) / units


class MGDA(MultiTaskOptimizer):
    r"""Takes the shortest vector in the convex hull of the tasks' gradients.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \arg\min_{w \ge 0,\, \sum w = 1} w^\top G w

    Mean-like, and no longer than the shortest gradient, which dominates; a task whose gradient is
    zero stops training unless ``skip_zeros``. Conflicts with no task.

    Args:
        base: the optimizer that takes the step.
        normalizer: what each gradient is divided by first: ``"none"`` as in the paper, its length
            (``"l2"``), its ``"loss"``, or both (``"loss+"``, as in the published experiments). With
            lengths the update has one of its own, which ``GradScaler`` cannot scale.
        skip_zeros: whether gradients that are zero are left out.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``normalizer`` is none of these.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = MGDA(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], 2 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [0.8, 0.4]

    Sources: Jean-Antoine Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
    optimization", 2012; Ozan Sener and Vladlen Koltun, "Multi-Task Learning as Multi-Objective
    Optimization", 2018.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        normalizer: Normalizer = "none",
        skip_zeros: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, MGDAMethod(normalizer, skip_zeros), **options)
