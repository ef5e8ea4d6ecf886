"""What the tests of the guides share: the guides' code, and three tasks to run it on."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradsurgery import projection_order
from tests.oracle import pcgrad
from tests.paths import GUIDES

TASKS = ("a", "b", "c")

Batch = tuple[Tensor, Tensor]  # inputs [B, 6], targets [B, 1]
Batches = list[dict[str, Batch]]  # of each step, of each task


def blocks(guide: str) -> dict[str, tuple[str, int]]:
    """The code under each heading of a guide, and the number of the line before it."""
    text = (GUIDES / guide).read_text(encoding="utf-8")
    found: dict[str, tuple[str, int]] = {}
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()]
        heading = re.findall(r"^#+ (.+)$", before, re.MULTILINE)[-1]
        assert heading not in found, f"{guide}: more than one block of code under {heading!r}"
        found[heading] = (match[1], before.count("\n") + 1)
    return found


def run(
    guide: str, heading: str, *, edits: Mapping[str, str] | None = None, **names: Any
) -> dict[str, Any]:
    """Runs the code under a heading, and returns the names that it leaves.

    Args:
        guide: the file.
        heading: the heading.
        edits: what to write in place of a piece of the code, which must be in it once.
        names: what the code finds.
    """
    code, line = blocks(guide)[heading]
    for old, new in (edits or {}).items():
        assert code.count(old) == 1, f"{guide}: {old!r} is in {heading!r} {code.count(old)} times"
        code = code.replace(old, new)
    space = {"torch": torch, **names}
    exec(compile("\n" * line + code, str(GUIDES / guide), "exec"), space)
    return space


class ThreeTasks(nn.Module):
    """A trunk with a LayerNorm, and a head for each task; all heads start alike."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5))
            head = nn.Linear(5, 1)
        self.heads = nn.ModuleDict({task: copy.deepcopy(head) for task in TASKS})

    def forward(self, name: str, inputs: Tensor) -> Tensor:
        prediction: Tensor = self.heads[name](self.trunk(inputs))
        return prediction

    def loss(self, name: str, batch: Batch) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self(name, inputs), targets)


def batch_of(
    name: str, step: int, size: int = 8, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Batch:
    """Inputs, and targets that pull three ways, 120 degrees apart: every two tasks conflict."""
    place = TASKS.index(name)
    generator = torch.Generator().manual_seed(100 * step + place)
    inputs = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    direction = torch.tensor([2.0, -1.0, -1.0, 2.0, -1.0, -1.0], dtype=torch.float64).roll(place)
    targets = (inputs @ direction)[:, None] + 0.5 * place
    return inputs.to(device, dtype), targets.to(device, dtype)


def make_loader(
    num_steps: int = 6, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Batches:
    return [
        {name: batch_of(name, step, dtype=dtype, device=device) for name in TASKS}
        for step in range(num_steps)
    ]


def train_by_hand(
    model: nn.Module,
    base: torch.optim.Optimizer,
    steps: Iterable[Mapping[str, Callable[[], Tensor]]],
    *,
    seed: int = 0,
    first_step: int = 0,
    clip: float | None = None,
) -> None:
    """PCGrad without the library's wrapper, buffer and kernels, with its orders alone.

    Args:
        model: its parameters are those of ``base``.
        base: the optimizer that takes the step.
        steps: for each step the tasks' losses, to be computed when asked for.
        seed: of the orders.
        first_step: number of the first step.
        clip: norm to which gradients are clipped.
    """
    for step, losses in enumerate(steps, first_step):
        parameters = [p for group in base.param_groups for p in group["params"] if p.requires_grad]
        by_task = [
            torch.autograd.grad(loss(), parameters, allow_unused=True) for loss in losses.values()
        ]
        reached = [sum(grads[i] is not None for grads in by_task) for i in range(len(parameters))]
        rows = [
            torch.cat(
                [
                    (torch.zeros_like(p) if grad is None else grad).flatten().double()
                    for p, grad, tasks in zip(parameters, grads, reached, strict=True)
                    if tasks > 1
                ]
                or [torch.zeros(0, dtype=torch.float64)]
            )
            for grads in by_task
        ]
        order = projection_order(len(rows), seed, step)
        _, weights = pcgrad(torch.stack(rows).numpy(), order.tolist())
        base.zero_grad()
        for i, parameter in enumerate(parameters):
            for weight, grads in zip(weights.tolist(), by_task, strict=True):
                if grads[i] is not None:
                    part = grads[i] * (weight if reached[i] > 1 else 1.0)
                    parameter.grad = part if parameter.grad is None else parameter.grad + part
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        base.step()


def losses_of(model: ThreeTasks, loader: Batches) -> list[dict[str, Callable[[], Tensor]]]:
    """The same steps as those of a loader."""
    return [
        {
            name: lambda name=name, batch=batch: model.loss(name, batch)  # type: ignore[misc]
            for name, batch in batches.items()
        }
        for batches in loader
    ]


def assert_close(model: nn.Module, other: nn.Module, tolerance: float) -> None:
    """The same parameters, to a tolerance of the largest entry; 0 is bit for bit."""
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    for (name, found), (other_name, expected) in pairs:
        assert name == other_name
        if tolerance == 0.0:
            assert torch.equal(found, expected), name
        else:
            difference = (found - expected).abs().max()
            assert difference <= tolerance * expected.abs().max(), f"{name}: {difference}"


def assert_trained(model: nn.Module) -> None:
    """Every parameter has moved, and none is lost."""
    for (name, found), start in zip(
        model.named_parameters(), type(model)().parameters(), strict=True
    ):
        assert not torch.equal(found.cpu(), start.to(found.dtype)), name
        assert found.isfinite().all(), name
