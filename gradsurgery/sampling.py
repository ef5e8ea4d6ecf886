"""Which task comes next: task samplers, and a loader of batches that follows one of them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle, islice, repeat
from numbers import Integral, Real
from typing import Any, Generic, TypeVar

import torch

Batch = TypeVar("Batch")


def _integer(argument: str, value: object, minimum: int | None = None) -> int:
    rule = "an int" if minimum is None else f"an int >= {minimum}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be {rule}, found {value!r}; pass a whole number")
    if minimum is not None and int(value) < minimum:
        raise ValueError(f"{argument} must be {rule}, found {value}; pass {minimum} or more")
    return int(value)


def _finite(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a finite float, found {value!r}; pass a number")
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be a finite float, found {value}; pass a finite number")
    return float(value)


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
        self._sizes = {task: _integer(f"sizes[{task!r}]", n, 1) for task, n in sizes.items()}
        self._num_steps = (
            sum(self._sizes.values()) if num_steps is None else _integer("num_steps", num_steps, 1)
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
        epoch = _integer("epoch", epoch, 0)
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
        epoch = _integer("state_dict['epoch']", state_dict["epoch"], 0)
        position = _integer("state_dict['position']", state_dict["position"], 0)
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


class _RandomSampler(TaskSampler):
    """Independent draws with p ∝ N^α; a subclass says what α is."""

    def __init__(
        self, sizes: Mapping[str, int], num_steps: int | None, seed: int, **settings: int | float
    ) -> None:
        self._seed = _integer("seed", seed)
        super().__init__(sizes, num_steps, seed=self._seed, **settings)

    @abstractmethod
    def _alpha(self, epoch: int) -> float:
        """The exponent of an epoch, from 0."""

    @property
    def probabilities(self) -> dict[str, float]:
        """Task name -> probability of each draw in the current epoch; they sum to 1."""
        return self._probabilities(self.epoch)

    def _probabilities(self, epoch: int) -> dict[str, float]:
        alpha = self._alpha(epoch)
        sizes = self._sizes.values()
        # Relative to the likeliest task every power lies in [0, 1]: no alpha overflows.
        likeliest = max(sizes) if alpha >= 0 else min(sizes)
        powers = [(size / likeliest) ** alpha for size in sizes]
        total = math.fsum(powers)
        return {task: power / total for task, power in zip(self._sizes, powers, strict=True)}

    def _draws(self, epoch: int) -> Iterator[str]:
        # A hash, not seed + epoch: epoch 1 of seed 0 must not repeat epoch 0 of seed 1.
        # Four bytes are all that torch's CPU generator uses of a seed.
        digest = hashlib.blake2b(f"{self._seed} {epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))
        # The device is named because the caller may have set another default.
        probabilities = torch.tensor(
            list(self._probabilities(epoch).values()), dtype=torch.float64, device="cpu"
        )
        indices = torch.multinomial(
            probabilities, self._num_steps, replacement=True, generator=generator
        )
        return map(self.tasks.__getitem__, indices.tolist())


class Proportional(_RandomSampler):
    """Tasks at random in proportion to their sizes.

    p ∝ N

    Args:
        sizes: task name -> N, its number of examples or batches.
        num_steps: draws in an epoch; the sum of all N when not given, which visits each example
            once in expectation.
        seed: of the draws, together with the epoch.

    Raises:
        TypeError, ValueError: no task, or a number that is not a positive int.

    >>> Proportional({"sst": 3, "sts": 1}).probabilities
    {'sst': 0.75, 'sts': 0.25}
    """

    def __init__(
        self, sizes: Mapping[str, int], *, num_steps: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(sizes, num_steps, seed)

    def _alpha(self, epoch: int) -> float:
        return 1.0


class Annealed(_RandomSampler):
    """Proportional in the first epoch, nearly uniform in the last.

    p ∝ N^α, α = 1 − 0.8 (e − 1) / (E − 1), where e counts the E epochs from 1.

    Args:
        sizes: task name -> N, its number of examples or batches.
        num_epochs: E. Later epochs keep the last α, 0.2; with E = 1 there is only α = 1.
        num_steps: draws in an epoch; the sum of all N when not given.
        seed: of the draws, together with the epoch.

    Raises:
        TypeError, ValueError: no task, or a number that is not a positive int.

    >>> sampler = Annealed({"large": 32, "small": 1}, num_epochs=5)
    >>> sampler.set_epoch(4)  # α = 0.2: 32^0.2 = 2 against 1
    >>> {task: round(p, 3) for task, p in sampler.probabilities.items()}
    {'large': 0.667, 'small': 0.333}

    Stickland and Murray, "BERT and PALs: Projected Attention Layers for Efficient Adaptation in
    Multi-Task Learning", 2019.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        num_epochs: int,
        *,
        num_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self._num_epochs = _integer("num_epochs", num_epochs, 1)
        super().__init__(sizes, num_steps, seed, num_epochs=self._num_epochs)

    def _alpha(self, epoch: int) -> float:
        last = self._num_epochs - 1
        return 1.0 - 0.8 * min(epoch, last) / max(last, 1)


class Temperature(_RandomSampler):
    """Tasks at random, their sizes tempered by one exponent.

    p ∝ N^α: α = 1 is proportional, α = 0.5 square-root, α = 0 uniform sampling. A temperature T
    is α = 1 / T.

    Args:
        sizes: task name -> N, its number of examples or batches.
        alpha: α, any finite number.
        num_steps: draws in an epoch; the sum of all N when not given.
        seed: of the draws, together with the epoch.

    Raises:
        TypeError, ValueError: no task, a number that is not a positive int, or α not finite.

    >>> Temperature({"sst": 9, "sts": 1}, alpha=0.5).probabilities
    {'sst': 0.75, 'sts': 0.25}

    Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild: Findings
    and Challenges", 2019.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        alpha: float,
        *,
        num_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self._exponent = _finite("alpha", alpha)
        super().__init__(sizes, num_steps, seed, alpha=self._exponent)

    def _alpha(self, epoch: int) -> float:
        return self._exponent


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
        self._passes = {task: _Passes(task, loader) for task, loader in loaders.items()}

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
                _integer(f"state_dict['loaders'][{task!r}][{name!r}]", place.get(name), 0)
                for name in ("pass", "batches")
            ]
            for task, place in loaders.items()
        }
        self.sampler.load_state_dict(state_dict["sampler"])
        for task, (number, num_taken) in targets.items():
            self._passes[task].seek(number, num_taken)
