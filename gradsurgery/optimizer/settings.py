"""The settings of a surgery, checked: what is weighted, over which parameters, in which steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import kernels
from gradsurgery.arguments import Shared, check_choice, check_integer, parameters_in
from gradsurgery.gradients.sketch import Sketch
from gradsurgery.method import Method
from gradsurgery.optimizer.options import (
    Granularity,
    Memory,
    Monitor,
    OnNonfinite,
    Reduction,
    Scope,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class Settings:
    """Options of :class:`gradsurgery.MultiTaskOptimizer` that say how surgery is performed.

    Raises:
        TypeError, ValueError: an option is out of its range.
    """

    reduction: Reduction
    scope: Scope
    granularity: Granularity
    every: int
    start_step: int
    fused: bool | None
    monitor: bool
    sketch: Sketch | None = None

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, ("sum", "mean"))
        check_choice("scope", self.scope, ("shared", "all"))
        check_choice("granularity", self.granularity, ("model", "group", "tensor"))
        kernels.choose(self.fused)
        if self.sketch is not None and self.granularity != "model":
            raise ValueError(
                'granularity: must be "model" where memory="sketch", which keeps one sketch of a '
                f"task, got {self.granularity!r}"
            )
        self.every = check_integer("every", self.every, at_least=1)
        self.start_step = check_integer("start_step", self.start_step, at_least=0)


def shared_parameters(
    shared: Shared | None,
    base: Optimizer,
    scope: Scope,
    on_nonfinite: OnNonfinite,
    process_group: ProcessGroup | None,
) -> frozenset[Tensor] | None:
    """Collects the parameters that are declared as shared, if any are.

    Raises:
        TypeError, ValueError: ``base`` has not all of them, or another option cannot be kept.
    """
    if shared is None:
        return None
    if scope == "all":
        raise ValueError('shared: must be left out where scope="all"; choose one of the two')
    if process_group is not None and on_nonfinite == "skip_task":
        raise ValueError(
            'on_nonfinite: must not be "skip_task" where there are shared= and process_group=; '
            'choose "skip_step"'
        )
    return parameters_in("shared", shared, base)


def check_host(device: object, memory: Memory, process_group: ProcessGroup | None) -> None:
    """Refuses a device for the tasks' gradients that they cannot be kept on.

    Raises:
        ValueError: in one line.
    """
    if device is None:
        return
    if device not in ("cpu", torch.device("cpu")):
        raise ValueError(f'buffer_device: must be None or "cpu", got {device!r}')
    if memory != "rows":
        raise ValueError(
            f"buffer_device: must be left out where memory={memory!r}, which keeps no gradients"
        )
    if process_group is not None:
        raise ValueError(
            "buffer_device: must be left out where there is a process_group, whose processes "
            "average rows on their devices; shard the model with fully_shard() instead"
        )


def sketch_of(
    memory: Memory, monitor: Monitor, method: Method, on_nonfinite: OnNonfinite
) -> Sketch | None:
    """Tells how gradients are sketched, if they are.

    Raises:
        ValueError: an option is none of its choices, or another cannot be kept.
    """
    sketch = _sketch("memory", memory, "rows")
    of_monitor = None if isinstance(monitor, bool) else _sketch("monitor", monitor, False)
    if of_monitor is not None and not method.has_fixed_weights:
        raise ValueError(
            f"monitor: must be a bool for {type(method).__name__}, whose weights are not fixed; "
            'choose memory="sketch" for a method that looks at gradients'
        )
    if sketch is not None and not method.needs_gram:
        sketch = None  # nothing of size T·P to be saved
    sketch = sketch or of_monitor
    if sketch is not None and on_nonfinite == "skip_task":
        raise ValueError(
            'on_nonfinite: must not be "skip_task" where gradients are sketched, which keeps none '
            'apart; choose "skip_step"'
        )
    return sketch


def _sketch(argument: str, found: object, other: object) -> Sketch | None:
    """Reads an option that asks for a sketch, or has its other value."""
    if isinstance(found, Sketch):
        return found
    if found == "sketch":
        return Sketch()
    if found == other:
        return None
    raise ValueError(f'{argument}: must be {other!r}, "sketch" or a Sketch, got {found!r}')
