"""Losses as a method sees them: unscaled, averaged over shards, finite where tasks are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.shards import mean_everywhere
from gradsurgery.optimizer.tasks import Tasks


class ShownLosses:
    """Prepares losses for a method.

    Args:
        parameters: lists the optimizer's parameters.
        tasks: the tasks.
        fills: whether a loss that is not finite is seen as the mean of the others.
        grad_scaler: what the losses were scaled by.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterator[Tensor]],
        tasks: Tasks,
        fills: bool,
        grad_scaler: torch.amp.GradScaler | None,
    ) -> None:
        self._parameters = parameters
        self._tasks = tasks
        self._fills = fills
        self.grad_scaler = grad_scaler

    def unscaled(self, loss: Tensor) -> Tensor:  # []
        """Gives a loss without its graph and without the scale of ``GradScaler``."""
        loss = loss.detach().view(())
        if self.grad_scaler is None:
            return loss.clone()  # what it is a view of may change before the method learns from it
        return loss / self.grad_scaler.scale(torch.ones((), device=loss.device))

    def seen(self, of_tasks: Sequence[int], losses: Mapping[int, Tensor]) -> Tensor:  # [T]
        """Gives the losses of some tasks, each of which must be known."""
        self.check(of_tasks, losses)
        stacked = torch.stack([losses[task] for task in of_tasks])
        seen = mean_everywhere(stacked, self._parameters())
        if not self._fills:
            return seen
        is_finite = seen.isfinite()
        num_finite = is_finite.sum()
        mean = torch.where(is_finite, seen, 0).sum() / num_finite
        return torch.where(is_finite, seen, torch.where(num_finite > 0, mean, 1))

    def check(self, of_tasks: Sequence[int], losses: Mapping[int, Tensor]) -> None:
        """Refuses tasks without a loss.

        Raises:
            ValueError: with their names.
        """
        missing = [self._tasks.names[task] for task in of_tasks if task not in losses]
        if missing:
            raise ValueError(
                f"losses: must be known to this method, those of the tasks {missing} are not; call "
                "optimizer.backward(losses), or `with optimizer.task(name) as block:` and "
                "block.backward(loss)"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy steps at times of its own, and needs a scaler of its own.
        return {**vars(self), "grad_scaler": None}
