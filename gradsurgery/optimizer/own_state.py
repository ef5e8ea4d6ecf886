"""What a checkpoint holds besides the base optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.optimizer.step import Step
from gradsurgery.optimizer.surgery import Surgery
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.update import Update


class OwnState:
    """Saves what an exact resume needs of tasks, surgery, step and diagnostics; takes it back.

    Args:
        parameters: lists the optimizer's parameters.
        tasks, step, surgery, diagnostics: those whose state it is.
        update: told to begin anew when a state is taken back.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterator[Tensor]],
        tasks: Tasks,
        step: Step,
        surgery: Surgery,
        update: Update,
        diagnostics: Diagnostics,
    ) -> None:
        self._parameters = parameters
        self._tasks = tasks
        self._step = step
        self._surgery = surgery
        self._diagnostics = diagnostics
        self._update = update

    def state_dict(self) -> dict[str, Any]:
        """Gives what ``torch.load(weights_only=True)`` reads."""
        return {
            **self._surgery.state_dict(),
            **self._step.state_dict(list(self._parameters())),
            "tasks": list(self._tasks.names),
            "diagnostics": self._diagnostics.state_dict(),
        }

    def check(self, own: Mapping[str, Any]) -> None:
        """Refuses a state, before anything is changed.

        Raises:
            TypeError, ValueError: with what was found.
        """
        self._tasks.check_saved(own["tasks"])
        self._surgery.check_state(own)
        self._diagnostics.check_state(own["diagnostics"], len(own["tasks"]))
        self._step.check_state(own, sum(1 for _ in self._parameters()))

    def load_state_dict(self, own: Mapping[str, Any] | None) -> None:
        """Takes the state back, where the checkpoint has it, and forgets the step under way."""
        self._update.begin_anew()
        if own is None:
            return
        self._tasks.restore([self._tasks.check(name) for name in own["tasks"]])
        self._surgery.load_state_dict(own)
        parameters = list(self._parameters())
        self._step.load_state_dict(own, parameters)
        self._diagnostics.load_state_dict(own["diagnostics"], parameters[0].device)
