"""The passes over the per-task gradients in Triton, and the projection between them.

``gram_matrix`` and ``combine`` are those of :mod:`gradsurgery.kernels.reference`, the projection
that of :func:`gradsurgery.pcgrad_coefficients`, the rotations those of
:func:`gradsurgery.solvers.spectrum.spectrum`: same results up to rounding.

**Bytes and FLOPs.** The Gram matrix reads ``T·P`` numbers once; combine reads them again and writes
``P``. Products are float64, as in the reference, because they cost nothing where it matters: with
T = 3 in float32 an H200 delivers 0.40·10¹² columns a second (4.8 TB/s), which take 6 multiply-adds
each, 16 % of its 14.8·10¹² float64 multiply-adds a second, and 3 conversions, about a third of what
it converts. With T = 8 that is 36 %, and bfloat16 doubles every share, so that memory stays the
limit up to T = 8. Float32 products would need a scale for each block of each row, found before the
first product, so as not to lose ``g₂ = −1e-25·g₁``. A device with little float64 (1/64 of the
float32 rate) pays: an RTX 4090 about 1.2 times the time of reading at T = 3 in float32.

**Determinism.** Every program sums its own columns into its own cell and a second kernel adds the
cells in a fixed order: no atomics, equal bits on every run on one type of device.

**Capture.** Grids follow from shapes alone, nothing is read by the host, and nothing is allocated
but what the result and the partial sums take. A first call compiles, and a first call with new
``bounds`` copies a table to the device: warm up before capturing a CUDA graph.
"""

from gradsurgery.kernels.fused.columns import INTERPRETED
from gradsurgery.kernels.fused.combine import combine, combine_segments
from gradsurgery.kernels.fused.gram import gram_matrices, gram_matrix
from gradsurgery.kernels.fused.projection import project
from gradsurgery.kernels.fused.rotations import rotate

__all__ = [
    "INTERPRETED",
    "combine",
    "combine_segments",
    "gram_matrices",
    "gram_matrix",
    "project",
    "rotate",
]
