"""FAMO: all losses fall at one rate, by a second look at them after the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.methods.by_task import ByTask
from gradsurgery.methods.learned import Learned, check_given, given_by_name, losses_of, zeros
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.optimizer.witness import warn

if TYPE_CHECKING:
    from typing_extensions import Unpack

_EPSILON = 1e-8  # added to every loss above its bound, as in all implementations


def famo_weights(
    logits: Tensor,  # [..., T]
    losses: Tensor,  # [..., T]
) -> Tensor:  # [..., T]
    r"""Weights of the logarithms of the losses, as weights of the losses themselves.

    .. math:: w_i = c\, \frac{z_i}{\ell_i}, \qquad z = \mathrm{softmax}(\xi), \qquad
        c = \Bigl(\sum_j \frac{z_j}{\ell_j}\Bigr)^{-1}

    which is the softmax of :math:`\xi_i - \log \ell_i`. Mean-like: they add up to 1.

    Args:
        logits: :math:`\xi`, ``[..., T]``.
        losses: above 0, ``[..., T]``; with one below 0 all weights are NaN.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> weights = famo_weights(torch.zeros(2), torch.tensor([1.0, 3.0]))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.75, 0.25]

    Source: Bo Liu, Yihao Feng, Peter Stone and Qiang Liu, "FAMO: Fast Adaptive Multitask
    Optimization", 2023.
    """
    return torch.softmax(logits - torch.log(losses + _EPSILON), -1)


class FAMOMethod(Method):
    """Weighs by :func:`famo_weights` with logits that it learns from second looks.

    Args:
        lr: learning rate of the logits.
        weight_decay: how much of a logit is added to its gradient.
        min_losses: bounds that are taken off the losses, by name of the task.
        warns: whether to warn once of steps without a second look.
    """

    needs_gram = False
    needs_losses = True

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        min_losses: Mapping[Any, float] | None,
        warns: bool,
    ) -> None:
        self.min_losses = check_given("min_losses", min_losses)
        self._logits = Learned(lr, weight_decay)
        self._before = ByTask(torch.nan)  # losses of the last step
        self._waits = False  # for the second look at them
        self._warns = warns

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        return famo_weights(self._logits.get(seen), self._above_bounds(seen))

    def learn(self, seen: Seen) -> None:
        if self._waits and self._warns:
            self._warns = False
            warn(
                "FAMO: two steps without a second look between them, and so weights that learn "
                "nothing; call optimizer.look_again(losses) after each step(), with losses of the "
                "same examples (warn=False silences this)"
            )
        self._waits = True
        if self._before.all is not None:  # a task that takes no part has no loss before the step
            self._before.all.fill_(torch.nan)
        self._before.get(seen, zeros(seen))
        self._before.set(seen, self._above_bounds(seen))

    def look_again(self, seen: Seen) -> None:
        if not self._waits:
            return  # the step was left out
        self._waits = False
        fall = torch.log(self._before.get(seen, zeros(seen)) + _EPSILON)
        fall = fall - torch.log(self._above_bounds(seen) + _EPSILON)
        is_known = fall.isfinite()
        shares = torch.softmax(torch.where(is_known, self._logits.get(seen), -torch.inf), -1)
        mean = (shares * torch.where(is_known, fall, 0)).sum(-1, keepdim=True)
        self._logits.descend(seen, shares * (fall - mean))

    def numbers(self) -> dict[str, Tensor]:  # [N]
        logits = self._logits.all
        return {} if logits is None else {"logit": logits}

    def state_dict(self) -> dict[str, Any]:
        return {
            "logits": self._logits.state_dict(),
            "before": self._before.saved(),
            "waits": self._waits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logits.load_state_dict(state["logits"])
        self._before.restore(state["before"])
        self._waits = bool(state["waits"])

    def _above_bounds(self, seen: Seen) -> Tensor:  # [1, T]
        losses = losses_of(seen)
        if self.min_losses is None:
            return losses
        return losses - given_by_name("min_losses", self.min_losses, seen)


class FAMO(MultiTaskOptimizer):
    r"""Fast Adaptive Multitask Optimization: lets all losses fall at one rate.

    .. math:: u = \sum_i w_i\, g_i, \qquad w_i = c\, \frac{z_i}{\ell_i - b_i}, \qquad
        z = \mathrm{softmax}(\xi)

    with :math:`c` such that weights add up to 1: mean-like. After the step, the losses of the same
    examples say how far each of them fell, and Adam moves the logits :math:`\xi`, 0 at first,
    against the gradient of :math:`\sum_i z_i (\log(\ell_i - b_i) - \log(\ell_i' - b_i))`:

    .. code-block:: python

        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()
        with torch.no_grad():
            optimizer.look_again(model.losses(batch))

    Without that call weights only follow the losses, :math:`w_i \propto 1 / (\ell_i - b_i)`, and
    there is one warning.

    Costs the plain sum and a second forward pass with :meth:`backward`; in blocks, which must show
    the loss (``block.backward(loss)``), gradients are kept apart, because :math:`c` depends on all
    losses. Weights go on the losses, and so reach task-specific parameters. Losses must be above
    their bounds; one that is below makes the update NaN, one that reaches its bound takes nearly
    all the weight. A task that is absent, or whose loss is not finite, keeps its logit. The
    authors' training scripts also clip the gradient to a norm of 1.
    ``diagnostics.numbers`` has ``logit``.

    Args:
        base: the optimizer that takes the step.
        lr: learning rate of the logits; 0.025 in the paper.
        weight_decay: of the logits; 1e-3 in the paper's algorithm, TorchJD and LibMTL, 1e-5 or
            0.01 in the authors' code.
        min_losses: :math:`b_i`, by names of the tasks; 0 by default.
        options: those of :class:`MultiTaskOptimizer`, but ``every``.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, a number is out of its range, or a
            loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> def losses():
        ...     return [weight[0].square(), 3 * weight[1].square()]
        >>> optimizer = FAMO(torch.optim.SGD([weight], lr=0.1))
        >>> optimizer.backward(losses())
        >>> optimizer.step()
        >>> optimizer.look_again(losses())
        >>> [round(number, 2) for number in optimizer.diagnostics.weights.tolist()]
        [0.75, 0.25]

    Source: Bo Liu, Yihao Feng, Peter Stone and Qiang Liu, "FAMO: Fast Adaptive Multitask
    Optimization", 2023.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: Mapping[Any, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        method = FAMOMethod(lr, weight_decay, min_losses, options.get("warn", True))
        super().__init__(base, method, **options)
