"""20,000 steps with a sampler, accumulation and evaluation against a flat line: of memory, of file
handles and of threads."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from gradsurgery import Annealed, MultiTaskLoader, PCGrad

NUM_STEPS = 20_000
NUM_SAMPLES = 40  # moments at which the process is measured
SKIPPED = 10  # of them: caches and arenas fill
SIZES = {"a": 48, "b": 32, "c": 16}
TASKS = tuple(SIZES)
MAX_GROWTH = 2 * 2**20  # bytes over the run: a hundred lost a step
MAX_BLOCKS = 2_000  # Python's objects, of which one lost a step would be ten times as many


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_a_long_run_keeps_nothing():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(8, 8), **{t: nn.Linear(8, 1) for t in TASKS}})
    base = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = PCGrad(base, warn=False)  # steps of one task are among them
    data = {t: [torch.randn(4, 8) for _ in range(n // 4)] for t, n in SIZES.items()}
    loader = MultiTaskLoader(data, Annealed(SIZES, num_epochs=200, seed=1, num_steps=200))
    measured: list[tuple[int, int, int, int]] = []
    step = epoch = 0
    while step < NUM_STEPS:
        loader.set_epoch(epoch % 200)
        epoch += 1
        draws = iter(loader)
        for first in draws:
            optimizer.zero_grad()
            for task, batch in (first, next(draws)):  # two batches a step, of one task or of two
                with optimizer.task(task):
                    (model[task](model["trunk"](batch).tanh()).square().mean() / 2).backward()
            optimizer.step()
            step += 1
            if step % (NUM_STEPS // NUM_SAMPLES) == 0:
                evaluate(model, data)
                optimizer.diagnostics.summary()
                optimizer.load_state_dict(optimizer.state_dict())
                measured.append(measure())
            if step == NUM_STEPS:
                break
    assert len(measured) == NUM_SAMPLES
    memory, blocks, handles, threads = zip(*measured[SKIPPED:], strict=True)
    assert growth(memory) < MAX_GROWTH, memory
    assert growth(blocks) < MAX_BLOCKS, blocks
    assert len(set(handles)) == 1, handles
    assert len(set(threads)) == 1, threads


def measure() -> tuple[int, int, int, int]:
    """Resident bytes, Python's blocks, open file handles and threads."""
    gc.collect()
    handles = len(os.listdir("/proc/self/fd"))
    num_threads = threading.active_count() + len(os.listdir("/proc/self/task"))
    return resident_bytes(), sys.getallocatedblocks(), handles, num_threads


def evaluate(model: nn.ModuleDict, data: dict[str, list[torch.Tensor]]) -> float:
    model.eval()
    with torch.no_grad():
        found = sum(
            float(model[task](model["trunk"](batch)).sum())
            for task, batches in data.items()
            for batch in batches
        )
    model.train()
    return found


def growth(values: tuple[int, ...]) -> float:
    """Slope of a straight line through the values, times their number."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.arange(len(values), dtype=torch.float64)
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum()) * len(values)
