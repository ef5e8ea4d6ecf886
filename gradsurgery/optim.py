"""The methods: the plain sum of the losses, a weighted sum, and PCGrad."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import kernels
from gradsurgery.arguments import Shared, check_integer
from gradsurgery.buffer import GradientBuffer
from gradsurgery.last_weights import LastWeights
from gradsurgery.nonfinite import OnNonfinite
from gradsurgery.rows import Units
from gradsurgery.step import Handling
from gradsurgery.weighting import pcgrad_weights, projection_order
from gradsurgery.wrapper import Granularity, MultiTaskOptimizer, Weighting

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class LossSum(MultiTaskOptimizer):
    r"""The plain sum of the losses: what multi-task training does without surgery.

    .. math:: u = \sum_t g_t

    Costs what ``sum(losses).backward()`` costs and keeps no gradients apart, unless it monitors.

    Args:
        base: the optimizer that takes the step.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        monitor: gather the diagnostics of conflicts, for the memory and passes of surgery, without
            changing the update.
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
        base: Optimizer,
        *,
        tasks: Iterable[Hashable] | None = None,
        monitor: bool = False,
        scope: Literal["shared", "all"] = "shared",
        shared: Shared | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            base,
            _ones,
            tasks=tasks,
            scope=scope,
            shared=shared,
            on_nonfinite=on_nonfinite,
            buffer_dtype=buffer_dtype,
            fused=fused,
            process_group=process_group,
            warn=False,  # it needs no two tasks
        )
        self.monitor = monitor

    def _choose_handling(self) -> Handling:
        return "weighted" if self.monitor else "plain"

    def _watches(self) -> bool:
        return self.monitor


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
        base: Optimizer,
        weights: Mapping[Any, float] | Sequence[float],
        *,
        tasks: Iterable[Hashable] | None = None,
        monitor: bool = False,
        scope: Literal["shared", "all"] = "shared",
        shared: Shared | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
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
        super().__init__(
            base,
            tasks=names,
            monitor=monitor,
            scope=scope,
            shared=shared,
            on_nonfinite=on_nonfinite,
            buffer_dtype=buffer_dtype,
            fused=fused,
            process_group=process_group,
        )
        self.weights = {name: float(given[name]) for name in self._tasks.names}

    def _choose_handling(self) -> Handling:
        return "weighted"

    def _weigh(self, grams: Tensor, of_tasks: Sequence[int]) -> tuple[Tensor, None]:
        weights = [grams.new_full((len(grams),), self._loss_weight(task)) for task in of_tasks]
        return torch.stack(weights, dim=-1), None

    def _loss_weight(self, task: int) -> float:
        return self.weights[self._tasks.names[task]]


class PCGrad(MultiTaskOptimizer):
    r"""Projects each task's gradient onto the normal plane of those it conflicts with.

    For every task i, over the other tasks j in random order:

    .. math::
        g_i^{PC} \leftarrow g_i^{PC}
        - \frac{\min(0,\; g_i^{PC} \cdot g_j)}{\lVert g_j \rVert^2} g_j, \qquad u = \sum_i g_i^{PC}

    Args:
        base: the optimizer that takes the step.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        reduction: ``"sum"`` as in the paper, or ``"mean"`` for the sum over the shared parameters
            divided by T.
        scope: ``"shared"``, or ``"all"`` to project task-specific parameters as well, as older
            implementations do; heads then weaken the projection of the trunk.
        shared: the parameters or modules that may count as shared, where the graph cannot tell, as
            in :class:`MultiTaskOptimizer`; by default all.
        granularity: conflicts are found and removed over the ``"model"`` as in the paper, in each
            parameter ``"group"`` of ``base``, or in each ``"tensor"``.
        seed: of the orders, which are a function of ``(seed, step)`` alone.
        every: surgery in every ``every``-th step; the steps between use the last weights as weights
            of the losses on the shared parameters, at the price of the plain sum.
        start_step: steps of plain loss sum before the first surgery, whatever the reduction.
        on_nonfinite: ``"propagate"``, ``"raise"``, ``"skip_task"`` or ``"skip_step"``, as in
            :class:`MultiTaskOptimizer`.
        buffer_dtype: type in which the tasks' gradients are kept; that of the gradients by default.
        fused: ``None`` takes the best kernels there are, ``False`` the reference, ``True`` insists.
        process_group: processes with the same parameters and examples of their own, as in
            :class:`MultiTaskOptimizer`.
        warn: whether to warn, once, of a step that had no surgery because it had not two tasks, and
            of what else :class:`MultiTaskOptimizer` warns of.

    Raises:
        TypeError: ``base`` is not an optimizer, or a whole number is not one.
        ValueError: ``base`` has no parameters, or an option is out of its range.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
        >>> for name, inputs in {"a": torch.ones(3, 2), "b": torch.zeros(3, 2)}.items():
        ...     with optimizer.task(name):
        ...         model(inputs).sum().backward()
        >>> optimizer.step()
        >>> optimizer.diagnostics.weights.tolist()
        [1.0, 1.0]

    Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        tasks: Iterable[Hashable] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        scope: Literal["shared", "all"] = "shared",
        shared: Shared | None = None,
        granularity: Granularity = "model",
        seed: int = 0,
        every: int = 1,
        start_step: int = 0,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
        warn: bool = True,
    ) -> None:
        every = check_integer("every", every, at_least=1)
        start_step = check_integer("start_step", start_step, at_least=0)
        super().__init__(
            base,
            cast("Weighting", pcgrad_weights),
            tasks=tasks,
            reduction=reduction,
            scope=scope,
            shared=shared,
            granularity=granularity,
            seed=seed,
            on_nonfinite=on_nonfinite,
            buffer_dtype=buffer_dtype,
            fused=fused,
            process_group=process_group,
            warn=warn,
        )
        self.every = every
        self.start_step = start_step
        self._last = LastWeights()

    def _choose_handling(self) -> Handling:
        since = self._clock.num_steps - self.start_step
        if since < 0:
            return "plain"
        return "apart" if since % self.every == 0 or not self._last else "weighted"

    def _weigh(self, grams: Tensor, of_tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        order = projection_order(len(of_tasks), self.seed, self._clock.on(grams.device))
        chosen = kernels.choose(self.fused, grams.device)
        coefficients: Tensor = chosen.pcgrad_coefficients(grams, order)
        return coefficients.sum(-2), coefficients

    def _write(self, buffer: GradientBuffer, units: Units, weights: Tensor) -> None:
        if self.every > 1:
            self._last.keep(buffer, units, weights, alone=self.scope == "all")
        super()._write(buffer, units, weights)

    def _scale(self, task: int, grads: Mapping[Tensor, Tensor]) -> None:
        self._last.scale(task, grads, mean=self.reduction == "mean")

    def _must_see_each_task(self) -> bool:
        return True

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), **self._last.state_dict(list(self._parameters()))}

    def _load_own_state(self, own: Mapping[str, Any] | None) -> None:
        super()._load_own_state(own)
        if own is not None:
            self._last.load_state_dict(own, list(self._parameters()))


def _ones(gram: Tensor) -> Tensor:  # [T, T] -> [T]
    return gram.new_ones(gram.shape[0])
