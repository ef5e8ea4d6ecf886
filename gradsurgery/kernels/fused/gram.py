"""The Gram matrix of the gradients, or one for each segment of their columns, in Triton."""

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


def gram_matrix(
    grads: Tensor,  # [T, P]
) -> Tensor:  # [T, T]
    """Inner products of every pair of per-task gradients, as the reference defines them."""
    return gram_matrices(grads, (0, grads.shape[1]))[0]


def gram_matrices(
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
) -> Tensor:  # [S, T, T]
    """The Gram matrix of each segment of the columns, all for the price of one.

    Args:
        grads: per-task flat gradients, ``[T, P]``.
        bounds: where the S segments begin, and where the last one ends.

    Raises:
        ValueError: ``bounds`` do not rise, or leave the columns.
    """
    first, last = check_bounds(bounds, grads)
    return _gram(grads[:, first:last], tuple(bound - first for bound in bounds))


def _gram(grads: Tensor, bounds: tuple[int, ...]) -> Tensor:  # [S, T, T]
    num_tasks, num_params = grads.shape
    segmented = len(bounds) > 2
    sizes = len(bounds) - 1, num_tasks, num_tasks
    if grads.numel() == 0:
        return torch.zeros(sizes, dtype=torch.float64, device=grads.device)
    num_tiles = triton.cdiv(num_tasks, TILE)
    rows = triton.cdiv(num_tasks, num_tiles)
    num_sums = rows**2 if num_tiles > 1 else rows * (rows + 1) // 2
    columns = _columns_per_thread(num_sums, grads.element_size())
    block = THREADS * columns
    num_programs = num_programs_at_once(grads.device, 2 * columns * num_sums + 72)
    num_programs = max(1, num_programs // (num_tiles * (num_tiles + 1) // 2))
    chunk_columns, num_chunks = chunks_of(num_params, block, num_programs)
    table = starts = None
    if segmented:
        table, starts = tables(bounds, chunk_columns, grads.device)
        num_chunks = len(table)
    cells = num_tiles**2 * rows**2, num_chunks
    partials = torch.empty(cells, dtype=torch.float64, device=grads.device)
    gram = torch.empty(sizes, dtype=torch.float64, device=grads.device)
    width = min(triton.next_power_of_2(num_tasks), 32)
    with torch.cuda.device_of(grads):
        _sum_products[(num_tiles**2 * num_chunks,)](
            grads, partials, table,
            num_tasks, num_params, *grads.stride(), chunk_columns, num_chunks, num_tiles,
            ROWS=rows, TILED=num_tiles > 1, SEGMENTED=segmented, BLOCK=block, num_warps=4,
        )  # fmt: skip
        _add_partials[(len(bounds) - 1, num_tasks, triton.cdiv(num_tasks, width))](
            partials, gram, starts, num_tasks, num_chunks, num_tiles,
            ROWS=rows, SEGMENTED=segmented, WIDTH=width, LANES=512 // width, num_warps=4,
        )  # fmt: skip
    return gram


def _columns_per_thread(num_sums: int, itemsize: int) -> int:
    """As many as leave a thread's sums, two registers each, in half of the 128 that let four
    programs share a processor; two of a half-precision type, so that its copies are 4 bytes."""
    least = 2 if itemsize == 2 and num_sums <= TILE * (TILE + 1) // 2 else 1
    return max(c for c in (1, 2, 4, 8) if c <= least or 2 * c * num_sums <= 64)


@triton.jit
def _add_products(
    sums, left, right, column, stride, begin, end,
    TILED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a block's products to the sums, which stay apart for each column of the block."""
    left_values = ()
    for i in tl.static_range(len(left)):
        values = load_block(left[i], column, stride, begin, end, MASKED, BLOCK)
        left_values += (values.to(tl.float64),)
    right_values = left_values
    if TILED:
        right_values = ()
        for j in tl.static_range(len(right)):
            values = load_block(right[j], column, stride, begin, end, MASKED, BLOCK)
            right_values += (values.to(tl.float64),)
    added = ()
    for i in tl.static_range(len(left)):
        for j in tl.static_range(0 if TILED else i, len(right)):
            added += (sums[len(added)] + left_values[i] * right_values[j],)
    return added


@triton.jit
def _sum_products(
    grads, partials, table,
    num_tasks, num_params, row_stride, stride, chunk_columns, num_chunks, num_tiles,
    ROWS: tl.constexpr, TILED: tl.constexpr, SEGMENTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of one chunk's products for each pair of the rows of two tiles.

    Neighbouring programs take the pairs of tiles of one chunk, so that all but the first find it
    in the cache.
    """
    program = tl.program_id(0)
    chunk = (program // (num_tiles * num_tiles)).to(tl.int64)
    pair = program % (num_tiles * num_tiles)
    left_tile = pair // num_tiles
    right_tile = pair % num_tiles
    if left_tile > right_tile:
        return
    left = row_starts(grads, left_tile * ROWS, num_tasks, row_stride, ROWS)
    right = row_starts(grads, right_tile * ROWS, num_tasks, row_stride, ROWS)
    sums = ()
    for i in tl.static_range(ROWS):
        for _ in tl.static_range(0 if TILED else i, ROWS):
            sums += (tl.full((BLOCK,), 0.0, tl.float64),)
    _, begin, end = span(chunk, table, chunk_columns, num_params, SEGMENTED)
    first, last = whole_blocks(begin, end, BLOCK)
    if SEGMENTED:  # noqa: SIM102 - settled when the kernel is compiled, unlike the next
        if begin < first * BLOCK:
            sums = _add_products(
                sums, left, right, (first - 1) * BLOCK, stride, begin, end, TILED, True, BLOCK
            )
    for block in tl.range(first, last, num_stages=3):
        sums = _add_products(
            sums, left, right, block * BLOCK, stride, begin, end, TILED, False, BLOCK
        )
    if last * BLOCK < end:
        sums = _add_products(
            sums, left, right, last * BLOCK, stride, begin, end, TILED, True, BLOCK
        )
    cell = partials + pair.to(tl.int64) * ROWS * ROWS * num_chunks + chunk
    for i in tl.static_range(ROWS):
        for j in tl.static_range(0 if TILED else i, ROWS):
            total = tl.sum(sums[i * ROWS + j if TILED else i * (2 * ROWS - 1 - i) // 2 + j])
            tl.store(cell + (i * ROWS + j) * num_chunks, total)


@triton.jit
def _add_partials(
    partials, gram, starts, num_tasks, num_chunks, num_tiles,
    ROWS: tl.constexpr, SEGMENTED: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Adds the chunks' sums for one row of the Gram matrix, always in the same order."""
    segment = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1)
    j = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    exists = j < num_tasks
    above = tl.minimum(i, j)
    below = tl.minimum(tl.maximum(i, j), num_tasks - 1)
    pair = above // ROWS * num_tiles + below // ROWS
    cell = (pair * ROWS + above % ROWS) * ROWS + below % ROWS
    sums = partials + cell.to(tl.int64)[:, None] * num_chunks
    first = tl.load(starts + segment) if SEGMENTED else segment * 0
    last = tl.load(starts + segment + 1) if SEGMENTED else first + num_chunks
    total = tl.full((WIDTH, LANES), 0.0, tl.float64)
    for chunk in range(first, last, LANES):
        chunks = chunk + tl.arange(0, LANES)[None, :]
        total += tl.load(sums + chunks, mask=chunks < last, other=0.0)
    row = gram + (segment * num_tasks + i) * num_tasks
    tl.store(row + j, tl.sum(total, 1), mask=exists)
