"""Two models trained by two wrappers in two threads at once against each of them trained alone:
equal bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad

NUM_STEPS = 60
TASKS = ("a", "b", "c")


def pcgrad(model: nn.Module) -> MultiTaskOptimizer:
    return PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-2), seed=3)


def pcgrad_by_tensor(model: nn.Module) -> MultiTaskOptimizer:
    base = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    return PCGrad(base, seed=4, granularity="tensor")


def loss_sum(model: nn.Module) -> MultiTaskOptimizer:
    return LossSum(torch.optim.AdamW(model.parameters(), lr=1e-2), monitor=True)


def train(
    make: Callable[[nn.Module], MultiTaskOptimizer], seed: int, wait: Callable[[], object]
) -> list[Tensor]:
    """Weights after some steps, and what was measured of the last one."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({"trunk": nn.Linear(12, 16), **{t: nn.Linear(16, 1) for t in TASKS}})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = make(model)
    for _ in range(NUM_STEPS):
        wait()  # both begin their steps together
        optimizer.zero_grad()
        for task in TASKS:
            inputs = torch.randn(8, 12, generator=generator)
            with optimizer.task(task):
                hidden = model["trunk"](inputs).tanh()
                wait()  # both are inside a task's block
                model[task](hidden).square().mean().backward()
        optimizer.step()
    measured = torch.tensor(list(optimizer.diagnostics.summary().values()))
    return [measured, *(p.detach().clone() for p in model.parameters())]


@pytest.mark.parametrize(
    ("first", "second"),
    [(pcgrad, pcgrad), (pcgrad, loss_sum), (pcgrad, pcgrad_by_tensor), (loss_sum, loss_sum)],
    ids=lambda make: make.__name__,
)
def test_two_threads_do_not_disturb_each_other(first, second):
    alone = [train(first, 1, lambda: None), train(second, 2, lambda: None)]
    barrier = threading.Barrier(2, timeout=60)
    together: list[list[Tensor]] = [[], []]

    def run(number: int, make: Callable[[nn.Module], MultiTaskOptimizer]) -> None:
        try:
            together[number] = train(make, number + 1, barrier.wait)
        except BaseException:
            barrier.abort()
            raise

    threads = [
        threading.Thread(target=run, args=arguments) for arguments in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, expected in zip(together, alone, strict=True):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
    assert not torch.equal(alone[0][1], alone[1][1])
