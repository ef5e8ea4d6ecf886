"""Batches of several tasks, each from a loader of its own, in the order of a task sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

from gradsurgery.sampling import TaskSampler, integer

Batch = TypeVar("Batch")


class _Passes(Generic[Batch]):
    """One loader read again and again: the pass it is in, and the batches taken of that pass."""

    def __init__(self, task: str, loader: Iterable[Batch]) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"loaders[{task!r}] must be iterable, found {type(loader).__name__};"
                " pass a DataLoader or a list of batches"
            )
        self._task = task
        self._loader = loader
        self.seek(0, 0)

    def seek(self, number: int, num_taken: int) -> None:
        self.number = number
        self.num_taken = num_taken
        # Opened by the first batch asked for: opening starts a DataLoader's workers.
        self._batches: Iterator[Batch] | None = None

    def take(self) -> Batch:
        """The next batch; the first of the next pass where this one has run out."""
        if self._batches is None:
            self._batches = self._open()
        for batch in self._batches:
            self.num_taken += 1
            return batch
        if self.num_taken == 0:
            raise ValueError(
                f"loaders[{self._task!r}] must yield a batch in every pass, found none in pass"
                f" {self.number}; pass a loader that has data and can be iterated again"
            )
        self.seek(self.number + 1, 0)
        return self.take()

    def _open(self) -> Iterator[Batch]:
        sources = (
            self._loader,
            getattr(self._loader, "batch_sampler", None),
            getattr(self._loader, "sampler", None),
        )
        for source in sources:
            set_epoch = getattr(source, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.number)
                break
        batches = iter(self._loader)
        num_skipped = sum(1 for _ in islice(batches, self.num_taken))
        if num_skipped < self.num_taken:
            raise ValueError(
                f"loaders[{self._task!r}] must have the {self.num_taken} batches that the loaded"
                f" state has taken, found {num_skipped}; pass the loader that the state is of"
            )
        return batches


class MultiTaskLoader(Generic[Batch]):
    """Yields ``(task, batch)`` for each draw of a task sampler.

    A loader that runs out is started again. Its passes go on across the sampler's epochs, so a
    large data set is read to its end before it is read anew. Before each pass ``set_epoch`` is
    called with the pass number, from 0, on the loader, its ``batch_sampler`` or its ``sampler``,
    the first that has it, so that shuffling differs between passes.

    ``state_dict`` holds the sampler's state and how far each loader is; after
    ``load_state_dict`` the first batch of each task skips those already taken. The resumed run
    gets the same batches if every loader's order is a function of its pass number.

    Args:
        loaders: task name -> its batches: a ``DataLoader``, a list, or any iterable that can be
            iterated again.
        sampler: the order of the tasks, over the same names.

    Raises:
        TypeError: a loader that is not iterable, or a sampler that is none.
        ValueError: the names differ; while iterating, a loader without a single batch.

    >>> from gradsurgery import RoundRobin
    >>> loader = MultiTaskLoader({"a": [1, 2], "b": [10]}, RoundRobin({"a": 2, "b": 1}))
    >>> list(loader), list(loader)
    ([('a', 1), ('b', 10), ('a', 2)], [('a', 1), ('b', 10), ('a', 2)])
    """

    def __init__(self, loaders: Mapping[str, Iterable[Batch]], sampler: TaskSampler) -> None:
        if not isinstance(sampler, TaskSampler):
            raise TypeError(
                f"sampler must be a task sampler, found {type(sampler).__name__};"
                " pass one of gradsurgery's, such as RoundRobin(sizes)"
            )
        if set(loaders) != set(sampler.tasks):
            raise ValueError(
                f"loaders must name the sampler's tasks, found loaders {list(loaders)} and"
                f" sampler tasks {list(sampler.tasks)}; give both the same names"
            )
        self.sampler = sampler
        self._passes = {task: _Passes(task, loaders[task]) for task in sampler.tasks}

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        for task in self.sampler:
            yield task, self._passes[task].take()

    def set_epoch(self, epoch: int) -> None:
        """Choose the sampler's epoch, from 0; the passes through the loaders are not touched."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, and for each task its pass and the batches taken of it."""
        loaders = {
            task: {"pass": passes.number, "batches": passes.num_taken}
            for task, passes in self._passes.items()
        }
        return {"sampler": self.sampler.state_dict(), "loaders": loaders}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was saved.

        Raises:
            ValueError: the state is of other tasks or another sampler. Nothing is changed then.
        """
        for name in ("sampler", "loaders"):
            if name not in state_dict:
                raise ValueError(
                    f"state_dict must be a state of MultiTaskLoader, found no {name!r} in it;"
                    " pass what its state_dict() returned"
                )
        loaders = state_dict["loaders"]
        if set(loaders) != set(self._passes):
            raise ValueError(
                f"state_dict must be of the same tasks, found {list(loaders)} where this loader"
                f" has {list(self._passes)}; build the loader as it was when saved"
            )
        targets = {
            task: [
                integer(f"state_dict['loaders'][{task!r}][{name!r}]", place.get(name), 0)
                for name in ("pass", "batches")
            ]
            for task, place in loaders.items()
        }
        self.sampler.load_state_dict(state_dict["sampler"])
        for task, (number, num_taken) in targets.items():
            self._passes[task].seek(number, num_taken)
