"""Gradient surgery for multi-task training in PyTorch."""

from gradsurgery.diagnostics import Diagnostics
from gradsurgery.kernels.reference import combine, gram_matrix
from gradsurgery.method import Method, Seen
from gradsurgery.methods.order import projection_order
from gradsurgery.methods.pcgrad import PCGrad, pcgrad_coefficients, pcgrad_weights
from gradsurgery.methods.sums import LossSum, WeightedSum
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.sampling.loader import MultiTaskLoader
from gradsurgery.sampling.random_samplers import Annealed, Proportional, Shuffled, Temperature
from gradsurgery.sampling.samplers import RoundRobin, Sequential, TaskSampler

__version__ = "0.1.0"

__all__ = [
    "Annealed",
    "Diagnostics",
    "LossSum",
    "Method",
    "MultiTaskLoader",
    "MultiTaskOptimizer",
    "PCGrad",
    "Proportional",
    "RoundRobin",
    "Seen",
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
