"""Samplers that draw at random: with given probabilities, or every draw exactly once."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from numbers import Real

import torch

from gradsurgery.sampling.samplers import TaskSampler, integer


class _RandomSampler(TaskSampler):
    """Independent draws with p ∝ N^α; a subclass says what α is."""

    def __init__(
        self, sizes: Mapping[str, int], num_steps: int | None, seed: int, **settings: int | float
    ) -> None:
        self._seed = integer("seed", seed)
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
        # The device is named because the caller may have set another default.
        probabilities = torch.tensor(
            list(self._probabilities(epoch).values()), dtype=torch.float64, device="cpu"
        )
        indices = torch.multinomial(
            probabilities,
            self._num_steps,
            replacement=True,
            generator=_generator(self._seed, epoch),
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
        self._num_epochs = integer("num_epochs", num_epochs, 1)
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


class Shuffled(TaskSampler):
    """Every task exactly N times an epoch, in random order: all batches, packed and shuffled.

    Args:
        sizes: task name -> N, its number of batches, such as ``len(data_loader)``.
        seed: of the order, together with the epoch.

    Raises:
        TypeError, ValueError: no task, a size that is not a positive int, or a seed that is none.

    >>> sampler = Shuffled({"sst": 3, "sts": 1})
    >>> sorted(sampler)
    ['sst', 'sst', 'sst', 'sts']

    Liu et al., "Multi-Task Deep Neural Networks for Natural Language Understanding", 2019,
    algorithm 1.
    """

    def __init__(self, sizes: Mapping[str, int], *, seed: int = 0) -> None:
        self._seed = integer("seed", seed)
        super().__init__(sizes, None, seed=self._seed)

    def _draws(self, epoch: int) -> Iterator[str]:
        draws = [task for task, size in self._sizes.items() for _ in range(size)]
        order = torch.randperm(
            self._num_steps, generator=_generator(self._seed, epoch), device="cpu"
        )
        return map(draws.__getitem__, order.tolist())


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A source of random numbers that depends on both, for every pair another."""
    # A hash, not seed + epoch: epoch 1 of seed 0 must not repeat epoch 0 of seed 1.
    # Four bytes are all that torch's CPU generator uses of a seed.
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))


def _finite(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a finite float, found {value!r}; pass a number")
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be a finite float, found {value}; pass a finite number")
    return float(value)
