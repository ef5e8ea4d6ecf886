"""CR-MOGM: an average over steps of the weights of any other method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import FromGram, Method, Seen, Weighting
from gradsurgery.methods.by_task import ByTask
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CRMOGMMethod(Method):
    """Averages the weights of a method over steps, those of each task by themselves.

    All that the method learns from losses, and shows of it, goes to it and comes from it. Its
    weights may be known before the losses, their average is not: it changes when it is taken.

    Args:
        method: whose weights change from step to step.
        alpha: share of the old average.

    Raises:
        ValueError: ``alpha`` is out of its range, or nothing changes the weights of the method.
    """

    def __init__(self, method: Method, alpha: float) -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha: must be at least 0 and below 1, got {alpha}")
        if method.has_fixed_weights:
            raise ValueError(
                f"weighting: must have weights that change, got {type(method).__name__}; use it "
                "without an average"
            )
        self.method = method
        self.alpha = alpha
        self.needs_gram = method.needs_gram
        self.needs_losses = method.needs_losses
        self._average = ByTask(start=torch.nan)  # NaN where there were no weights yet

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        new = self.method.weights(seen).detach()
        new = new.sum(-2) if new.ndim == 3 else new  # of a method that projects
        old = self._average.get(seen, like=new)
        average = torch.where(old.isnan(), new, self.alpha * old + (1 - self.alpha) * new)
        # Weights that are not finite spoil this update, not those of all steps to come; and where
        # no gradient is shared they tell nothing.
        counts = average.isfinite().all(-1, keepdim=True)
        if seen.gram is not None:
            counts &= (seen.gram.diagonal(dim1=-2, dim2=-1) != 0).any(-1, keepdim=True)
        self._average.set(seen, torch.where(counts, average, old))
        return average

    @property
    def learns(self) -> bool:
        return self.method.learns

    def learn(self, seen: Seen) -> None:
        self.method.learn(seen)

    def look_again(self, seen: Seen) -> None:
        self.method.look_again(seen)

    def numbers(self) -> Mapping[str, Tensor]:
        return self.method.numbers()

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.saved(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self._average.restore(state["average"])


class CRMOGM(MultiTaskOptimizer):
    r"""Averages the weights of any other method over steps.

    .. math:: u = \sum_i \bar w_i\, g_i, \qquad
        \bar w \leftarrow \alpha\, \bar w + (1 - \alpha)\, w

    The first weights of a task are its first average. Costs what the other method costs, and is as
    long as its update usually is. What a method promises of every step, such as to conflict with no
    task, holds no longer. A task that is absent keeps its average, and so do all where every
    gradient is zero.

    Args:
        base: the optimizer that takes the step.
        weighting: whose weights are averaged: a class of this library, which is taken with its
            defaults, such as ``MGDA``; that of one made with options, as in
            ``CAGrad(base, c=0.5).weighting``; or all that :class:`MultiTaskOptimizer` takes.
        alpha: share of the old average, from 0 to below 1; 0.9 in TorchJD.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError: as :class:`MultiTaskOptimizer`, or ``weighting`` is another class.
        ValueError: as :class:`MultiTaskOptimizer`, ``alpha`` is out of its range, or the weights of
            ``weighting`` are fixed.

    Example:
        >>> from gradsurgery import MGDA
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = CRMOGM(torch.optim.SGD([weight], lr=1.0), MGDA, alpha=0.5)
        >>> for length in (2, 1):
        ...     optimizer.zero_grad()
        ...     optimizer.backward([weight[0], length * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]  # of (0.8, 0.2) and (0.5, 0.5)
        [0.65, 0.35]

    Source: Shiji Zhou et al., "On the Convergence of Stochastic Multi-Objective Gradient
    Manipulation and Beyond", 2022.
    """

    def __init__(
        self,
        base: Optimizer,
        weighting: type[MultiTaskOptimizer] | Method | Weighting,
        *,
        alpha: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        given = _with_defaults(weighting, base) if isinstance(weighting, type) else weighting
        method = given if isinstance(given, Method) else FromGram(given)
        super().__init__(base, CRMOGMMethod(method, alpha), **options)


def _with_defaults(optimizer: type[Any], base: Optimizer) -> Method | Weighting:
    """Gives the weighting of a class of optimizers."""
    if not issubclass(optimizer, MultiTaskOptimizer):
        raise TypeError(
            "weighting: must be a class of this library's optimizers, a Method or a callable gram "
            f"-> weights, got the class {optimizer.__name__}; make an object of it"
        )
    made: MultiTaskOptimizer = optimizer(base)  # type: ignore[call-arg]
    return made.weighting
