"""The passes over the per-task gradients in Triton, and the projection between them.

``gram_matrix`` and ``combine`` are those of :mod:`gradsurgery.kernels.reference`, the projection
that of :mod:`gradsurgery.weighting`: same arguments, same results up to rounding.

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

_TILE = 8  # rows whose products with each other are kept in registers
_THREADS = 128  # of a program, 4 warps


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
    first, last = _check(bounds, grads)
    return _gram(grads[:, first:last], tuple(bound - first for bound in bounds))


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
    first, last = _check(bounds, grads)
    shifted = tuple(bound - first for bound in bounds)
    _combine(weights, grads[:, first:last], shifted, out[first:last])
    return out


def pcgrad_coefficients(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Tensor:  # [..., T, T]
    """How much of every original gradient each task's projected gradient holds, in one launch."""
    return _project(gram, order)[0]


def pcgrad_weights(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Tensor:  # [..., T]
    """Weights that turn the original gradients into PCGrad's update, in one launch."""
    return _project(gram, order)[1]


def _gram(grads: Tensor, bounds: tuple[int, ...]) -> Tensor:  # [S, T, T]
    num_tasks, num_params = grads.shape
    segmented = len(bounds) > 2
    sizes = len(bounds) - 1, num_tasks, num_tasks
    if grads.numel() == 0:
        return torch.zeros(sizes, dtype=torch.float64, device=grads.device)
    num_tiles = triton.cdiv(num_tasks, _TILE)
    rows = triton.cdiv(num_tasks, num_tiles)
    num_sums = rows**2 if num_tiles > 1 else rows * (rows + 1) // 2
    columns = _columns_per_thread(num_sums, grads.element_size())
    block = _THREADS * columns
    num_programs = _num_programs(grads.device, 2 * columns * num_sums + 72)
    num_programs = max(1, num_programs // (num_tiles * (num_tiles + 1) // 2))
    chunk_columns, num_chunks = _chunks(num_params, block, num_programs)
    table = starts = None
    if segmented:
        table, starts = _tables(bounds, chunk_columns, grads.device)
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
    block = 8 * _THREADS
    chunk_columns, num_chunks = _chunks(num_params, block, _num_programs(grads.device, 64))
    table = None
    if segmented:
        table, _ = _tables(bounds, chunk_columns, grads.device)
        num_chunks = len(table)
    with torch.cuda.device_of(grads):
        _sum_rows[(num_chunks,)](
            weights, grads, out, table, num_tasks, num_params,
            *weights.stride(), *grads.stride(), out.stride(0), chunk_columns,
            ROWS=triton.cdiv(num_tasks, triton.cdiv(num_tasks, _TILE)), SEGMENTED=segmented,
            WIDE=grads.dtype == torch.float64, BLOCK=block, num_warps=4,
        )  # fmt: skip


def _project(gram: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:  # [..., T, T], [..., T]
    num_tasks = gram.shape[-1]
    batch = torch.broadcast_shapes(gram.shape, order.shape)
    grams = gram.expand(batch).reshape(-1, num_tasks, num_tasks)
    orders = order.expand(batch).reshape(-1, num_tasks, num_tasks)
    coefficients = torch.empty(batch, dtype=gram.dtype, device=gram.device)
    weights = torch.empty(batch[:-1], dtype=gram.dtype, device=gram.device)
    width = triton.next_power_of_2(num_tasks)
    rows = min(width, max(1, 4096 // width))
    if coefficients.numel():
        with torch.cuda.device_of(gram):
            _project_all[(len(grams),)](
                grams, orders, coefficients, weights,
                num_tasks, *grams.stride(), *orders.stride(),
                ROWS=rows, WIDTH=width, num_warps=8 if rows * width > 1024 else 1,
            )  # fmt: skip
    return coefficients, weights


def _columns_per_thread(num_sums: int, itemsize: int) -> int:
    """As many as leave a thread's sums, two registers each, in half of the 128 that let four
    programs share a processor; two of a half-precision type, so that its copies are 4 bytes."""
    least = 2 if itemsize == 2 and num_sums <= _TILE * (_TILE + 1) // 2 else 1
    return max(c for c in (1, 2, 4, 8) if c <= least or 2 * c * num_sums <= 64)


def _num_programs(device: torch.device, registers: int) -> int:
    """Programs that run at the same time, given the registers of a thread."""
    if device.type == "cpu":
        return 4
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return processors * min(4, 65536 // (_THREADS * registers))


def _chunks(num_params: int, block: int, num_programs: int) -> tuple[int, int]:
    """Columns of a chunk, whole blocks of them, and the number of chunks: one to a program."""
    columns = block * triton.cdiv(num_params, block * num_programs)
    return columns, triton.cdiv(num_params, columns)


def _check(bounds: Sequence[int], grads: Tensor) -> tuple[int, int]:
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
def _tables(
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
def _span(chunk, table, chunk_columns, num_params, SEGMENTED: tl.constexpr):
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
def _whole_blocks(begin, end, BLOCK: tl.constexpr):
    """The first block that lies inside a chunk as a whole, and the one after the last."""
    first = (begin + BLOCK - 1) // BLOCK
    return first, tl.maximum(end // BLOCK, first)


@triton.jit
def _rows(grads, first, num_tasks, row_stride, ROWS: tl.constexpr):
    """Where some rows begin; past the last row it is that row again."""
    rows = ()
    for k in tl.static_range(ROWS):
        row = tl.minimum(first + k, num_tasks - 1)
        rows += (grads + row.to(tl.int64) * row_stride,)
    return rows


@triton.jit
def _load(row, column, stride, begin, end, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a row; masks, which keep loads from being wide, are for chunks' ends alone."""
    places = tl.arange(0, BLOCK)
    values = row + column * stride + places * stride
    if MASKED:
        inside = (column + places >= begin) & (column + places < end)
        return tl.load(values, mask=inside, other=0.0)
    else:
        return tl.load(values)


@triton.jit
def _add_products(
    sums, left, right, column, stride, begin, end,
    TILED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a block's products to the sums, which stay apart for each column of the block."""
    left_values = ()
    for i in tl.static_range(len(left)):
        values = _load(left[i], column, stride, begin, end, MASKED, BLOCK)
        left_values += (values.to(tl.float64),)
    right_values = left_values
    if TILED:
        right_values = ()
        for j in tl.static_range(len(right)):
            values = _load(right[j], column, stride, begin, end, MASKED, BLOCK)
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
    left = _rows(grads, left_tile * ROWS, num_tasks, row_stride, ROWS)
    right = _rows(grads, right_tile * ROWS, num_tasks, row_stride, ROWS)
    sums = ()
    for i in tl.static_range(ROWS):
        for _ in tl.static_range(0 if TILED else i, ROWS):
            sums += (tl.full((BLOCK,), 0.0, tl.float64),)
    _, begin, end = _span(chunk, table, chunk_columns, num_params, SEGMENTED)
    first, last = _whole_blocks(begin, end, BLOCK)
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


@triton.jit
def _add_rows(
    total, weights, weight_stride, grads, row_stride, column, stride, begin, end, first, num_tasks,
    ROWS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a block of some rows, each times its weight, which is 0 past the last row."""
    rows = _rows(grads, first, num_tasks, row_stride, ROWS)
    for k in tl.static_range(ROWS):
        values = _load(rows[k], column, stride, begin, end, MASKED, BLOCK).to(total.dtype)
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
    segment, begin, end = _span(chunk, table, chunk_columns, num_params, SEGMENTED)
    first, last = _whole_blocks(begin, end, BLOCK)
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


@triton.jit
def _project_all(
    gram, order, coefficients, weights, num_tasks,
    gram_stride, gram_row, gram_column, order_stride, order_row, order_column,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Algorithm 1 on coefficients, some tasks at a time, each against the original gradients."""
    batch = tl.program_id(0).to(tl.int64)
    gram += batch * gram_stride
    order += batch * order_stride
    coefficients += batch * num_tasks * num_tasks
    others = tl.arange(0, WIDTH)
    exists = others < num_tasks
    entries = tl.full((WIDTH,), 0.0, gram.dtype.element_ty)
    for j in range(0, num_tasks):
        entries += tl.load(gram + j * gram_row + others * gram_column, mask=exists, other=0.0)
    # A gradient that is not finite makes every coefficient NaN: no finite part of a wrong update.
    poison = 0 * tl.sum(entries)
    total = tl.full((WIDTH,), 0.0, gram.dtype.element_ty)
    for first in range(0, num_tasks, ROWS):
        tasks = first + tl.arange(0, ROWS)
        real = tasks < num_tasks
        mixed = (tasks[:, None] == others[None, :]).to(gram.dtype.element_ty) + poison
        for place in range(0, num_tasks):
            visit = tl.load(order + tasks * order_row + place * order_column, mask=real, other=0)
            along = tl.load(
                gram + visit[:, None] * gram_row + others[None, :] * gram_column,
                mask=real[:, None] & exists[None, :],
                other=0.0,
            )
            dots = tl.sum(mixed * along, 1)
            squared_norms = tl.load(gram + visit * (gram_row + gram_column))
            conflict = (dots < 0) & (visit != tasks)
            removed = tl.where(conflict, dots / squared_norms, 0.0)
            mixed -= tl.where(visit[:, None] == others[None, :], removed[:, None], 0.0)
        cells = coefficients + tasks[:, None] * num_tasks + others[None, :]
        tl.store(cells, mixed, mask=real[:, None] & exists[None, :])
        total += tl.sum(tl.where(real[:, None], mixed, 0.0), 0)
    tl.store(weights + batch * num_tasks + others, total, mask=exists)


# Triton decides when it is imported, by the variable TRITON_INTERPRET.
INTERPRETED = not isinstance(_sum_products, triton.JITFunction)
