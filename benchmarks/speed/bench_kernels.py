"""asv: the parts of surgery over T and P, and the whole beside the floor of the memory."""

from __future__ import annotations

import torch

from benchmarks.speed.machine import fastest_reader, floor_seconds, readers
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import FAMILY
from benchmarks.speed.surgery import Gradients, conflicting_gram
from gradsurgery import kernels

_NUM_TASKS = [2, 3, 8, 40]
_ROUNDS = 15


class Kernels:
    """The passes over rows of random numbers that the optimizers choose for a CPU."""

    params = (_NUM_TASKS, [100_000, 1_000_000, 10_000_000])
    param_names = ("T", "P")
    timeout = 300

    def setup(self, num_tasks: int, num_parameters: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(num_tasks, num_parameters, generator=generator)
        self.weights = torch.zeros(num_tasks)
        self.weights[0] = 1.0  # a sum that leaves the row it overwrites as it is
        self.chosen = kernels.choose(None, torch.device("cpu"))

    def time_gram_matrix(self, num_tasks: int, num_parameters: int) -> None:
        self.chosen.gram_matrix(self.rows)

    def time_combine(self, num_tasks: int, num_parameters: int) -> None:
        self.chosen.combine(self.weights, self.rows, self.rows[0])


class Weights:
    """Every method's weights from a Gram matrix."""

    params = (_NUM_TASKS, list(FAMILY))
    param_names = ("T", "method")

    def setup(self, num_tasks: int, name: str) -> None:
        self.gram = conflicting_gram(num_tasks, seed=0)
        self.weights = FAMILY[name].weights

    def time_weights(self, num_tasks: int, name: str) -> None:
        self.weights(self.gram)


class Surgery:
    """All that lies between the last backward and the optimizer's step."""

    params = (_NUM_TASKS, [100_000, 1_000_000])
    param_names = ("T", "P")
    timeout = 300
    unit = "× floor"

    def setup(self, num_tasks: int, num_parameters: int) -> None:
        self.gradients = Gradients(num_tasks, num_parameters)
        self.gradients.check()

    def track_ratio(self, num_tasks: int, num_parameters: int) -> float:
        actions = {
            "surgery": Action(self.gradients.operate, prepare=self.gradients.capture),
            **readers(self.gradients.rows.flatten()),
        }
        timings = interleaved(actions, rounds=_ROUNDS, warm_up=2)
        ratio = timings.ratio("surgery", to=fastest_reader(timings))
        return ratio.median / floor_seconds(num_tasks, 1.0)
