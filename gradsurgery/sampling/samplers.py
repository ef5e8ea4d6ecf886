"""Task samplers: what every one does, and those that draw nothing at random."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle, islice, repeat
from numbers import Integral
from typing import Any


def integer(argument: str, value: object, minimum: int | None = None) -> int:
    """A whole number of at least ``minimum``.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    rule = "an int" if minimum is None else f"an int >= {minimum}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be {rule}, found {value!r}; pass a whole number")
    if minimum is not None and int(value) < minimum:
        raise ValueError(f"{argument} must be {rule}, found {value}; pass {minimum} or more")
    return int(value)


@dataclass
class _Progress:
    """How far one iteration over an epoch has come.

    Every iteration counts on its own object: one that was abandoned cannot write into the state of
    its successor.
    """

    epoch: int
    position: int = 0
    started: bool = False


class TaskSampler(ABC):
    """The order in which tasks are visited: iterating yields one epoch of task names.

    The draws of an epoch depend on the constructor's arguments and the epoch alone, so they are
    equal on all ranks, and the global random state is neither read nor written. As with torch's
    ``DistributedSampler``, call ``set_epoch`` before each epoch; without it every iteration
    repeats the same one.
    """

    def __init__(
        self, sizes: Mapping[str, int], num_steps: int | None, **settings: int | float
    ) -> None:
        if not isinstance(sizes, Mapping):
            found = type(sizes).__name__
            raise TypeError(f"sizes must map task names to ints, found a {found}; pass a dict")
        if not sizes:
            raise ValueError("sizes must name at least one task, found none; pass {'name': size}")
        for task in sizes:
            if not isinstance(task, str):
                raise TypeError(f"sizes must have str keys, found {task!r}; name the task")
        # A subclass of str (numpy's, a member of an Enum) as the str it equals, which every state
        # can hold.
        self._sizes = {
            str.__str__(task): integer(f"sizes[{task!r}]", n, 1) for task, n in sizes.items()
        }
        self._num_steps = (
            sum(self._sizes.values()) if num_steps is None else integer("num_steps", num_steps, 1)
        )
        self._extra_settings = settings
        self._progress = _Progress(epoch=0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task names, in the order of ``sizes``."""
        return tuple(self._sizes)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that is iterated now or next."""
        return self._progress.epoch

    @property
    def _settings(self) -> dict[str, Any]:
        """All that the draws depend on: a state continues exactly only where all of it agrees."""
        return {
            "sampler": type(self).__name__,
            # Pairs, because the order counts and a JSON object need not keep it.
            "sizes": [[task, size] for task, size in self._sizes.items()],
            "num_steps": self._num_steps,
            **self._extra_settings,
        }

    @abstractmethod
    def _draws(self, epoch: int) -> Iterator[str]:
        """All draws of an epoch, from its first."""

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[str]:
        if self._progress.started:
            self._progress = _Progress(self.epoch)
        progress = self._progress
        progress.started = True
        for task in islice(self._draws(progress.epoch), progress.position, None):
            progress.position += 1  # before the draw is handed out: its user may save the state
            yield task

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration.

        The epoch that a loaded state is in keeps its position, so a training loop that sets each
        epoch at its beginning also resumes in the middle of one.

        Raises:
            TypeError, ValueError: the epoch is not an int >= 0.
        """
        epoch = integer("epoch", epoch, 0)
        if epoch != self.epoch:
            self._progress = _Progress(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The settings, the epoch and the number of draws already yielded in it, as plain JSON."""
        progress = self._progress
        return {**self._settings, "epoch": progress.epoch, "position": progress.position}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration yield exactly the draws that were left when the state was saved.

        After a state saved at the end of an epoch that is no draw at all; the iteration after it
        is a whole epoch again.

        Raises:
            ValueError: the state is another sampler's: class, sizes, seed or another setting
                differs. Nothing is changed then.
        """
        for name, ours in self.state_dict().items():
            if name not in state_dict:
                raise ValueError(
                    f"state_dict must be a state of {type(self).__name__}, found no {name!r} in it;"
                    " pass what its state_dict() returned"
                )
            if name in self._settings and state_dict[name] != ours:
                raise ValueError(
                    f"state_dict must be of an equal sampler, found {name} {state_dict[name]!r}"
                    f" where this one has {ours!r}; build the sampler as it was when saved"
                )
        epoch = integer("state_dict['epoch']", state_dict["epoch"], 0)
        position = integer("state_dict['position']", state_dict["position"], 0)
        if position > len(self):
            raise ValueError(
                f"state_dict['position'] must be <= {len(self)}, the draws of an epoch, found"
                f" {position}; pass what state_dict() returned"
            )
        self._progress = _Progress(epoch, position)


class RoundRobin(TaskSampler):
    """The tasks in turn, in the order of ``sizes``, whatever their sizes.

    Args:
        sizes: task name -> N, its number of examples or batches.
        num_steps: draws in an epoch; the sum of all N when not given.

    Raises:
        TypeError, ValueError: no task, or a number that is not a positive int.

    >>> list(RoundRobin({"sst": 3, "sts": 1}))
    ['sst', 'sts', 'sst', 'sts']
    """

    def __init__(self, sizes: Mapping[str, int], *, num_steps: int | None = None) -> None:
        super().__init__(sizes, num_steps)

    def _draws(self, epoch: int) -> Iterator[str]:
        return islice(cycle(self._sizes), self._num_steps)


class Sequential(TaskSampler):
    """All of the first task, then all of the second, and so on: N draws of each.

    Args:
        sizes: task name -> N, its number of examples or batches.

    Raises:
        TypeError, ValueError: no task, or a size that is not a positive int.

    >>> list(Sequential({"sst": 3, "sts": 1}))
    ['sst', 'sst', 'sst', 'sts']
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__(sizes, None)

    def _draws(self, epoch: int) -> Iterator[str]:
        return chain.from_iterable(repeat(task, size) for task, size in self._sizes.items())
