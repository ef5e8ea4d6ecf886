"""The weights of the last surgery, for the steps until the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.arguments import check_integer, check_places
from gradsurgery.gradients import dot_grad
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.rows import Units


class LastWeights:
    """Keeps what the tasks' gradients were multiplied by, and to which parameters that went."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}  # by task, in each unit
        # The unit of every parameter that several tasks reached, and of those of one task.
        self._shared: dict[Tensor, int] = {}
        self._alone: dict[Tensor, int] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def keep(
        self,
        buffer: GradientBuffer,
        units: Units,
        weights: Tensor,  # [S, T], by slot
        *,
        alone: bool,
    ) -> None:
        """Takes note of a surgery.

        Args:
            buffer: whose gradients it was.
            units: which parameters went together.
            weights: of the slots, in each unit.
            alone: whether they also went to parameters that one task alone reached.
        """
        self._of = dict(zip(buffer.slots, weights.unbind(-1), strict=True))
        self._shared = {p: units.of(p)[0] for p in buffer.shared()}
        touched = buffer.touched() if alone else []
        self._alone = {p: units.of(p)[0] for p in touched if p not in self._shared}

    @property
    def shared(self) -> list[Tensor]:
        """The parameters that several tasks reached, of one unit."""
        return list(self._shared)

    def of(self, task: int, *, mean: bool) -> Tensor:  # [2]
        """The weight of a task for the shared parameters and for those that one task alone reached,
        where there is one unit.

        Args:
            task: its number.
            mean: as in :meth:`scale`.
        """
        (weight,) = self._of[task]
        of_shared = weight / len(self._of) if mean else weight
        return torch.stack([of_shared, weight if self._alone else torch.ones_like(weight)])

    def where_finite(self, buffer: GradientBuffer, weights: Tensor) -> Tensor:  # [S, T], by slot
        """Gives new weights, or where one is not finite those that are kept, or else 1."""
        old = [self._of.get(task, torch.ones_like(weights[:, 0])) for task in buffer.slots]
        return torch.where(weights.isfinite().all(), weights, torch.stack(old, -1).to(weights))

    def scale(self, task: int, grads: Mapping[Tensor, Tensor], *, mean: bool) -> None:
        """Multiplies a task's gradients by its last weight, in place.

        Args:
            task: its number; one that took no part in the last surgery is left as it is.
            grads: by parameter.
            mean: whether the sum over shared parameters is divided by the number of tasks.
        """
        if task not in self._of:
            return
        weights = self._of[task]
        of_shared = weights / len(self._of) if mean else weights
        for parameters, factors in ((self._shared, of_shared), (self._alone, weights)):
            alike: dict[int, list[Tensor]] = {}
            for parameter, grad in grads.items():
                if parameter in parameters:
                    alike.setdefault(parameters[parameter], []).append(grad)
            for unit, scaled in alike.items():
                dot_grad.multiply(scaled, factors[unit])

    def state_dict(self, parameters: Sequence[Tensor]) -> dict[str, Any]:
        """The weights, and the parameters by their places among all."""
        places = {parameter: place for place, parameter in enumerate(parameters)}
        return {
            "last_weights": {task: weight.clone() for task, weight in self._of.items()},
            "last_shared": {places[p]: u for p, u in self._shared.items() if p in places},
            "last_alone": {places[p]: u for p, u in self._alone.items() if p in places},
        }

    def check_state(self, state: Mapping[str, Any], num_tasks: int, num_parameters: int) -> None:
        """Refuses weights that none can have, before anything is changed.

        Raises:
            TypeError, ValueError: with what was found.
        """
        sizes = {
            "last_weights": num_tasks,
            "last_shared": num_parameters,
            "last_alone": num_parameters,
        }
        for name, number in sizes.items():
            kept = state.get(name, {})
            if not isinstance(kept, Mapping):
                raise TypeError(
                    f"state_dict: {name} must be a mapping, found {type(kept).__name__}; take "
                    "another checkpoint"
                )
            check_places(f"state_dict: {name}", list(kept), number)
        weights = list(state.get("last_weights", {}).values())
        for weight in weights:
            if not (_is_own(weight) and weight.is_floating_point() and weight.ndim == 1):
                raise TypeError(
                    "state_dict: last_weights must be floating tensors in 1-d, found "
                    f"{type(weight).__name__}; take another checkpoint"
                )
        num_units = min(map(len, weights), default=0)
        for name in ("last_shared", "last_alone"):
            for unit in state.get(name, {}).values():
                if check_integer(f"state_dict: {name}", unit, at_least=0) >= num_units:
                    raise ValueError(
                        f"state_dict: {name} must be below the {num_units} units of last_weights, "
                        f"found {unit}; take another checkpoint"
                    )

    def load_state_dict(self, state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Takes them back, none where the state has none."""
        self._of = {
            task: weight.to(parameters[0].device, copy=True)
            for task, weight in state.get("last_weights", {}).items()
        }
        self._shared = {parameters[i]: u for i, u in state.get("last_shared", {}).items()}
        self._alone = {parameters[i]: u for i, u in state.get("last_alone", {}).items()}


def _is_own(found: object) -> bool:
    """Tells whether it is a tensor that holds its own numbers."""
    return (
        isinstance(found, Tensor)
        and found.layout == torch.strided
        and not found.is_meta
        and found.is_contiguous()
    )
