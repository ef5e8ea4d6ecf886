"""One training, and what came of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.multi_digits.digits import TASKS, Digits, held_out_digits, training_digits
from benchmarks.multi_digits.network import Network
from benchmarks.multitask_bert.methods import METHODS
from gradsurgery import MultiTaskOptimizer


@dataclass(frozen=True)
class Trial:
    """The settings of one training; two trials of a seed see equal networks and batches.

    Args:
        method: a name of the table of methods.
        seed: of the network, of the images and of their order.
        lr: Adam's learning rate.
        num_channels: the network's capacity.
        noise: share of the training labels that are random.
        num_images: for training.
        num_epochs: passes over them.
        batch_size: images a step.
    """

    method: str
    seed: int
    lr: float = 3e-3
    num_channels: int = 4
    noise: float = 0.0
    num_images: int = 4_000
    num_epochs: int = 8
    batch_size: int = 128


@dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Args:
        trial: the trial.
        accuracy: on the test images, of each task.
        conflicts: share of the steps in which the tasks' gradients opposed each other; ``None``
            where the method keeps no gradients apart.
        seconds: of training.
    """

    trial: Trial
    accuracy: tuple[float, ...]
    conflicts: float | None
    seconds: float

    @property
    def mean_accuracy(self) -> float:
        return sum(self.accuracy) / len(self.accuracy)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Outcome:
        trial = Trial(**found["trial"])
        return cls(trial, tuple(found["accuracy"]), found["conflicts"], found["seconds"])


def run(trial: Trial) -> Outcome:
    """Trains a network and tests it.

    Raises:
        ValueError: there is no such method.

    Example:
        >>> outcome = run(Trial("pcgrad", seed=1, num_images=200, num_epochs=1))
        >>> len(outcome.accuracy)
        2
    """
    if trial.method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {trial.method!r}")
    torch.manual_seed(trial.seed)
    network = Network(trial.num_channels)
    digits = training_digits(trial.num_images, trial.noise, trial.seed)
    optimizer = _optimizer(network, trial)
    order = torch.Generator().manual_seed(trial.seed)
    started = time.perf_counter()
    for _ in range(trial.num_epochs):
        for batch in torch.randperm(len(digits), generator=order).split(trial.batch_size):
            optimizer.zero_grad()
            optimizer.backward(_losses(network, digits, batch))
            optimizer.step()
            if METHODS[trial.method].looks_again:
                with torch.no_grad():
                    optimizer.look_again(_losses(network, digits, batch))
    seconds = time.perf_counter() - started
    return Outcome(trial, accuracy(network, held_out_digits()), _conflicts(optimizer), seconds)


def _losses(network: Network, digits: Digits, batch: Tensor) -> list[Tensor]:  # [B] -> T of []
    logits, labels = network(digits.images[batch]), digits.labels[:, batch]
    return [cross_entropy(scores, right) for scores, right in zip(logits, labels, strict=True)]


@torch.no_grad()
def accuracy(network: Network, digits: Digits) -> tuple[float, ...]:
    """Gives the share of the images whose digit is named rightly, for each task."""
    logits = network(digits.images)
    return tuple(
        (scores.argmax(-1) == labels).double().mean().item()
        for scores, labels in zip(logits, digits.labels, strict=True)
    )


def _optimizer(network: Network, trial: Trial) -> MultiTaskOptimizer:
    method = METHODS[trial.method]
    options: dict[str, Any] = (
        {"seed": trial.seed} if method.is_surgery or method.weighs_losses else {}
    )
    base = torch.optim.Adam(network.parameters(), lr=trial.lr)
    make: type[MultiTaskOptimizer] = getattr(import_module("gradsurgery"), method.optimizer)
    return make(base, tasks=TASKS, **options)


def _conflicts(optimizer: MultiTaskOptimizer) -> float | None:
    return optimizer.diagnostics.summary().get(f"conflict_rate/{'~'.join(TASKS)}")
