"""What late weights cost: methods on rows, on sketches, and on sketches of the steps before.

`python -m benchmarks.multi_digits.delay --seeds 12` trains each of them and prints a table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.multi_digits.digits import TASKS, held_out_digits, training_digits
from benchmarks.multi_digits.network import Network
from benchmarks.multi_digits.trial import Trial, accuracy
from gradsurgery import MGDA, LossSum, MultiTaskOptimizer, PCGrad, Sketch, UPGrad

METHODS: dict[str, type[MultiTaskOptimizer]] = {"PCGrad": PCGrad, "UPGrad": UPGrad, "MGDA": MGDA}
# By what a row of the table is called: how gradients are kept, and whether in blocks.
WAYS = {
    "rows": ("rows", False),
    "sketch, two backwards": ("sketch", False),
    "sketch, a step late": ("sketch", True),
    "the same, momentum 0.9": (Sketch(momentum=0.9), True),
    "the same, momentum 0.99": (Sketch(momentum=0.99), True),
}
_BASELINE = "loss sum"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multi_digits.delay")
    parser.add_argument("--seeds", type=int, default=12, metavar="N", help="default 12")
    parser.add_argument("--lr", type=float, default=0.01, metavar="X", help="default 0.01")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trials = [Trial("", seed, options.lr, num_channels=3) for seed in range(options.seeds)]
    plain = [trained(LossSum, _BASELINE, trial) for trial in trials]
    print("| method | way | accuracy | minus rows, paired by seed |\n|---|---|---|---|")
    print(f"| {_BASELINE} | | {_spread(plain)} | |")
    for name, method in METHODS.items():
        found = {way: [trained(method, way, trial) for trial in trials] for way in WAYS}
        for way, accuracies in found.items():
            apart = [a - b for a, b in zip(accuracies, found["rows"], strict=True)]
            paired = "" if way == "rows" else _spread(apart)
            print(f"| {name} | {way} | {_spread(accuracies)} | {paired} |", flush=True)


def trained(method: type[MultiTaskOptimizer], way: str, trial: Trial) -> float:
    """Trains a network, and gives its accuracy on the test images, the mean of both tasks.

    Example:
        >>> 0 <= trained(PCGrad, "rows", Trial("", 0, num_images=128, num_epochs=1)) <= 1
        True
    """
    torch.manual_seed(trial.seed)
    network = Network(trial.num_channels)
    digits = training_digits(trial.num_images, trial.noise, trial.seed)
    memory, in_blocks = WAYS.get(way, ("rows", False))
    surgical: dict[str, Any] = {} if way == _BASELINE else {"memory": memory, "seed": trial.seed}
    base = torch.optim.Adam(network.parameters(), lr=trial.lr)
    optimizer = method(base, tasks=TASKS, **surgical)
    order = torch.Generator().manual_seed(trial.seed)
    for _ in range(trial.num_epochs):
        for batch in torch.randperm(len(digits), generator=order).split(trial.batch_size):
            scores = network(digits.images[batch])
            losses = list(map(cross_entropy, scores, digits.labels[:, batch]))
            optimizer.zero_grad()
            if not in_blocks:
                optimizer.backward(losses)
            for task, loss in zip(TASKS, losses if in_blocks else (), strict=in_blocks):
                with optimizer.task(task):
                    loss.backward(retain_graph=True)
            optimizer.step()
    return statistics.fmean(accuracy(network, held_out_digits()))


def _spread(numbers: Sequence[float]) -> str:
    """A mean with its standard error, in per cent."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    return f"{100 * statistics.fmean(numbers):.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    main()
