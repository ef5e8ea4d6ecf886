"""DWA: weights of the losses by how slowly each of them falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_integer
from gradsurgery.gradients.places import picked
from gradsurgery.method import Method, Seen
from gradsurgery.methods.by_task import ByTask
from gradsurgery.methods.learned import check_number, losses_of, zeros
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def dwa_weights(
    last: Tensor,  # [..., N]
    before: Tensor,  # [..., N]
    temperature: float = 2.0,
) -> Tensor:  # [..., N]
    r"""Weights that are larger for losses that fell less.

    .. math:: w_i = N\, \frac{e^{r_i / \tau}}{\sum_j e^{r_j / \tau}}, \qquad
        r_i = \frac{\bar\ell_i(t - 1)}{\bar\ell_i(t - 2)}

    A rate that is not finite, as of a loss that was 0 or is not known (NaN), counts as 1: the loss
    has not changed.

    Args:
        last: mean losses of the last window, ``[..., N]``.
        before: mean losses of the window before it, ``[..., N]``.
        temperature: above 0; the larger, the more alike are the weights.

    Returns:
        Weights ``[..., N]``, which add up to N.

    Example:
        >>> weights = dwa_weights(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [1.1244, 0.8756]

    Source: Shikun Liu, Edward Johns and Andrew J. Davison, "End-to-End Multi-Task Learning with
    Attention", 2019.
    """
    rates = last / before
    rates = torch.where(rates.isfinite(), rates, 1)
    return torch.softmax(rates / temperature, -1) * rates.shape[-1]


class DWAMethod(Method):
    """Weighs by :func:`dwa_weights` of means over windows of steps.

    Args:
        temperature: that of the softmax.
        window: how many steps with a task make one of its windows; ``None`` for windows that end
            where :meth:`end_window` is called.
    """

    needs_gram = False
    needs_losses = True
    has_known_weights = True

    def __init__(self, temperature: float, window: int | None) -> None:
        self.temperature = check_number("temperature", temperature)
        if not self.temperature > 0:
            raise ValueError(f"temperature: must be above 0, got {temperature}")
        self.window = None if window is None else check_integer("window", window, at_least=1)
        starts = {"sum": 0.0, "count": 0.0, "last": torch.nan, "before": torch.nan}
        self._kept = {name: ByTask(start) for name, start in starts.items()}

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        everybody = replace(seen, tasks=tuple(range(len(seen.names))), losses=None)
        _, _, last, before = self._get(everybody)
        weights = dwa_weights(last, before, self.temperature)
        return picked(weights.T, seen.tasks).T

    def learn(self, seen: Seen) -> None:
        losses = losses_of(seen)
        total, count, last, before = self._get(seen)
        is_finite = losses.isfinite()
        total = torch.where(is_finite, total + losses, total)
        count = count + is_finite
        has_ended = is_finite & (count >= (torch.inf if self.window is None else self.window))
        self._set(seen, total, count, last, before, has_ended)

    def end_window(self) -> None:
        """Ends the window of every task that took part in it."""
        values = [kept.all for kept in self._kept.values()]
        if any(value is None for value in values):
            return
        total, count, last, before = (value.clone() for value in values if value is not None)
        names = tuple(range(total.shape[-1]))
        seen = Seen(None, total[0], names, names, seed=0, step=0)
        self._set(seen, total, count, last, before, count > 0)

    def numbers(self) -> dict[str, Tensor]:  # [N]
        return {
            f"{name}_window": kept.all[0]
            for name, kept in self._kept.items()
            if name in ("last", "before") and kept.all is not None
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: kept.saved() for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, kept in self._kept.items():
            kept.restore(state[name])

    def _get(self, seen: Seen) -> list[Tensor]:  # [1, T] each
        return [kept.get(seen, zeros(seen)) for kept in self._kept.values()]

    def _set(
        self,
        seen: Seen,
        total: Tensor,
        count: Tensor,
        last: Tensor,
        before: Tensor,
        has_ended: Tensor,
    ) -> None:
        """Keeps all numbers, those of a new window where one has ended."""
        new = (
            torch.where(has_ended, 0, total),
            torch.where(has_ended, 0, count),
            torch.where(has_ended, total / count, last),
            torch.where(has_ended, last, before),
        )
        for kept, values in zip(self._kept.values(), new, strict=True):
            kept.set(seen, values)


class DWA(MultiTaskOptimizer):
    r"""Dynamic Weight Average: weighs each loss by how slowly it has fallen.

    .. math:: u = \sum_i w_i\, g_i, \qquad w = N\, \mathrm{softmax}(r / \tau), \qquad
        r_i = \frac{\bar\ell_i(t - 1)}{\bar\ell_i(t - 2)}

    with :math:`\bar\ell_i(t)` the mean of a task's loss over a window. The paper's window is an
    epoch, as in TorchJD and LibMTL; here it is 25 steps by default, as in nash-mtl, or what ends
    with :meth:`end_epoch`. Weights are 1 until two windows are over.

    Costs the plain sum, in blocks too, which must show the loss: ``block.backward(loss)``. Weights
    go on the losses, and so reach task-specific parameters. Sum-like: the weights of all N known
    tasks add up to N, whichever of them take part. Windows are each task's own, and absent tasks
    keep theirs. A loss that is not finite is left out of its window; a loss that was 0 throughout
    one has no rate, and counts as one that did not change. Rates mean what the paper says for
    losses above 0. ``diagnostics.numbers`` has ``last_window`` and ``before_window``.

    Args:
        base: the optimizer that takes the step.
        temperature: :math:`\tau`, above 0; 2 in the paper.
        window: steps of a task that make a window; ``None`` where :meth:`end_epoch` ends it.
        options: those of :class:`MultiTaskOptimizer`, but ``every``. With ``reduction="mean"``,
            blocks keep their gradients apart.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, ``temperature`` or ``window`` is out
            of its range, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = DWA(torch.optim.SGD([weight], lr=0.1), window=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     optimizer.backward([weight[0], weight[1] + 9])
        ...     optimizer.step()
        >>> [round(number, 3) for number in optimizer.diagnostics.weights.tolist()]
        [0.978, 1.022]

    Source: Shikun Liu, Edward Johns and Andrew J. Davison, "End-to-End Multi-Task Learning with
    Attention", 2019.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        temperature: float = 2.0,
        window: int | None = 25,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, DWAMethod(temperature, window), **options)

    def end_epoch(self) -> None:
        """Ends the window of every task; with ``window=None`` nothing else does."""
        method = self.weighting
        assert isinstance(method, DWAMethod)
        method.end_window()
