"""The columns of the gradients as blocks and chunks, for the host and inside the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
    raise ImportError(f"triton: must be 3.3 or newer, found {triton.__version__}; upgrade it")

TILE = 8  # rows whose products with each other are kept in registers
THREADS = 128  # of a program, 4 warps


def num_programs_at_once(device: torch.device, registers: int) -> int:
    """Programs that run at the same time, given the registers of a thread."""
    if device.type == "cpu":
        return 4
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * min(4, 65536 // (THREADS * registers))


def chunks_of(num_params: int, block: int, num_programs: int) -> tuple[int, int]:
    """Columns of a chunk, whole blocks of them, and the number of chunks: one to a program."""
    columns = block * triton.cdiv(num_params, block * num_programs)
    return columns, triton.cdiv(num_params, columns)


def check_bounds(bounds: Sequence[int], grads: Tensor) -> tuple[int, int]:
    """The first and the last of the bounds, when they are sound."""
    num_params = grads.shape[1]
    ordered = all(first <= last for first, last in pairwise((0, *bounds, num_params)))
    if len(bounds) < 2 or not ordered:
        raise ValueError(
            f"bounds: must rise from at least 0 to at most {num_params}, the number of columns, "
            f"got {list(bounds)}; give where each segment begins and where the last one ends"
        )
    return bounds[0], bounds[-1]


@lru_cache(maxsize=64)
def tables(
    bounds: tuple[int, ...], chunk_columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:  # [num_chunks, 3], [S + 1]
    """Segment, begin and end of every chunk, and the first chunk of every segment.

    Chunks are cut at multiples of their length, so that blocks inside them start aligned.
    """
    chunks: list[tuple[int, int, int]] = []
    starts = [0]
    for segment, (first, last) in enumerate(pairwise(bounds)):
        cuts = range((first // chunk_columns + 1) * chunk_columns, last, chunk_columns)
        edges = [first, *cuts, last] if first < last else []
        chunks += [(segment, begin, end) for begin, end in pairwise(edges)]
        starts.append(len(chunks))
    table = torch.tensor(chunks, dtype=torch.int64).view(-1, 3)
    return (
        table.to(device, non_blocking=True),
        torch.tensor(starts, dtype=torch.int64).to(device, non_blocking=True),
    )


@triton.jit
def span(chunk, table, chunk_columns, num_params, SEGMENTED: tl.constexpr):
    """Segment, begin and end of a chunk."""
    if SEGMENTED:
        segment = tl.load(table + 3 * chunk)
        begin = tl.load(table + 3 * chunk + 1)
        end = tl.load(table + 3 * chunk + 2)
    else:
        segment = chunk * 0
        begin = chunk * chunk_columns
        end = tl.minimum(begin + chunk_columns, num_params)
    return segment, begin, end


@triton.jit
def whole_blocks(begin, end, BLOCK: tl.constexpr):
    """The first block that lies inside a chunk as a whole, and the one after the last."""
    first = (begin + BLOCK - 1) // BLOCK
    return first, tl.maximum(end // BLOCK, first)


@triton.jit
def row_starts(grads, first, num_tasks, row_stride, ROWS: tl.constexpr):
    """Where some rows begin; past the last row it is that row again."""
    rows = ()
    for k in tl.static_range(ROWS):
        row = tl.minimum(first + k, num_tasks - 1)
        rows += (grads + row.to(tl.int64) * row_stride,)
    return rows


@triton.jit
def load_block(row, column, stride, begin, end, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a row; masks, which keep loads from being wide, are for chunks' ends alone."""
    places = tl.arange(0, BLOCK)
    values = row + column * stride + places * stride
    if MASKED:
        inside = (column + places >= begin) & (column + places < end)
        return tl.load(values, mask=inside, other=0.0)
    else:
        return tl.load(values)


# Triton decides when it is imported, by the variable TRITON_INTERPRET.
INTERPRETED = not isinstance(span, triton.JITFunction)
