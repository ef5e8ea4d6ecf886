"""Sums of the losses: the plain one, and one with fixed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from gradsurgery.method import FixedWeights
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Monitor, Options, SumOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LossSum(MultiTaskOptimizer):
    r"""The plain sum of the losses: what multi-task training does without surgery.

    .. math:: u = \sum_t g_t

    Costs what ``sum(losses).backward()`` costs and keeps no gradients apart, unless it monitors.

    Args:
        base: the optimizer that takes the step.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        monitor: gather the diagnostics of conflicts, for the memory and passes of surgery, without
            changing the update; with ``"sketch"``, or a :class:`Sketch` with options, within about
            :math:`1/\sqrt{k}` of the gradients' lengths, for k numbers a task.
        scope, shared, buffer_dtype, fused: of the monitor, as in :class:`MultiTaskOptimizer`.
        on_nonfinite, process_group: as in :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LossSum(torch.optim.SGD(model.parameters(), lr=0.1), monitor=True)
        >>> optimizer.backward([model(torch.ones(1, 2)).sum(), -model(torch.ones(1, 2)).sum()])
        >>> optimizer.diagnostics.cosines.round().tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        monitor: Monitor = False,
        **options: Unpack[SumOptions],
    ) -> None:
        self._sum(base, FixedWeights(), monitor, options)

    def _sum(
        self,
        base: torch.optim.Optimizer,
        method: FixedWeights,
        monitor: Monitor,
        options: SumOptions,
    ) -> None:
        given = dict(options)
        for name in Options.__optional_keys__ - SumOptions.__optional_keys__:
            if name in given:
                raise TypeError(
                    f"{name}: must be left out of {type(self).__name__}, to which it makes no "
                    f"difference, got {given[name]!r}"
                )
        # It needs no two tasks, and so has nothing to warn of.
        MultiTaskOptimizer.__init__(self, base, method, monitor=monitor, warn=False, **options)


class WeightedSum(LossSum):
    r"""A sum of the losses with fixed weights.

    .. math:: u = \sum_t w_t\, g_t

    Args:
        base: the optimizer that takes the step.
        weights: finite numbers of at least 0, as a mapping of task names or in the order of
            ``tasks``.
        tasks: the names that :meth:`task` admits; by default those of the mapping, or the numbers
            from 0 on.
        monitor, scope, shared, on_nonfinite, buffer_dtype, fused, process_group: as in
            :class:`LossSum`;
            the diagnostics are those of the tasks' own gradients, before the weights.

    Raises:
        TypeError: a weight is not a number, and as :class:`MultiTaskOptimizer`.
        ValueError: a weight is negative or not finite, or they are not one for each task, and as
            :class:`MultiTaskOptimizer`.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = WeightedSum(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), {"a": 1.0, "b": 0.5}
        ... )
        >>> optimizer.backward({name: model(torch.ones(1, 2)).sum() for name in ("a", "b")})
        >>> model.weight.grad.tolist()
        [[1.5, 1.5]]
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        weights: Mapping[Any, float] | Sequence[float],
        *,
        monitor: Monitor = False,
        **options: Unpack[SumOptions],
    ) -> None:
        tasks = options.get("tasks")
        if not isinstance(weights, (Mapping, Sequence)):
            raise TypeError(
                f"weights: must be a mapping or a sequence, got {type(weights).__name__}; "
                "give one for each task"
            )
        given = dict(weights if isinstance(weights, Mapping) else enumerate(weights))
        if not given:
            raise ValueError("weights: must hold at least one weight, got none")
        names = list(given) if tasks is None else list(tasks)
        if not isinstance(weights, Mapping) and len(names) == len(given):
            given = dict(zip(names, given.values(), strict=True))
        if set(names) != set(given):
            raise ValueError(
                f"weights: must be one for each of the tasks {names}, got {len(given)} for "
                f"{list(given)}"
            )
        for name, weight in given.items():
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise TypeError(
                    f"weights: must be numbers, got {type(weight).__name__} for task {name!r}"
                )
            if not (math.isfinite(weight) and float(weight) >= 0):
                raise ValueError(
                    f"weights: must be finite and at least 0, got {weight} for task {name!r}"
                )
        options["tasks"] = names
        method = FixedWeights({})
        self._sum(base, method, monitor, options)
        # By the names as the tasks have them, which may be of another type.
        self.weights = {name: float(given[name]) for name in self._tasks.names}
        method.by_name = self.weights
