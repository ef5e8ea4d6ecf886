"""The ways to make a step: the plain sum in torch alone, ours, the peers in all their settings."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from pytorch_optimizer import PCGrad as PytorchOptimizerPCGrad
from torch.optim import AdamW
from torchjd.aggregation import PCGrad as TorchJDPCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from benchmarks.speed.workloads import Workload
from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, projection_order

Orders = list[list[int]]  # row i: the tasks that task i visits, in order

_SEED = 11711


class Method:
    """One way to make a step of a workload, in the parts that are measured.

    Calling it makes a whole step: zero_grad, forward and backward of every task, surgery, AdamW.

    Args:
        workload: its own; the step changes the parameters.
        capturable: an AdamW that a CUDA graph can hold.
    """

    scope: Literal["shared", "all"] = "shared"
    projects_onto_itself = False

    def __init__(self, workload: Workload, *, capturable: bool = False) -> None:
        self.workload = workload
        self.base = AdamW(
            [*workload.shared(), *workload.separate()], lr=1e-5, fused=True, capturable=capturable
        )
        self.num_steps = 0
        self.error: float | None = None  # of its answer, once it was checked

    def __call__(self) -> None:
        self.zero_grad()
        self.backwards()
        self.surgery()
        self.update()

    def zero_grad(self) -> None:
        self.base.zero_grad()

    def backwards(self) -> None:
        """Forward and backward of every task."""
        raise NotImplementedError

    def surgery(self) -> None:
        """Leaves the combined gradient in ``.grad``, where the backwards have not."""

    def update(self) -> None:
        """The optimizer's step."""
        self.base.step()
        self.num_steps += 1

    def orders(self) -> Orders | None:
        """The orders that the next surgery will draw; None of a plain sum."""
        return None


class PlainSum(Method):
    """Torch alone: the backward of the sum of the losses."""

    def backwards(self) -> None:
        losses = [self.workload.loss(task) for task in range(self.workload.num_tasks)]
        torch.stack(losses).sum().backward()


class PlainLoop(Method):
    """Torch alone: one backward after another."""

    def backwards(self) -> None:
        for task in range(self.workload.num_tasks):
            self.workload.loss(task).backward()


class JointBatch(Method):
    """Torch alone: the examples of all tasks through the trunk at once."""

    def backwards(self) -> None:
        workload = self.workload
        features = workload.encode(torch.cat(workload.inputs)).chunk(workload.num_tasks)
        losses = [workload.loss_of(task, part) for task, part in enumerate(features)]
        torch.stack(losses).sum().backward()


class Ours(Method):
    """A wrapper of this library, one graph alive at a time."""

    def __init__(
        self,
        workload: Workload,
        wrap: Callable[[AdamW], MultiTaskOptimizer],
        *,
        capturable: bool = False,
    ) -> None:
        super().__init__(workload, capturable=capturable)
        self.optimizer = wrap(self.base)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def backwards(self) -> None:
        for task in range(self.workload.num_tasks):
            with self.optimizer.task(task):
                self.workload.loss(task).backward()

    def surgery(self) -> None:
        self.optimizer.surgery()

    def update(self) -> None:
        self.optimizer.step()
        self.num_steps += 1

    def orders(self) -> Orders | None:
        if not isinstance(self.optimizer, PCGrad):
            return None
        order = projection_order(self.workload.num_tasks, self.optimizer.seed, self.num_steps)
        found: Orders = order.tolist()
        return found


def torchjd_orders(num_tasks: int) -> Orders:
    """Foresees the orders of TorchJD's next surgery: it draws from torch's generator, which begins
    anew here."""
    torch.manual_seed(_SEED)
    found: Orders = [torch.randperm(num_tasks).tolist() for _ in range(num_tasks)]
    torch.manual_seed(_SEED)
    return found


class TorchJD(Method):
    """TorchJD 0.18: Jacobian of the trunk, heads apart, then its aggregator.

    Args:
        workload: its own.
        parallel_chunk_size: None differentiates all tasks at once, 1 one after the other.
        optimize_gramian_computation: a Gram matrix for each parameter, without concatenation.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        parallel_chunk_size: int | None,
        optimize_gramian_computation: bool,
    ) -> None:
        super().__init__(workload)
        self.parallel_chunk_size = parallel_chunk_size
        self.optimize_gramian_computation = optimize_gramian_computation
        self.aggregator = TorchJDPCGrad()

    def backwards(self) -> None:
        tasks = range(self.workload.num_tasks)
        features = [self.workload.features(task) for task in tasks]
        losses = [self.workload.loss_of(task, features[task]) for task in tasks]
        with warnings.catch_warnings():
            # Torch runs its fused attention for a CPU one task after the other under vmap.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            mtl_backward(losses, features, parallel_chunk_size=self.parallel_chunk_size)

    def surgery(self) -> None:
        jac_to_grad(
            self.workload.shared(),
            self.aggregator,
            optimize_gramian_computation=self.optimize_gramian_computation,
        )

    def orders(self) -> Orders:
        return torchjd_orders(self.workload.num_tasks)


class PytorchOptimizer(Method):
    """pytorch_optimizer 4.1: heads are projected too, and a task visits its own gradient."""

    scope = "all"
    projects_onto_itself = True

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.optimizer = PytorchOptimizerPCGrad(self.base, reduction="sum")

    def backwards(self) -> None:
        losses = [self.workload.loss(task) for task in range(self.workload.num_tasks)]
        self.optimizer.pc_backward(losses)  # type: ignore[arg-type]

    def orders(self) -> Orders:
        # It shuffles one list again and again with Python's generator.
        random.seed(_SEED)
        tasks = list(range(self.workload.num_tasks))
        found: Orders = []
        for _ in tasks:
            random.shuffle(tasks)
            found.append(list(tasks))
        random.seed(_SEED)
        return found


def loss_sum(base: AdamW) -> MultiTaskOptimizer:
    return LossSum(base)


def pcgrad(base: AdamW) -> MultiTaskOptimizer:
    return PCGrad(base)


def monitored_sum(base: AdamW) -> MultiTaskOptimizer:
    return LossSum(base, monitor=True)


TORCHJD = {
    f"torchjd chunk={chunk} optimize={'on' if optimize else 'off'}": partial(
        TorchJD, parallel_chunk_size=chunk, optimize_gramian_computation=optimize
    )
    for chunk in (None, 1)
    for optimize in (False, True)
}
METHODS: Mapping[str, Callable[[Workload], Method]] = {
    "plain": PlainSum,
    "plain loop": PlainLoop,
    "joint batch": JointBatch,
    "loss-sum": partial(Ours, wrap=loss_sum),
    "loss-sum monitor": partial(Ours, wrap=monitored_sum),
    "pcgrad": partial(Ours, wrap=pcgrad),
    **TORCHJD,
    "pytorch_optimizer": PytorchOptimizer,
}
