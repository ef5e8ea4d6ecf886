"""Sees which tasks each step had, and warns where they were too few for any surgery."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor

NUM_SETTLED_STEPS = 20  # without a new task, after which a new one may be a misspelt one

_FOREIGN = ("contextlib", "gradsurgery", "torch")
_BLOCK = "`with optimizer.task(name):`"


class Witness:
    """Sees which tasks a step has, and warns once if surgery never had two of them together.

    Args:
        method: the optimizer's name, with which its warnings begin.
        speaks: whether there are warnings.
        declared: names of the tasks, where there can be no others; a single one is never missed.
        least: how many tasks a step needs, 1 or 2.

    Example:
        >>> witness = Witness("PCGrad", speaks=True, declared=None)
        >>> witness.saw(["a"])
        >>> witness.reason().partition(";")[0]
        "the step had one task only, 'a'"
    """

    def __init__(
        self,
        method: str,
        speaks: bool,
        declared: Sequence[Hashable] | None,
        least: int = 2,
    ) -> None:
        self._method = method
        self._least = least
        self._speaks = speaks
        self._listens = speaks and (declared is None or len(declared) > 1)
        self._num_settled_steps = 0
        self.forget()

    def forget(self) -> None:
        """Begins a step, with no gradients."""
        self._had_two = False  # before, and their gradient may still be there
        self._begin()

    def end(self) -> None:
        """Begins a step, with the gradients of the last."""
        self._had_two = not self._misses()
        self._num_settled_steps += 1
        self._begin()

    def _begin(self) -> None:
        self._num_asked = self._num_entered = 0  # blocks
        self._in_grad: set[Hashable] = set()  # tasks whose gradients went to `.grad` at once
        self._last: Hashable = None
        self._most = 0  # tasks together in one surgery
        self._num_alone = 0  # surgeries of one task
        self._is_outside = False

    def asked(self) -> None:
        """A block is asked for; only `with` enters it."""
        self._num_asked += 1

    def entered(self) -> None:
        """A block begins."""
        self._num_entered += 1

    def met(self, name: Hashable, *, in_grad: bool = False) -> None:
        """A task has gradients, which await surgery or were added to `.grad` at once."""
        self._last = name
        if in_grad:
            self._in_grad.add(name)

    def met_new(self, name: Hashable, names: Sequence[Hashable]) -> None:
        """Warns of a task that comes after many steps that had none but the others."""
        if self._speaks and names and self._num_settled_steps >= NUM_SETTLED_STEPS:
            warn(
                f"{self._method}: task {name!r} is new after {self._num_settled_steps} steps with "
                f"no tasks but {list(names)}; if that is a misspelt name, mend it, and declare "
                "tasks= to have other names refused (warn=False silences this)"
            )
        self._num_settled_steps = 0

    def found_early(self, what: str) -> None:
        """Warns of somebody who looks for gradients before surgery."""
        warn(f"{self._method}: {what} (warn=False silences this)")

    def looks_outside(self, parameters: Iterable[Tensor]) -> None:
        """Notes before a surgery whether `.grad` holds gradients that no surgery made."""
        if self._misses() and not (self._most or self._in_grad):
            self._is_outside = _has_gradient(parameters)

    def saw(self, names: Sequence[Hashable]) -> None:
        """A surgery has some tasks, on any process."""
        self._last = names[-1]
        self._most = max(self._most, len(names))
        self._num_alone += len(names) == 1

    def testify(self, parameters: Iterable[Tensor]) -> None:
        """Warns, for the first and last time, of a step on gradients that had not two tasks."""
        is_old = self._had_two and not (self._num_asked or self._most or self._in_grad)
        if self._misses() and not is_old and _has_gradient(parameters):
            reason, self._listens = self.reason(), False
            needed = "two tasks" if self._least == 2 else "a task"
            warn(
                f"{self._method}: a step without surgery, which needs {needed}: {reason} "
                "(warn=False silences this)"
            )

    def reason(self) -> str:
        """Why there was no surgery, and what to do."""
        if not self._most and not self._in_grad:
            if self._num_entered:
                return (
                    "no gradient was made inside a block, the backwards ran outside; call "
                    f"backward() inside {_BLOCK}, the forward may run anywhere"
                )
            if self._num_asked:
                return (
                    "optimizer.task(name) was called, but no block was entered; write "
                    f"{_BLOCK} around each task's backward"
                )
            return (
                "every backward ran outside the tasks' blocks; run each task's backward in "
                f"{_BLOCK}, or call optimizer.backward(losses) (with Lightning in manual "
                "optimization, with a Trainer in a training_step of your own)"
            )
        if self._num_alone > 1:
            return (
                f"surgery ran {self._num_alone} times with one task each time; give the losses of "
                "all tasks to one optimizer.backward(losses)"
            )
        if self._is_outside:
            return (
                f"task {self._last!r} alone had its backward in a block, other gradients were made "
                f"outside; run each task's backward in {_BLOCK}"
            )
        return (
            f"the step had one task only, {self._last!r}; run a block of each task before step(), "
            "as with gradient accumulation or a loader that gives a batch of every task"
        )

    def _misses(self) -> bool:
        return self._listens and max(self._most, len(self._in_grad)) < self._least


def warn(message: str) -> None:
    """Warns at the user's line that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _package(frame.f_globals) in _FOREIGN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]


def _has_gradient(parameters: Iterable[Tensor]) -> bool:
    """Tells whether a parameter has a gradient; zeros are none where reading costs nothing."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            is_readable = grad.device.type == "cpu" and type(grad) is Tensor and not grad.is_sparse
            if not is_readable or bool(grad.any()):
                return True
    return False
