"""A block of a task, as `with optimizer.task(name) as block:` gives it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor


class TaskBlock:
    """A block of a task, in which every gradient is that task's.

    Args:
        name: of the task.
        note_loss: told of the losses that :meth:`backward` is given.
    """

    def __init__(self, name: Hashable, note_loss: Callable[[Tensor], None]) -> None:
        self.name = name
        self._note_loss = note_loss

    def backward(self, loss: Tensor, retain_graph: bool | None = None) -> None:
        """Runs ``loss.backward()``, and shows the loss to methods that ask for losses.

        Args:
            loss: a scalar; those of several calls add up.
            retain_graph: as in ``Tensor.backward``.
        """
        self._note_loss(loss)
        loss.backward(retain_graph=bool(retain_graph))
