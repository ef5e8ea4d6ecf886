"""One row a method: how its optimizer is made around a base, for every test that goes over all."""

from torchjd.aggregation import MGDAWeighting

from gradsurgery import (
    CRMOGM,
    DBMTL,
    IMTLG,
    MGDA,
    RGW,
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
    SDMGrad,
    UPGrad,
    WeightedSum,
)

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
# Every method around a base, with tasks declared but in the last two rows.
WRAPPERS = {
    "loss-sum": lambda base: LossSum(base, tasks=TASKS),
    "loss-sum-monitor": lambda base: LossSum(base, tasks=TASKS, monitor=True),
    "weighted-sum": lambda base: WeightedSum(base, {"a": 1.0, "b": 0.5, "c": 2.0}),
    "weighted-sum-monitor": lambda base: WeightedSum(
        base, [1.0, 0.5, 2.0], tasks=TASKS, monitor=True
    ),
    "pcgrad-every-3": lambda base: PCGrad(base, tasks=TASKS, every=3, start_step=2),
    **{
        name: lambda base, make=make: make(base, tasks=TASKS)
        for name, make in {**GRAM_METHODS, **SEEING_METHODS}.items()
    },
    "pcgrad-mean-all": lambda base: PCGrad(base, reduction="mean", scope="all"),
    "torchjd": lambda base: MultiTaskOptimizer(base, MGDAWeighting()),
}
# Their update is no longer for longer gradients, or not in proportion, as their docstrings say.
OWN_LENGTH = ("nash-mtl", "fairgrad", "db-mtl")
DECLARED = [name for name in WRAPPERS if name not in ("pcgrad-mean-all", "torchjd")]
