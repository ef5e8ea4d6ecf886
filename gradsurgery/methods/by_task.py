"""Numbers that a method keeps for each task from step to step."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.gradients.places import picked
from gradsurgery.method import Seen


class ByTask:
    """A number of each of N tasks in each of S units; tasks that are absent keep theirs.

    Units that changed begin anew, and so does a task that is new.

    Args:
        start: what every number is at first.

    Example:
        >>> kept = ByTask(start=1.0)
        >>> seen = Seen(torch.eye(2)[None], None, (0, 2), ("a", "b", "c"), seed=0, step=0)
        >>> kept.set(seen, 5 * kept.get(seen, like=seen.gram[..., 0]))
        >>> kept.all
        tensor([[5., 1., 5.]])
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self.all: Tensor | None = None  # [S, N]

    def get(self, seen: Seen, like: Tensor) -> Tensor:  # [S, T] -> [S, T]
        """Gives the numbers of the tasks that take part, of the type and on the device of ``like``,
        which has one for each of them."""
        self.all = self._fitted(len(seen.names), like)
        return picked(self.all.T, seen.tasks).T

    def set(self, seen: Seen, values: Tensor) -> None:  # [S, T]
        """Takes new numbers of the tasks that take part, after :meth:`get`."""
        assert self.all is not None
        entries = list(self.all.unbind(-1))
        for task, entry in zip(seen.tasks, values.unbind(-1), strict=True):
            entries[task] = entry
        # In place, so that a captured CUDA graph goes on from what its last replay has left.
        self.all.copy_(torch.stack(entries, -1))

    def saved(self) -> Tensor | None:
        """Copies all of them."""
        return None if self.all is None else self.all.clone()

    def restore(self, saved: Tensor | None) -> None:
        """Takes back what :meth:`saved` gave."""
        self.all = None if saved is None else saved.clone()

    def _fitted(self, num_tasks: int, like: Tensor) -> Tensor:  # [S, N]
        old = self.all
        if old is not None and old.shape == (len(like), num_tasks):
            return old.to(like)
        fitted = like.new_full((len(like), num_tasks), self.start)
        if old is not None and len(old) == len(like):
            fitted[:, : old.shape[-1]] = old
        return fitted
