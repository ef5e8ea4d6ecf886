"""Gradient surgery for multi-task training in PyTorch."""

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.kernels.reference import combine, gram_matrix
from gradsurgery.method import Method, Seen
from gradsurgery.methods.aligned_mtl import AlignedMTL, aligned_mtl_weights
from gradsurgery.methods.cagrad import CAGrad, cagrad_weights
from gradsurgery.methods.db_mtl import DBMTL, dbmtl_weights
from gradsurgery.methods.dwa import DWA, dwa_weights
from gradsurgery.methods.famo import FAMO, famo_weights
from gradsurgery.methods.gradvac import GradVac, gradvac_weights
from gradsurgery.methods.imtl_g import IMTLG, ConFIG, config_weights, imtl_g_weights
from gradsurgery.methods.mgda import MGDA, mgda_weights
from gradsurgery.methods.nash_mtl import FairGrad, NashMTL, fairgrad_weights, nash_mtl_weights
from gradsurgery.methods.order import projection_order
from gradsurgery.methods.pcgrad import PCGrad, pcgrad_coefficients, pcgrad_weights
from gradsurgery.methods.rlw import RLW
from gradsurgery.methods.scalar import (
    GLS,
    STCH,
    ScaleInvariant,
    gls_weights,
    scale_invariant_weights,
    stch_weights,
)
from gradsurgery.methods.sdmgrad import SDMGrad, sdmgrad_weights
from gradsurgery.methods.sums import LossSum, WeightedSum
from gradsurgery.methods.uncertainty import IMTLL, UncertaintyWeighting
from gradsurgery.methods.upgrad import DualProj, UPGrad, dualproj_weights, upgrad_weights
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.sampling.loader import MultiTaskLoader
from gradsurgery.sampling.random_samplers import Annealed, Proportional, Shuffled, Temperature
from gradsurgery.sampling.samplers import RoundRobin, Sequential, TaskSampler

__version__ = "0.1.0"

__all__ = [
    "DBMTL",
    "DWA",
    "FAMO",
    "GLS",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "RLW",
    "STCH",
    "AlignedMTL",
    "Annealed",
    "CAGrad",
    "ConFIG",
    "Diagnostics",
    "DualProj",
    "FairGrad",
    "GradVac",
    "LossSum",
    "Method",
    "MultiTaskLoader",
    "MultiTaskOptimizer",
    "NashMTL",
    "PCGrad",
    "Proportional",
    "RoundRobin",
    "SDMGrad",
    "ScaleInvariant",
    "Seen",
    "Sequential",
    "Shuffled",
    "TaskSampler",
    "Temperature",
    "UPGrad",
    "UncertaintyWeighting",
    "WeightedSum",
    "__version__",
    "aligned_mtl_weights",
    "cagrad_weights",
    "combine",
    "config_weights",
    "dbmtl_weights",
    "dualproj_weights",
    "dwa_weights",
    "fairgrad_weights",
    "famo_weights",
    "gls_weights",
    "gradvac_weights",
    "gram_matrix",
    "imtl_g_weights",
    "mgda_weights",
    "nash_mtl_weights",
    "pcgrad_coefficients",
    "pcgrad_weights",
    "projection_order",
    "scale_invariant_weights",
    "sdmgrad_weights",
    "stch_weights",
    "upgrad_weights",
]
