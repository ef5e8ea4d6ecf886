"""Gradient surgery for multi-task training in PyTorch."""

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.kernels.reference import combine, gram_matrix
from gradsurgery.loader import MultiTaskLoader
from gradsurgery.optim import LossSum, PCGrad, WeightedSum
from gradsurgery.random_sampling import Annealed, Proportional, Shuffled, Temperature
from gradsurgery.sampling import RoundRobin, Sequential, TaskSampler
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
    "Shuffled",
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
