"""The ways to make a step: the plain sum in torch alone, ours, the peers in all their settings.

``FAMILY`` has a row for each of our methods that sees a Gram matrix. Its step, its weights beside
TorchJD's, and their rows in the tables and in asv follow from that.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torchjd.aggregation as peers
from pytorch_optimizer import PCGrad as PytorchOptimizerPCGrad
from torch import Tensor
from torch.optim import AdamW
from torchjd.autojac import jac_to_grad, mtl_backward

from benchmarks.speed.workloads import Workload
from gradsurgery import (
    DBMTL,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    LossSum,
    MultiTaskOptimizer,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
    aligned_mtl_weights,
    cagrad_weights,
    config_weights,
    dbmtl_weights,
    dualproj_weights,
    fairgrad_weights,
    gradvac_weights,
    imtl_g_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    projection_order,
    sdmgrad_weights,
    upgrad_weights,
)

Weighting = Callable[[Tensor], Tensor]  # [T, T] -> [T]
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
        """The orders that the next surgery will draw; None where it draws none."""
        return None

    def weights(self, gram: Tensor) -> Tensor | None:  # [T, T] -> [T]
        """The weights that the next surgery will find; None of a plain sum and of projections."""
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
    """A wrapper of this library, one graph alive at a time.

    Args:
        workload: its own.
        wrap: makes the wrapper.
        member: the row of the family whose answers it promises; without, the plain sum or PCGrad.
        capturable: an AdamW that a CUDA graph can hold.
    """

    def __init__(
        self,
        workload: Workload,
        wrap: Callable[[AdamW], MultiTaskOptimizer],
        *,
        member: Member | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(workload, capturable=capturable)
        self.optimizer = wrap(self.base)
        self.member = member

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def backwards(self) -> None:
        for task in range(self.workload.num_tasks):
            with self.optimizer.task(task) as block:
                loss = self.workload.loss(task)
                if self.member is not None and self.member.needs_losses:
                    block.backward(loss)
                else:
                    loss.backward()

    def surgery(self) -> None:
        self.optimizer.surgery()

    def update(self) -> None:
        self.optimizer.step()
        self.num_steps += 1

    def orders(self) -> Orders | None:
        if not isinstance(self.optimizer, (PCGrad, GradVac)):
            return None
        order = projection_order(self.workload.num_tasks, self.optimizer.seed, self.num_steps)
        found: Orders = order.tolist()
        return found

    def weights(self, gram: Tensor) -> Tensor | None:  # [T, T] -> [T]
        if self.member is None or self.orders() is not None:
            return None
        if not self.member.needs_losses:
            return self.member.weights(gram)
        losses = [self.workload.loss(task).detach() for task in range(len(gram))]
        return dbmtl_weights(gram, torch.stack(losses))


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
        self.aggregator = peers.PCGrad()

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


@dataclass(frozen=True)
class Member:
    """One of our methods that sees a Gram matrix.

    Args:
        title: as the tables call it.
        wrap: makes its wrapper.
        weights: of the sum, from a Gram matrix ``[T, T]``.
        peer: makes TorchJD's for T tasks, from a Gram matrix or from rows; None where it has none.
        of_rows: whether the peer takes rows: it is given a T×T factor of the Gram matrix.
        needs_losses: whether its weights depend on the losses too, which are 1 for ``weights``.
    """

    title: str
    wrap: Callable[[AdamW], MultiTaskOptimizer]
    weights: Weighting
    peer: Callable[[int], Weighting] | None
    of_rows: bool = False
    needs_losses: bool = False


def _pcgrad_weights(gram: Tensor) -> Tensor:
    return pcgrad_weights(gram, projection_order(len(gram), 0, 0, gram.device))


def _gradvac_weights(gram: Tensor) -> Tensor:
    order = projection_order(len(gram), 0, 0, gram.device)
    return gradvac_weights(gram, torch.zeros_like(gram), order)[0]


FAMILY: Mapping[str, Member] = {
    "pcgrad": Member("PCGrad", pcgrad, _pcgrad_weights, lambda _: peers.PCGradWeighting()),
    # Targets that stay 0 cost the same, and its answer is then Algorithm 1's.
    "gradvac": Member(
        "GradVac",
        lambda base: GradVac(base, beta=0.0),
        _gradvac_weights,
        lambda _: peers.GradVacWeighting(),
    ),
    "mgda": Member("MGDA", MGDA, mgda_weights, lambda _: peers.MGDAWeighting()),
    "upgrad": Member("UPGrad", UPGrad, upgrad_weights, lambda _: peers.UPGradWeighting()),
    "dualproj": Member("DualProj", DualProj, dualproj_weights, lambda _: peers.DualProjWeighting()),
    "cagrad": Member("CAGrad", CAGrad, cagrad_weights, lambda _: peers.CAGradWeighting(c=0.4)),
    "nash-mtl": Member(
        "Nash-MTL",
        lambda base: NashMTL(base, max_norm=None),
        nash_mtl_weights,
        lambda num_tasks: peers.NashMTL(num_tasks, max_norm=0.0),
        of_rows=True,
    ),
    "fairgrad": Member(
        "FairGrad at 2",
        lambda base: FairGrad(base, alpha=2.0),
        lambda gram: fairgrad_weights(gram, 2.0),
        lambda _: peers.FairGradWeighting(alpha=2.0),
    ),
    "sdmgrad": Member("SDMGrad", SDMGrad, sdmgrad_weights, lambda _: peers.SDMGradWeighting()),
    "imtl-g": Member("IMTL-G", IMTLG, imtl_g_weights, lambda _: peers.IMTLGWeighting()),
    "config": Member("ConFIG", ConFIG, config_weights, lambda _: peers.ConFIG(), of_rows=True),
    "aligned-mtl": Member(
        "Aligned-MTL", AlignedMTL, aligned_mtl_weights, lambda _: peers.AlignedMTLWeighting()
    ),
    "db-mtl": Member(
        "DB-MTL",
        DBMTL,
        lambda gram: dbmtl_weights(gram, torch.ones_like(gram[0])),
        None,
        needs_losses=True,
    ),
}
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
    **{name: partial(Ours, wrap=member.wrap, member=member) for name, member in FAMILY.items()},
    **TORCHJD,
    "pytorch_optimizer": PytorchOptimizer,
}
