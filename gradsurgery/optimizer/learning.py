"""What a method learns from the losses of a step, once it was taken, and from a second look."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.distributed.collectives import sum_over
from gradsurgery.distributed.replicas import Replicas
from gradsurgery.gradients.shards import mean_everywhere
from gradsurgery.method import Seen
from gradsurgery.optimizer.losses import GivenLosses, named
from gradsurgery.optimizer.step import Step
from gradsurgery.optimizer.surgery import Surgery
from gradsurgery.optimizer.tasks import Tasks


class Learning:
    """Shows a method the losses of each step, averaged over processes.

    Args:
        parameters: lists the optimizer's parameters.
        tasks: the tasks.
        surgery: whose method it is.
        diagnostics: told of the method's numbers.
        replicas: processes with the same parameters, if there are any.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterator[Tensor]],
        tasks: Tasks,
        surgery: Surgery,
        diagnostics: Diagnostics,
        replicas: Replicas | None,
    ) -> None:
        self._parameters = parameters
        self._tasks = tasks
        self._surgery = surgery
        self._diagnostics = diagnostics
        self._replicas = replicas

    @torch.no_grad()
    def learn(self, step: Step) -> None:
        """Shows the losses of a step that was taken."""
        method = self._surgery.method
        if method.learns and self._surgery.has_begun:
            self._show(method.learn, step.to_learn)

    @torch.no_grad()
    def look_again(self, losses: GivenLosses) -> None:
        """Shows the losses of the step's examples after it."""
        is_nothing = isinstance(losses, Mapping) and not losses and self._replicas is not None
        # Without examples here, while other processes have some.
        given = {} if is_nothing else named(losses, self._tasks.declared, have_graphs=False)
        by_task = {
            self._tasks.number(self._tasks.check(name)): self._surgery.shown.unscaled(loss)
            for name, loss in given.items()
        }
        self._show(self._surgery.method.look_again, by_task)

    def check_scaler(self) -> None:
        """Refuses a step that ``GradScaler`` takes, where losses were seen that it had scaled.

        Raises:
            ValueError: with the remedy.
        """
        surgery = self._surgery
        if surgery.shown.grad_scaler is None and surgery.method.needs_losses and _steps_scaled():
            raise ValueError(
                f"grad_scaler: must be given to {type(surgery.method).__name__}, which looks at "
                "losses and must see them unscaled; set optimizer.grad_scaler = scaler before the "
                "first backward"
            )

    def _show(self, what: Callable[[Seen], None], losses: Mapping[int, Tensor]) -> None:
        device = next(self._parameters()).device
        if self._replicas is not None:
            losses = self._averaged(losses, self._replicas, device)
        of_tasks = sorted(losses)
        if not of_tasks:
            return
        seen = torch.stack([losses[task].to(device) for task in of_tasks])
        names, clock = tuple(self._tasks.names), self._surgery.clock
        what(
            Seen(
                None,
                mean_everywhere(seen, self._parameters()),
                tuple(of_tasks),
                names,
                clock.seed,
                clock.on(device),
            )
        )
        self._diagnostics.record_numbers(self._surgery.method.numbers())

    def _averaged(
        self, losses: Mapping[int, Tensor], replicas: Replicas, device: torch.device
    ) -> dict[int, Tensor]:
        """Averages losses over the replicas; that of a task that none of them had is NaN."""
        told = torch.zeros(2, len(self._tasks), dtype=torch.float64, device=device)
        for task, loss in losses.items():
            told[0, task] = loss
            told[1, task] = 1
        total, num_had = sum_over(told, replicas.group)
        mean = torch.where(num_had > 0, total / replicas.group.size(), torch.nan)
        return dict(enumerate(mean))


def _steps_scaled() -> bool:
    """Tells whether the step under way is one that an enabled ``GradScaler`` takes."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.amp.grad_scaler":
            return bool(frame.f_locals["self"].is_enabled())
        frame = frame.f_back  # type: ignore[assignment]
    return False
