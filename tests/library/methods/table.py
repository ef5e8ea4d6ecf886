"""One row a method: how its optimizer is made around a base, for every test that goes over all."""

import torch
from torchjd.aggregation import MGDAWeighting

from gradsurgery import (
    CRMOGM,
    DBMTL,
    DWA,
    FAMO,
    GLS,
    IMTLG,
    IMTLL,
    MGDA,
    RGW,
    RLW,
    STCH,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradNorm,
    GradVac,
    LossSum,
    MultiTaskOptimizer,
    NashMTL,
    PCGrad,
    ScaleInvariant,
    SDMGrad,
    UncertaintyWeighting,
    UPGrad,
    WeightedSum,
)
from gradsurgery.methods.order import standard_normals

TASKS = ("a", "b", "c")


def equal_norms(gram):
    """Weights that give every task's gradient the same length."""
    norms = gram.diagonal().sqrt()
    return norms.mean() / norms


# Methods that need nothing but gradients, by the name of their tests.
GRAM_METHODS = {
    "pcgrad": lambda base, **o: PCGrad(base, seed=3, **o),
    "gradvac": lambda base, **o: GradVac(base, seed=3, **o),
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "mgda": MGDA,
    "sdmgrad": SDMGrad,
    "cagrad": CAGrad,
    "nash-mtl": NashMTL,
    "fairgrad": lambda base, **o: FairGrad(base, alpha=2.0, **o),
    "imtl-g": IMTLG,
    "config": ConFIG,
    "aligned-mtl": AlignedMTL,
    "rgw": lambda base, **o: RGW(base, seed=3, **o),
    "cr-mogm": lambda base, **o: CRMOGM(base, UPGrad, **o),
    "custom": lambda base, **o: MultiTaskOptimizer(base, equal_norms, **o),
}
# Methods that ask for the losses besides.
SEEING_METHODS = {"gradnorm": GradNorm, "db-mtl": DBMTL}
SUMS = {
    "loss-sum": LossSum,
    "loss-sum-monitor": lambda base, **o: LossSum(base, monitor=True, **o),
}
# Methods that weigh the losses.
LOSS_METHODS = {
    "uncertainty": UncertaintyWeighting,
    "imtl-l": IMTLL,
    "dwa": lambda base, **o: DWA(base, window=2, **o),
    "rlw": lambda base, **o: RLW(base, seed=3, **o),
    "gls": GLS,
    "stch": STCH,
    "stch-warmed-up": lambda base, **o: STCH(base, mu=0.5, warmup_steps=2, **o),
    "famo": lambda base, **o: FAMO(base, warn=False, **o),  # nobody looks again
    "scale-invariant": ScaleInvariant,
}
# Every method around a base, with tasks declared but in the last two rows.
WRAPPERS = {
    "loss-sum": lambda base: LossSum(base, tasks=TASKS),
    "loss-sum-monitor": lambda base: LossSum(base, tasks=TASKS, monitor=True),
    "weighted-sum": lambda base: WeightedSum(base, {"a": 1.0, "b": 0.5, "c": 2.0}),
    "weighted-sum-monitor": lambda base: WeightedSum(
        base, [1.0, 0.5, 2.0], tasks=TASKS, monitor=True
    ),
    "loss-sum-sketch": lambda base: LossSum(base, tasks=TASKS, monitor="sketch"),
    "pcgrad-host": lambda base: PCGrad(base, tasks=TASKS, buffer_device="cpu"),
    "pcgrad-sketch": lambda base: PCGrad(base, tasks=TASKS, memory="sketch"),
    "pcgrad-every-3": lambda base: PCGrad(base, tasks=TASKS, every=3, start_step=2),
    **{
        name: lambda base, make=make: make(base, tasks=TASKS)
        for name, make in (GRAM_METHODS | SEEING_METHODS | LOSS_METHODS).items()
    },
    "uncertainty-mean": lambda base: UncertaintyWeighting(base, tasks=TASKS, reduction="mean"),
    "pcgrad-mean-all": lambda base: PCGrad(base, reduction="mean", scope="all"),
    "torchjd": lambda base: MultiTaskOptimizer(base, MGDAWeighting()),
}
# Their update is no longer for longer gradients, or not in proportion, as their docstrings say.
OWN_LENGTH = ("nash-mtl", "fairgrad", "db-mtl")
DECLARED = [name for name in WRAPPERS if name not in ("pcgrad-mean-all", "torchjd")]
# The weight of a task alone in the first step, where it is not 1: of its loss and its number.
ALONE = {
    "uncertainty": lambda loss, number: 0.5,
    "uncertainty-mean": lambda loss, number: 0.5,
    "rlw": lambda loss, number: torch.softmax(standard_normals(3, seed=3, step=0), 0)[number],
    "stch-warmed-up": lambda loss, number: 1 / loss,
    "scale-invariant": lambda loss, number: 1 / loss,
}


def back_propagate(optimizer, block, loss):
    """Back-propagates a loss in a block, as a method that asks for losses must see it."""
    if getattr(getattr(optimizer, "weighting", None), "needs_losses", False):
        block.backward(loss)
    else:
        loss.backward()
