"""RLW: random weights of the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.gradients.places import picked
from gradsurgery.method import Method, Seen
from gradsurgery.methods.learned import zeros
from gradsurgery.methods.order import standard_normals
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RLWMethod(Method):
    """Weighs by the softmax of normal numbers, one for each known task.

    Args:
        are_declared: whether all tasks are known from the first block on.
    """

    needs_gram = False

    def __init__(self, are_declared: bool) -> None:
        self.has_known_weights = are_declared

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        like = zeros(seen)
        drawn = standard_normals(len(seen.names), seen.seed, seen.step, like.device)
        return picked(torch.softmax(drawn.to(like), 0), seen.tasks)[None]


class RLW(MultiTaskOptimizer):
    r"""Random Loss Weighting: weighs the losses by chance.

    .. math:: u = \sum_i w_i\, g_i, \qquad w = \mathrm{softmax}(z), \quad z_i \sim N(0, 1)

    What any method that weighs losses should be compared with. Numbers are drawn anew in every
    step from ``seed`` and the step alone, so that processes and a resumed training draw alike and
    the global random state is left alone. Mean-like: the weights of all N known tasks add up to 1,
    whichever of them take part.

    Costs the plain sum, with :meth:`backward`, and in blocks where ``tasks`` are declared; else
    blocks keep their gradients apart, because a sum over all tasks needs all of them. Weights go on
    the losses, and so reach task-specific parameters. Losses may be anything, and need not be
    shown.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`, but ``every``. With ``reduction="mean"``,
            blocks keep their gradients apart.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = RLW(torch.optim.SGD([weight], lr=0.1), seed=7)
        >>> optimizer.backward([weight[0], weight[1]])
        >>> round(optimizer.diagnostics.weights.sum().item(), 6)
        1.0

    Source: Baijiong Lin, Feiyang Ye, Yu Zhang and Ivor W. Tsang, "Reasonable Effectiveness of
    Random Weighting: A Litmus Test for Multi-Task Learning", 2022.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, RLWMethod(options.get("tasks") is not None), **options)
