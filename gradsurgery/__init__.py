"""Gradient surgery for multi-task training in PyTorch."""

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.kernels.reference import combine, gram_matrix
from gradsurgery.optim import LossSum, PCGrad, WeightedSum
from gradsurgery.sampling import (
    Annealed,
    MultiTaskLoader,
    Proportional,
    RoundRobin,
    Sequential,
    TaskSampler,
    Temperature,
)
from gradsurgery.weighting import pcgrad_coefficients, pcgrad_weights, projection_order
from gradsurgery.wrapper import MultiTaskOptimizer

__version__ = "0.1.0"

__all__ = [
    "Annealed",
    "Diagnostics",
    "LossSum",
    "MultiTaskLoader",
    "MultiTaskOptimizer",
    "PCGrad",
    "Proportional",
    "RoundRobin",
    "Sequential",
    "TaskSampler",
    "Temperature",
    "WeightedSum",
    "__version__",
    "combine",
    "gram_matrix",
    "pcgrad_coefficients",
    "pcgrad_weights",
    "projection_order",
]
