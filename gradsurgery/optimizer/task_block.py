"""What ``with optimizer.task(name) as block:`` gives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType

from torch import Tensor

from gradsurgery.gradients.dot_grad import Grads


class TaskBlock:
    """A block of a task, in which every gradient is that task's.

    Args:
        name: of the task.
        enter: called when the block begins.
        leave: called when it ends, with the error that ended it, if one did.

    Attributes:
        losses: those that :meth:`backward` was given.
        outside: gradients that are hidden meanwhile.
    """

    def __init__(
        self,
        name: Hashable,
        enter: Callable[[TaskBlock], None],
        leave: Callable[[TaskBlock, BaseException | None], None],
    ) -> None:
        self.name = name
        self.losses: list[Tensor] = []
        self.outside: Grads = {}
        self._enter = enter
        self._leave = leave

    # Not a generator with contextlib's decorator: that takes four times as long.
    def __enter__(self) -> TaskBlock:
        self._enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self, error)

    def backward(self, loss: Tensor, retain_graph: bool | None = None) -> None:
        """Runs ``loss.backward()``, and shows the loss to methods that ask for losses.

        Args:
            loss: a scalar; those of several calls add up.
            retain_graph: as in ``Tensor.backward``.
        """
        self.losses.append(loss)
        loss.backward(retain_graph=bool(retain_graph))
