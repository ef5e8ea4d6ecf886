"""Surgery alone: per-task gradients that are already there, and what is left to do with them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchjd.aggregation import PCGradWeighting

from benchmarks.speed.answers import TOLERANCE, WrongAnswerError, expected_update
from benchmarks.speed.machine import fastest_reader, floor_seconds, readers
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.targets import Finding, Row, Settings, Target
from gradsurgery import PCGrad, pcgrad_weights, projection_order

MINILM_PARAMETERS = 22_713_216
_MOST_CHECKED = 2e9  # T² P of a check


class Gradients:
    """T gradients of one parameter, captured by the wrapper as it captures any.

    Args:
        num_tasks: T.
        num_parameters: P.
        device: where they are.
        dtype: of them.
        seed: of the random numbers.
    """

    def __init__(
        self,
        num_tasks: int,
        num_parameters: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        shape = (num_tasks, num_parameters)
        self.rows = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        # So that there are conflicts at any P, where independent rows would be all but orthogonal.
        self.rows[1::2] -= 0.5 * self.rows[0]
        self.parameter = nn.Parameter(torch.zeros_like(self.rows[0]))
        self.optimizer = PCGrad(torch.optim.SGD([self.parameter], lr=0.0), seed=seed)
        self.seed = seed
        for _ in range(2):  # the first step lays out the rows
            self.capture()
            self.operate()

    def capture(self) -> None:
        """Gives every task its gradient."""
        self.optimizer.zero_grad()
        for task, row in enumerate(self.rows):
            with self.optimizer.task(task):
                torch.dot(self.parameter, row).backward()

    def operate(self) -> None:
        """Goes from the rows to the combined gradient; this is timed."""
        self.optimizer.surgery()

    def check(self) -> None:
        """Compares the combined gradient with the algorithm, unless that would take very long.

        Raises:
            WrongAnswerError: they differ.
        """
        num_tasks, num_parameters = self.rows.shape
        if num_tasks**2 * num_parameters > _MOST_CHECKED:
            return
        self.capture()
        self.operate()
        order = projection_order(num_tasks, self.seed, 0).tolist()
        expected, _ = expected_update(self.rows.double(), order, onto_itself=False)
        found = self.parameter.grad
        assert found is not None
        error = float((found - expected).norm() / expected.norm())
        tolerance = TOLERANCE if self.rows.dtype == torch.float32 else 1e-2
        if not error <= tolerance:
            raise WrongAnswerError(
                f"combined gradient: must be that of the algorithm to {tolerance:g}, "
                f"found a relative error of {error:.3g}"
            )


def surgery_experiment(
    settings: Settings, keys: frozenset[str], *, num_parameters: int, device: str
) -> dict[str, Finding]:
    """Surgery on three rows against the floor that reading memory sets."""
    num_parameters = 10_000 if settings.quick else num_parameters
    gradients = Gradients(3, num_parameters, device, seed=settings.seed)
    gradients.check()
    actions = {
        "surgery": Action(gradients.operate, prepare=gradients.capture),
        **readers(gradients.rows.flatten()),
    }
    timings = interleaved(actions, rounds=settings.rounds, warm_up=2, device=device)
    reader = fastest_reader(timings)
    per_floor = timings.ratio("surgery", to=reader).scaled(1 / floor_seconds(3, 1.0))
    read = timings.of(reader).median
    bandwidth = gradients.rows.nbytes / read
    note = (
        f"surgery alone, {device}, T=3, P={num_parameters:,}: "
        f"{timings.of('surgery').median * 1e3:.2f} ms; floor {floor_seconds(3, read) * 1e3:.2f} ms "
        f"at {bandwidth / 1e9:.1f} GB/s ({reader})"
    )
    return dict.fromkeys(keys, Finding(f"{per_floor:.2f}", per_floor.median, (note,)))


def weights_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """Weights from a Gram matrix of 40 tasks, ours and TorchJD's."""
    num_tasks = 5 if settings.quick else 40
    gram = conflicting_gram(num_tasks, settings.seed)
    peer = PCGradWeighting()
    actions = {
        "ours": Action(lambda: pcgrad_weights(gram, projection_order(num_tasks, 0, 0))),
        "torchjd": Action(lambda: peer(gram)),
    }
    timings = interleaved(actions, rounds=10 * settings.rounds, warm_up=5)
    ours, theirs = timings.of("ours"), timings.of("torchjd")
    milliseconds = ours.scaled(1e3)
    measured = f"{milliseconds:.2f} ms (TorchJD: {theirs.median * 1e3:.1f} ms)"
    return dict.fromkeys(keys, Finding(measured, milliseconds.median))


def conflicting_gram(num_tasks: int, seed: int) -> Tensor:  # [T, T]
    """A Gram matrix in which about half of the pairs conflict."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, 2 * num_tasks, generator=generator, dtype=torch.float64)
    return rows @ rows.T


ROWS = [
    Row("surgery", "surgery alone / floor, T=3, P=22.7 M", Target("≤", 1.5), "cpu",
        partial(surgery_experiment, num_parameters=MINILM_PARAMETERS, device="cpu")),
    Row("weights", "weights from the Gram matrix, T=40", Target("≤", 2, " ms"), "cpu",
        weights_experiment),
]  # fmt: skip
CUDA_ROWS = [
    Row("surgery-cuda", "surgery alone / floor, T=3, P=110 M", Target("≤", 1.25), "cuda",
        partial(surgery_experiment, num_parameters=110_000_000, device="cuda")),
]  # fmt: skip
