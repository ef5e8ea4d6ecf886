"""Gradients with NaN or infinity in them: found and dropped without reading them on the host."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from gradsurgery.arguments import check_choice
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.distributed.collectives import largest_over
from gradsurgery.distributed.replicas import Replicas
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.memory import real
from gradsurgery.gradients.shards import is_spread, local, true_everywhere
from gradsurgery.optimizer.options import OnNonfinite
from gradsurgery.optimizer.step import Handling
from gradsurgery.optimizer.tasks import Tasks


def is_finite(grads: Collection[Tensor]) -> Tensor:  # []
    """Tells whether every number of some gradients is finite, on the first one's device.

    Example:
        >>> is_finite([torch.ones(2), torch.tensor([0.0, float("inf")])])
        tensor(False)
    """
    # The largest absolute value: unlike the sum of the squares it cannot overflow by itself.
    filled = [real(grad) for grad in grads if grad.numel()]
    if not filled:
        return torch.ones((), dtype=torch.bool, device=next(iter(grads)).device)
    norms = torch._foreach_norm(filled, torch.inf)
    device = norms[0].device
    return torch.stack([n.to(device, torch.float64) for n in norms]).isfinite().all()


def drop_unless(finite: Tensor, grads: Collection[Tensor]) -> None:
    """Sets gradients to zero unless they are all finite, in place.

    Args:
        finite: what :func:`is_finite` says of them, ``[]``.
        grads: the gradients.
    """
    for grad in grads:
        grad.masked_fill_(~finite.to(grad.device, non_blocking=True), 0)


def drop_tasks(tasks: Collection[int], buffer: GradientBuffer) -> None:
    """Sets what a buffer keeps of some tasks to zero."""
    if not tasks:
        return
    for parameter in buffer.touched():
        for task, grad in buffer.grads_of(parameter).items():
            if task in tasks:
                grad.zero_()


class Guard:
    """Acts on gradients that are not finite.

    One process acts at the end of the block that made it. Of several with examples of their own
    none may, because the others may have no such block: each remembers what it saw, and all act
    when they agree on what any of them saw.

    Args:
        choice: ``on_nonfinite``.
        tasks: the tasks.
        diagnostics: where every such gradient is counted.
        replicas: such other processes.

    Raises:
        ValueError: ``choice`` is none.
    """

    def __init__(
        self,
        choice: OnNonfinite,
        tasks: Tasks,
        diagnostics: Diagnostics,
        replicas: Replicas | None = None,
    ) -> None:
        check_choice("on_nonfinite", choice, ("propagate", "raise", "skip_task", "skip_step"))
        self.choice = choice
        self._tasks = tasks
        self._diagnostics = diagnostics
        self._replicas = replicas

    @property
    def looks(self) -> bool:
        """Tells whether each task's gradients must be looked at."""
        return self.choice != "propagate"

    def handling(self, of_surgery: Handling) -> Handling:
        """Decides what becomes of gradients, where each block's may have to be looked at."""
        if of_surgery == "apart" or not self.looks:
            return of_surgery
        return "held" if self.holds else "weighted"

    @property
    def asks(self) -> bool:
        """Tells whether surgery must wait for what the other processes saw."""
        return self._replicas is not None and self.choice in ("raise", "skip_task")

    @property
    def holds(self) -> bool:
        """Tells whether gradients must not be added up before."""
        return self._replicas is not None and self.choice == "skip_task"

    @property
    def drops(self) -> bool:
        """Tells whether :meth:`look` may write to the gradients."""
        return self._replicas is None and self.choice == "skip_task"

    def look(self, task: int, grads: Collection[Tensor]) -> Tensor | None:  # []
        """Looks at the gradients of a task that a block has made, and acts on them.

        Returns:
            Whether they are not finite, where that must be remembered.

        Raises:
            FloatingPointError: they are not, and ``choice`` is ``"raise"``.
        """
        if not (self.looks and grads):
            return None
        finite = is_finite([local(grad) for grad in grads])
        if any(is_spread(grad) for grad in grads):
            finite = true_everywhere(finite, list(grads))
        if self._replicas is not None:
            return ~finite
        found = torch.zeros(len(self._tasks), dtype=torch.bool, device=finite.device)
        found[task] = ~finite
        self._diagnostics.count_nonfinite(found)
        if self.choice == "skip_step":
            return ~finite
        if self.choice == "skip_task":
            drop_unless(finite, [local(grad) for grad in grads])
        else:
            self._raise_for(found)
        return None

    def act(self, failed: Tensor) -> None:  # [N]
        """Acts on what the processes agreed on: which tasks have a gradient that is not finite.

        Raises:
            FloatingPointError: one has, and ``choice`` is ``"raise"``.
        """
        self._diagnostics.count_nonfinite(failed)
        if self.choice == "raise":
            self._raise_for(failed)

    def must_skip(self, flags: Tensor) -> bool:  # [N] of uint8
        """Tells whether a gradient of the step was not finite, on any process; reads the device."""
        if self._replicas is not None:
            flags = largest_over(flags, self._replicas.group)
            self.act(flags.bool())
        return bool(flags.any())

    def _raise_for(self, failed: Tensor) -> None:  # [N]
        for task, has_failed in enumerate(failed.tolist()):
            if has_failed:
                where = " on some process" if self._replicas is not None else ""
                raise FloatingPointError(
                    f"task {self._tasks.names[task]!r}: gradients must be finite, found NaN or "
                    f"infinity{where}; look at the task's loss, or choose another on_nonfinite"
                )
