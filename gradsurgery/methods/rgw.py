"""RGW: random weights for the tasks' gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.gradients.places import picked
from gradsurgery.method import Method, Seen
from gradsurgery.methods.order import standard_normals
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import poisoned

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RGWMethod(Method):
    """Weighs by a softmax of normal numbers, of the seed and the step."""

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        # Of all tasks, so that a task's number does not depend on who else takes part.
        normals = standard_normals(len(seen.names), seen.seed, seen.step, seen.gram.device)
        weights = picked(normals, seen.tasks).to(seen.gram.dtype).softmax(-1)
        return poisoned(weights.expand(seen.gram.shape[:-1]), seen.gram)


class RGW(MultiTaskOptimizer):
    r"""Draws the weights of the tasks' gradients anew in each step: the control for every method.

    .. math:: u = \sum_i w_i\, g_i, \qquad w = \mathrm{softmax}(z), \quad z_i \sim \mathcal N(0, 1)

    Mean-like: the weights add up to 1, and on average each is 1/T. They depend on ``seed`` and step
    alone, so that a resumed run draws what the other would have, on every process alike.
    Task-specific parameters keep their plain gradients, for which gradients are kept apart; random
    weights of the *losses* lead to the same update of the shared parameters at the price of the
    plain sum.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`; ``seed`` is that of the weights.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = RGW(torch.optim.SGD([weight], lr=1.0), seed=7)
        >>> optimizer.backward([weight[0], weight[1]])
        >>> round(weight.grad.sum().item(), 6)
        1.0

    Source: Baijiong Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for
    Multi-Task Learning", 2022.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, RGWMethod(), **options)
