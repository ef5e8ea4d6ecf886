"""The trials of a study: learning rates on seeds of their own, then every seed; their record."""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.multi_digits.trial import Outcome, Trial, run

LEARNING_RATES = (3e-3, 1e-2, 3e-2)
CAPACITIES = (4, 12)  # channels
NOISES = (0.0, 0.3)
BASELINE = "loss-sum"
_FIRST_TUNING_SEED = 10_000  # reported seeds are 0, 1, 2, ...


@dataclass(frozen=True)
class Study:
    """A comparison of methods at equal budget.

    Args:
        methods: names of the table of methods; the loss sum is one of them.
        num_seeds: seeds that are reported, at the method's best learning rate.
        num_tuning_seeds: further seeds, on which that is chosen.
        capacities: channels of the networks.
        noises: shares of random training labels.
        num_images: for training.
    """

    methods: tuple[str, ...]
    num_seeds: int = 30
    num_tuning_seeds: int = 3
    capacities: tuple[int, ...] = CAPACITIES[:1]
    noises: tuple[float, ...] = NOISES[:1]
    num_images: int = Trial.num_images

    def tuning(self) -> list[Trial]:
        """Gives the trials that choose the learning rates."""
        seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + self.num_tuning_seeds)
        return list(self._trials(seeds, LEARNING_RATES))

    def reported(self, outcomes: Iterable[Outcome]) -> list[Trial]:
        """Gives the trials of the reported seeds, after those that choose the learning rates."""
        best = best_rates(outcomes)
        trials = self._trials(range(self.num_seeds), LEARNING_RATES)
        return [trial for trial in trials if trial.lr == best.get(setting(trial))]

    def _trials(self, seeds: Iterable[int], rates: Sequence[float]) -> Iterator[Trial]:
        # The seed turns slowest, so that whoever stops early has equally many of every method.
        for seed, capacity, noise, method, lr in product(
            seeds, self.capacities, self.noises, self.methods, rates
        ):
            yield Trial(method, seed, lr, capacity, noise, self.num_images)


Setting = tuple[str, int, float, int]  # method, channels, noise, images


def setting(trial: Trial) -> Setting:
    """Tells trials apart but for their seed and learning rate."""
    return trial.method, trial.num_channels, trial.noise, trial.num_images


def is_tuning(trial: Trial) -> bool:
    """Tells whether a trial only helped to choose a learning rate."""
    return trial.seed >= _FIRST_TUNING_SEED


def best_rates(outcomes: Iterable[Outcome]) -> dict[Setting, float]:
    """Gives the learning rate of the highest mean accuracy on the tuning seeds."""
    found: dict[Setting, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        if is_tuning(outcome.trial):
            found[setting(outcome.trial)][outcome.trial.lr].append(outcome.mean_accuracy)
    return {
        key: max(by_rate, key=lambda lr: sum(by_rate[lr]) / len(by_rate[lr]))
        for key, by_rate in found.items()
    }


class Record:
    """Outcomes in a file of JSON lines; what it holds is not run again.

    Args:
        path: the file, which is made with the first outcome.

    Raises:
        ValueError: a line of the file is none of an outcome.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[Trial, Outcome] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        if lines and lines[-1]:  # the last write was cut off: its trial runs again
            path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        for number, line in enumerate(lines[:-1], 1):
            try:
                outcome = Outcome.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: line {number} must be an outcome, got {line[:40]!r}; "
                    "delete the line, and its trial runs again"
                ) from error
            self.outcomes[outcome.trial] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome, at once on the disk."""
        self.outcomes[outcome.trial] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome.as_json()) + "\n")


def carry_out(study: Study, record: Record, num_processes: int) -> None:
    """Runs what is missing, on one thread in each process."""
    # Spawned, because a process with torch's threads must not be forked.
    with multiprocessing.get_context("spawn").Pool(num_processes, _start) as pool:
        for trials in (study.tuning, lambda: study.reported(record.outcomes.values())):
            missing = [trial for trial in trials() if trial not in record.outcomes]
            for outcome in pool.imap(run, missing):
                record.add(outcome)


def _start() -> None:
    torch.set_num_threads(1)
