"""The parts of an optimizer that all who act on a step's gradients are handed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from gradsurgery.distributed.replicas import Replicas
from gradsurgery.optimizer.nonfinite import Guard
from gradsurgery.optimizer.step import Step
from gradsurgery.optimizer.surgery import Surgery
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.witness import Witness


@dataclass(eq=False, repr=False)
class Parts:
    """Holds them.

    Args:
        parameters: lists the optimizer's parameters.
        tasks: the tasks.
        step: the step under way.
        surgery: decides where gradients go, weighs them, and makes one of the tasks'.
        guard: looks for gradients that are not finite.
        replicas: processes with the same parameters, if there are any.
        witness: told of every block and every surgery.
        shared: the parameters that may count as shared, where they were declared.
    """

    _parameters: Callable[[], Iterator[Tensor]]
    _tasks: Tasks
    _step: Step
    _surgery: Surgery
    _guard: Guard
    _replicas: Replicas | None
    _witness: Witness
    _shared: frozenset[Tensor] | None
