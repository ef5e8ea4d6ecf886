"""The options of every optimizer, written once: what constructors pass on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Literal, TypedDict

import torch

from gradsurgery.arguments import Shared
from gradsurgery.gradients.sketch import Sketch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["sum", "mean"]
Scope = Literal["shared", "all"]
OnNonfinite = Literal["propagate", "raise", "skip_task", "skip_step"]
Granularity = Literal["model", "group", "tensor"]
Memory = Literal["rows", "sketch"] | Sketch
Monitor = bool | Literal["sketch"] | Sketch


class SumOptions(TypedDict, total=False):
    """Options that every optimizer has; :class:`MultiTaskOptimizer` says what they mean."""

    tasks: Iterable[Hashable] | None
    scope: Scope
    shared: Shared | None
    on_nonfinite: OnNonfinite
    buffer_dtype: torch.dtype | None
    buffer_device: Literal["cpu"] | None
    fused: bool | None
    process_group: ProcessGroup | None


class Options(SumOptions, total=False):
    """Options of every method; :class:`MultiTaskOptimizer` says what they mean."""

    reduction: Reduction
    granularity: Granularity
    memory: Memory
    seed: int
    every: int
    start_step: int
    grad_scaler: torch.amp.GradScaler | None
    warn: bool
