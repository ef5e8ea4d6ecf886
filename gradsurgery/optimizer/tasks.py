"""The tasks of a training: their names, and the numbers that they go by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from gradsurgery.arguments import plain


class Tasks:
    """Names of tasks, numbered in the order in which they were declared or met.

    Args:
        names: the only ones there are; ``None`` lets every new name be a new task. Each is kept as
            the equal value of a built-in type, so that every checkpoint can be read; names that are
            equal, such as ``1`` and ``True``, are one task.
        met_new: told of every new name, and of those that there were.

    Raises:
        TypeError: a name has no such value.
        ValueError: a name comes twice.

    Example:
        >>> tasks = Tasks(None)
        >>> tasks.number("a"), tasks.number("b"), tasks.number("a"), tasks.names
        (0, 1, 0, ['a', 'b'])
    """

    def __init__(
        self,
        names: Iterable[Hashable] | None,
        met_new: Callable[[Hashable, Sequence[Hashable]], None] | None = None,
    ) -> None:
        self.names: list[Hashable] = []
        self.are_declared = names is not None
        self._met_new = met_new
        self.restore([_plain("tasks", name) for name in ([] if names is None else names)])
        if len(self._numbers) < len(self.names):
            raise ValueError(f"tasks: must name each task once, got {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def declared(self) -> Sequence[Hashable] | None:
        """The names, where there can be no others."""
        return self.names if self.are_declared else None

    def number(self, name: Hashable) -> int:
        """The number of a task, a new one for a new name."""
        if name not in self._numbers:
            if self._met_new is not None:
                self._met_new(name, self.names)
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def check(self, name: Hashable) -> Hashable:
        """Returns a name as it is kept; refuses one that was not declared, where they were.

        Raises:
            TypeError: a checkpoint could not hold the name.
            ValueError: with the names there are.
        """
        if type(name) in (str, int) and name in self._numbers:
            return name
        name = _plain("task", name)
        if self.are_declared and name not in self._numbers:
            raise ValueError(
                f"task: must be one of {self.names}, got {name!r}; "
                "declare it in tasks= or leave tasks= out"
            )
        return name

    def check_saved(self, names: Sequence[Hashable]) -> None:
        """Refuses the tasks of a checkpoint that are not those declared.

        Raises:
            ValueError: with both.
        """
        names = [_plain("state_dict", name) for name in names]
        if self.are_declared and names != self.names:
            raise ValueError(
                f"state_dict: must be of the tasks {self.names}, found {names}; "
                "declare the tasks that the checkpoint was made with"
            )

    def restore(self, names: Iterable[Hashable]) -> None:
        """Takes names back, in their order."""
        self.names[:] = names
        self._numbers = {name: number for number, name in enumerate(self.names)}


def _plain(argument: str, name: Any) -> Hashable:
    """A name as a checkpoint can hold it, which finds what the name itself would find."""
    found: Hashable = plain(argument, name)
    if _holds_nan(found) or found != name or hash(found) != hash(name):
        raise ValueError(
            f"{argument}: must be names that equal themselves and their values, got {name!r}; "
            "use a str"
        )
    return found


def _holds_nan(name: Any) -> bool:
    """Tells whether a name, read back, would not be found: a tuple only looks whether its parts
    are the same objects."""
    return any(map(_holds_nan, name)) if isinstance(name, tuple) else bool(name != name)
