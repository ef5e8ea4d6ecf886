"""Gradient surgery for multi-task training in PyTorch."""

import dis
import importlib
import sys
from types import CodeType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Every public name, said once: for type checkers as imports, and for `__getattr__` below, which
# reads these statements off the compiled file and imports a name when somebody asks for it.
if TYPE_CHECKING:
    from gradsurgery.diagnostics import Diagnostics as Diagnostics
    from gradsurgery.gradients.sketch import Sketch as Sketch
    from gradsurgery.kernels.reference import combine as combine, gram_matrix as gram_matrix
    from gradsurgery.method import Method as Method, Seen as Seen
    from gradsurgery.methods.aligned_mtl import (
        AlignedMTL as AlignedMTL,
        aligned_mtl_weights as aligned_mtl_weights,
    )
    from gradsurgery.methods.cagrad import CAGrad as CAGrad, cagrad_weights as cagrad_weights
    from gradsurgery.methods.crmogm import CRMOGM as CRMOGM
    from gradsurgery.methods.db_mtl import DBMTL as DBMTL, dbmtl_weights as dbmtl_weights
    from gradsurgery.methods.dwa import DWA as DWA, dwa_weights as dwa_weights
    from gradsurgery.methods.famo import FAMO as FAMO, famo_weights as famo_weights
    from gradsurgery.methods.gradnorm import (
        GradNorm as GradNorm,
        gradnorm_weights as gradnorm_weights,
    )
    from gradsurgery.methods.gradvac import GradVac as GradVac, gradvac_weights as gradvac_weights
    from gradsurgery.methods.imtl_g import (
        IMTLG as IMTLG,
        ConFIG as ConFIG,
        config_weights as config_weights,
        imtl_g_weights as imtl_g_weights,
    )
    from gradsurgery.methods.mgda import MGDA as MGDA, mgda_weights as mgda_weights
    from gradsurgery.methods.nash_mtl import (
        FairGrad as FairGrad,
        NashMTL as NashMTL,
        fairgrad_weights as fairgrad_weights,
        nash_mtl_weights as nash_mtl_weights,
    )
    from gradsurgery.methods.order import projection_order as projection_order
    from gradsurgery.methods.pcgrad import (
        PCGrad as PCGrad,
        pcgrad_coefficients as pcgrad_coefficients,
        pcgrad_weights as pcgrad_weights,
    )
    from gradsurgery.methods.rgw import RGW as RGW
    from gradsurgery.methods.rlw import RLW as RLW
    from gradsurgery.methods.scalar import (
        GLS as GLS,
        STCH as STCH,
        ScaleInvariant as ScaleInvariant,
        gls_weights as gls_weights,
        scale_invariant_weights as scale_invariant_weights,
        stch_weights as stch_weights,
    )
    from gradsurgery.methods.sdmgrad import SDMGrad as SDMGrad, sdmgrad_weights as sdmgrad_weights
    from gradsurgery.methods.sums import LossSum as LossSum, WeightedSum as WeightedSum
    from gradsurgery.methods.uncertainty import (
        IMTLL as IMTLL,
        UncertaintyWeighting as UncertaintyWeighting,
    )
    from gradsurgery.methods.upgrad import (
        DualProj as DualProj,
        UPGrad as UPGrad,
        dualproj_weights as dualproj_weights,
        upgrad_weights as upgrad_weights,
    )
    from gradsurgery.optimizer.multitask import MultiTaskOptimizer as MultiTaskOptimizer
    from gradsurgery.sampling.loader import MultiTaskLoader as MultiTaskLoader
    from gradsurgery.sampling.random_samplers import (
        Annealed as Annealed,
        Proportional as Proportional,
        Shuffled as Shuffled,
        Temperature as Temperature,
    )
    from gradsurgery.sampling.samplers import (
        RoundRobin as RoundRobin,
        Sequential as Sequential,
        TaskSampler as TaskSampler,
    )


def _homes_of(code: CodeType) -> dict[str, str]:
    """Tells which file each public name comes from, by the import statements of this one."""
    homes, home = {}, ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            home = instruction.argval
        elif instruction.opname == "IMPORT_FROM" and home.startswith(f"{__name__}."):
            homes[instruction.argval] = home
    return homes


_HOMES = _homes_of(sys._getframe().f_code)
__all__ = [*_HOMES, "__version__"]

if not TYPE_CHECKING:  # a checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
