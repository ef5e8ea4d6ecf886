"""The options of an optimizer as attributes, which a user reads and, of most, may set."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch

from gradsurgery.method import Method, Weighting
from gradsurgery.optimizer.options import Granularity, OnNonfinite, Reduction, Scope
from gradsurgery.optimizer.proxy import Proxy, delegated
from gradsurgery.optimizer.tasks import Tasks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Attributes(Proxy):
    """Gives each option under its name; it lies with the collaborator whose business it is."""

    _tasks: Tasks

    on_nonfinite: OnNonfinite = delegated("_guard", "choice")
    process_group: ProcessGroup | None = delegated("_update", "process_group")
    reduction: Reduction = delegated("_settings", "reduction")
    scope: Scope = delegated("_settings", "scope")
    granularity: Granularity = delegated("_settings", "granularity")
    fused: bool | None = delegated("_settings", "fused")
    every: int = delegated("_settings", "every")
    start_step: int = delegated("_settings", "start_step")
    monitor: bool = delegated("_settings", "monitor")
    grad_scaler: torch.amp.GradScaler | None = delegated("_shown", "grad_scaler")
    seed: int = delegated("_surgery", "seed", "Seed of the random choices; the step counts too.")
    weighting: Method | Weighting = delegated("_surgery", "weighting", "Makes the tasks' weights.")

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks, those declared or those met so far."""
        return tuple(self._tasks.names)
