"""Loss weights that are learned beside the model: by uncertainty, and IMTL-L."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.methods.learned import Learned, losses_of
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LearnedWeightsMethod(Method):
    """Weighs by what it learns of each task alone.

    Args:
        lr: learning rate of what is learned.
        weight_decay: how much of what is learned is added to its gradient.
    """

    needs_gram = False
    needs_losses = True
    has_known_weights = True
    _NAME = ""  # of the numbers, in the diagnostics

    def __init__(self, lr: float, weight_decay: float) -> None:
        self._learned = Learned(lr, weight_decay)

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        return self._weights_of(self._learned.get(seen))

    def learn(self, seen: Seen) -> None:
        numbers = self._learned.get(seen)
        self._learned.descend(seen, self._gradient(numbers, losses_of(seen)))

    def numbers(self) -> dict[str, Tensor]:  # [N]
        learned = self._learned.all
        return {} if learned is None else {self._NAME: learned}

    def state_dict(self) -> dict[str, Any]:
        return {self._NAME: self._learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learned.load_state_dict(state[self._NAME])

    def _weights_of(self, numbers: Tensor) -> Tensor:
        raise NotImplementedError

    def _gradient(self, numbers: Tensor, losses: Tensor) -> Tensor:
        raise NotImplementedError


class UncertaintyWeightingMethod(LearnedWeightsMethod):
    """Weighs by half of one over each task's variance."""

    _NAME = "log_variance"

    def _weights_of(self, numbers: Tensor) -> Tensor:
        return torch.exp(-numbers) / 2

    def _gradient(self, numbers: Tensor, losses: Tensor) -> Tensor:
        return (1 - torch.exp(-numbers) * losses) / 2


class IMTLLMethod(LearnedWeightsMethod):
    """Weighs by each task's scale."""

    _NAME = "log_scale"

    def _weights_of(self, numbers: Tensor) -> Tensor:
        return torch.exp(numbers)

    def _gradient(self, numbers: Tensor, losses: Tensor) -> Tensor:
        return torch.exp(numbers) * losses - 1


class UncertaintyWeighting(MultiTaskOptimizer):
    r"""Weighs each loss by one over a variance that is learned beside the model.

    .. math:: \sum_i \tfrac12 e^{-s_i}\, \ell_i + \tfrac12 s_i, \qquad
        u = \sum_i \tfrac12 e^{-s_i}\, g_i

    Log variances :math:`s_i` are 0 at first, as in TorchJD (LibMTL and nash-mtl begin at -0.5), so
    that weights are 1/2. They are learned by Adam with a learning rate of their own, once in each
    :meth:`step`; the paper and the other libraries learn them with the model's optimizer. The paper
    has no 1/2 before :math:`e^{-s_i}` for classification; this and the other libraries have it for
    every task.

    Costs the plain sum, in blocks too, which must show the loss: ``block.backward(loss)``. Weights
    go on the losses, and so reach task-specific parameters. Half of sum-like at first, and of a
    length of its own later: where :math:`s_i` has converged, weights are :math:`1 / 2 \ell_i`. A
    task that is absent keeps its log variance, and so does one whose loss is not finite, while the
    gradient of that loss goes where ``on_nonfinite`` says. A loss that stays at 0 or below makes
    its weight grow without end. ``diagnostics.numbers`` has ``log_variance``.

    Args:
        base: the optimizer that takes the step.
        lr: learning rate of the log variances; 0.025 as in nash-mtl's experiments.
        weight_decay: pulls log variances to 0.
        options: those of :class:`MultiTaskOptimizer`, but ``every``. With ``reduction="mean"``,
            blocks keep their gradients apart.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, ``lr`` or ``weight_decay`` is
            negative, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = UncertaintyWeighting(torch.optim.SGD([weight], lr=0.0), lr=0.1)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     optimizer.backward([weight[0], 4 * weight[1]])
        ...     optimizer.step()
        >>> [round(number, 3) for number in optimizer.diagnostics.weights.tolist()]
        [0.5, 0.452]

    Source: Alex Kendall, Yarin Gal and Roberto Cipolla, "Multi-Task Learning Using Uncertainty to
    Weigh Losses for Scene Geometry and Semantics", 2018.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        lr: float = 0.025,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, UncertaintyWeightingMethod(lr, weight_decay), **options)


class IMTLL(MultiTaskOptimizer):
    r"""Learns a scale for each loss that makes all losses equally large.

    .. math:: \sum_i e^{s_i}\, \ell_i - s_i, \qquad u = \sum_i e^{s_i}\, g_i

    Twice :class:`UncertaintyWeighting` with the sign of :math:`s_i` turned: a log scale of 0 at
    first, and so the plain sum; where it has converged, weights are :math:`1 / \ell_i`, and the
    update is that of the sum of the logarithms of the losses. Sum-like at first. All else is as
    there: scales are learned by Adam once in each :meth:`step`, at the price of the plain sum,
    blocks must show the loss, absent tasks keep their scale, and a loss that stays at 0 or below
    makes its weight grow without end. ``diagnostics.numbers`` has ``log_scale``.

    Args:
        base: the optimizer that takes the step.
        lr: learning rate of the log scales; 0.025 as in nash-mtl's experiments.
        weight_decay: pulls log scales to 0.
        options: those of :class:`MultiTaskOptimizer`, but ``every``. With ``reduction="mean"``,
            blocks keep their gradients apart.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, ``lr`` or ``weight_decay`` is
            negative, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = IMTLL(torch.optim.SGD([weight], lr=0.0), lr=0.1)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     optimizer.backward([weight[0], 4 * weight[1]])
        ...     optimizer.step()
        >>> [round(number, 2) for number in optimizer.diagnostics.weights.tolist()]
        [1.0, 0.25]

    Source: Liyang Liu et al., "Towards Impartial Multi-task Learning", 2021.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        lr: float = 0.025,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, IMTLLMethod(lr, weight_decay), **options)
