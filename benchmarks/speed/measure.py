"""Times of several actions that take turns inside one run, and their ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of a sample.

    Example:
        >>> str(Quartiles.of([1.0, 2.0, 4.0]))
        '2.00 [1.50, 3.00]'
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, sample: list[float]) -> Quartiles:
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        return cls(*statistics.quantiles(sample, n=4, method="inclusive"))

    def scaled(self, factor: float) -> Quartiles:
        """In another unit."""
        return Quartiles(self.low * factor, self.median * factor, self.high * factor)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return f"{self:.2f}"


@dataclass(frozen=True)
class Action:
    """A function that is timed, and one that must come before it and is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Timings:
    """Seconds of every action in every round."""

    seconds: Mapping[str, list[float]]

    def of(self, name: str) -> Quartiles:
        """Seconds of an action."""
        return Quartiles.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Quartiles:
        """Quartiles of the ratios of two actions, one a round.

        Example:
            >>> Timings({"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]}).ratio("a", to="b").median
            2.0
        """
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return Quartiles.of([seconds / reference for seconds, reference in pairs])

    def fastest(self, names: list[str]) -> str:
        """The action with the smallest median."""
        return min(names, key=lambda name: self.of(name).median)


def interleaved(
    actions: Mapping[str, Action], *, rounds: int, warm_up: int = 1, device: str = "cpu"
) -> Timings:
    """Times actions in rounds A, B, C, A, B, C, ..., so that noise of the machine meets them all.

    Args:
        actions: by name.
        rounds: that count.
        warm_up: rounds before them, which do not.
        device: what to wait for before the clock is read.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds: must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    # The collector stays on, as in any training, but passes over what was there before. Collecting
    # between rounds would empty the caches for the action that comes next.
    gc.collect()
    gc.freeze()
    try:
        for number in range(warm_up + rounds):
            for name, action in actions.items():
                action.prepare()
                wait_for(device)
                started = time.perf_counter()
                action.run()
                wait_for(device)
                if number >= warm_up:
                    seconds[name].append(time.perf_counter() - started)
    finally:
        gc.unfreeze()
    return Timings(seconds)


def wait_for(device: str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
