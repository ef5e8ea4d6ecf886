"""The tasks of a training: their names, and the numbers that they go by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence


class Tasks:
    """Names of tasks, numbered in the order in which they were declared or met.

    Args:
        names: the only ones there are; ``None`` lets every new name be a new task.
        met_new: told of every new name, and of those that there were.

    Raises:
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
        self.names: list[Hashable] = [] if names is None else list(names)
        self.are_declared = names is not None
        self._met_new = met_new
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"tasks: must name each task once, got {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def declared(self) -> Sequence[Hashable] | None:
        """The names, where there can be no others."""
        return self.names if self.are_declared else None

    def number(self, name: Hashable) -> int:
        """The number of a task, a new one for a new name."""
        if name not in self.names:
            if self._met_new is not None:
                self._met_new(name, self.names)
            self.names.append(name)
        return self.names.index(name)

    def check(self, name: Hashable) -> None:
        """Refuses a name that was not declared, where they were.

        Raises:
            ValueError: with the names there are.
        """
        if self.are_declared and name not in self.names:
            raise ValueError(
                f"task: must be one of {self.names}, got {name!r}; "
                "declare it in tasks= or leave tasks= out"
            )

    def check_saved(self, names: Sequence[Hashable]) -> None:
        """Refuses the tasks of a checkpoint that are not those declared.

        Raises:
            ValueError: with both.
        """
        if self.are_declared and list(names) != self.names:
            raise ValueError(
                f"state_dict: must be of the tasks {self.names}, found {list(names)}; "
                "declare the tasks that the checkpoint was made with"
            )

    def restore(self, names: Iterable[Hashable]) -> None:
        """Takes names back, in their order."""
        self.names[:] = names
