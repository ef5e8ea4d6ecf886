"""The weighted sum of the gradients, in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsurgery.kernels.fused.columns import (
    THREADS,
    TILE,
    check_bounds,
    chunks_of,
    load_block,
    num_programs_at_once,
    row_starts,
    span,
    tables,
    whole_blocks,
)


def combine(
    weights: Tensor,  # [T]
    grads: Tensor,  # [T, P]
    out: Tensor | None = None,  # [P]
) -> Tensor:  # [P]
    """Weighted sum of the per-task gradients, as the reference defines it."""
    if out is None:
        out = torch.empty(grads.shape[1], dtype=grads.dtype, device=grads.device)
    return combine_segments(weights.unsqueeze(0), grads, (0, grads.shape[1]), out)


def combine_segments(
    weights: Tensor,  # [S, T]
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
    out: Tensor,  # [P]
) -> Tensor:  # [P]
    """Weighted sum with weights of its own for each segment of the columns, in one pass.

    Args:
        weights: one number for each segment and task, ``[S, T]``, on the device of ``grads``.
        grads: per-task flat gradients, ``[T, P]``.
        bounds: where the S segments begin, and where the last one ends; other columns of ``out``
            stay as they are.
        out: where to write the result, ``[P]``; it may be one of the rows of ``grads``.

    Raises:
        ValueError: ``bounds`` do not rise, or leave the columns.
    """
    first, last = check_bounds(bounds, grads)
    shifted = tuple(bound - first for bound in bounds)
    _combine(weights, grads[:, first:last], shifted, out[first:last])
    return out


def _combine(
    weights: Tensor,  # [S, T]
    grads: Tensor,  # [T, P]
    bounds: tuple[int, ...],
    out: Tensor,  # [P]
) -> None:
    num_tasks, num_params = grads.shape
    segmented = len(bounds) > 2
    if num_params == 0:
        return
    block = 8 * THREADS
    chunk_columns, num_chunks = chunks_of(num_params, block, num_programs_at_once(grads.device, 64))
    table = None
    if segmented:
        table, _ = tables(bounds, chunk_columns, grads.device)
        num_chunks = len(table)
    with torch.cuda.device_of(grads):
        _sum_rows[(num_chunks,)](
            weights, grads, out, table, num_tasks, num_params,
            *weights.stride(), *grads.stride(), out.stride(0), chunk_columns,
            ROWS=triton.cdiv(num_tasks, triton.cdiv(num_tasks, TILE)), SEGMENTED=segmented,
            WIDE=grads.dtype == torch.float64, BLOCK=block, num_warps=4,
        )  # fmt: skip


@triton.jit
def _add_rows(
    total, weights, weight_stride, grads, row_stride, column, stride, begin, end, first, num_tasks,
    ROWS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a block of some rows, each times its weight, which is 0 past the last row."""
    rows = row_starts(grads, first, num_tasks, row_stride, ROWS)
    for k in tl.static_range(ROWS):
        values = load_block(rows[k], column, stride, begin, end, MASKED, BLOCK).to(total.dtype)
        weight = tl.load(weights + (first + k) * weight_stride, mask=first + k < num_tasks, other=0)
        total += weight.to(total.dtype) * values
    return total


@triton.jit
def _sum_block(
    weights, weight_stride, grads, row_stride, out, out_stride, column, stride, begin, end,
    num_tasks,
    ROWS: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the weighted sum of all rows over one block."""
    total = tl.full((BLOCK,), 0.0, tl.float64 if WIDE else tl.float32)
    for first in range(0, num_tasks, ROWS):
        total = _add_rows(
            total, weights, weight_stride, grads, row_stride, column, stride, begin, end, first,
            num_tasks, ROWS, MASKED, BLOCK,
        )  # fmt: skip
    places = column + tl.arange(0, BLOCK)
    values = total.to(out.dtype.element_ty)
    if MASKED:
        tl.store(out + places * out_stride, values, mask=(places >= begin) & (places < end))
    else:
        tl.store(out + places * out_stride, values)


@triton.jit
def _sum_rows(
    weights, grads, out, table, num_tasks, num_params,
    segment_stride, weight_stride, row_stride, stride, out_stride, chunk_columns,
    ROWS: tl.constexpr, SEGMENTED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weighted sum of all rows over one chunk.

    Every block is read as a whole before it is written, so ``out`` may be one of the rows.
    """
    chunk = tl.program_id(0).to(tl.int64)
    segment, begin, end = span(chunk, table, chunk_columns, num_params, SEGMENTED)
    first, last = whole_blocks(begin, end, BLOCK)
    own = weights + segment * segment_stride
    if SEGMENTED:  # noqa: SIM102 - settled when the kernel is compiled, unlike the next
        if begin < first * BLOCK:
            _sum_block(
                own, weight_stride, grads, row_stride, out, out_stride, (first - 1) * BLOCK,
                stride, begin, end, num_tasks, ROWS, WIDE, True, BLOCK,
            )  # fmt: skip
    for block in range(first, last):
        _sum_block(
            own, weight_stride, grads, row_stride, out, out_stride, block * BLOCK,
            stride, begin, end, num_tasks, ROWS, WIDE, False, BLOCK,
        )  # fmt: skip
    if last * BLOCK < end:
        _sum_block(
            own, weight_stride, grads, row_stride, out, out_stride, last * BLOCK,
            stride, begin, end, num_tasks, ROWS, WIDE, True, BLOCK,
        )  # fmt: skip
