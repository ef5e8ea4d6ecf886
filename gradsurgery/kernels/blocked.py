"""The two passes on a CPU: tiles that stay in the cache, as batches for torch's own threads."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from gradsurgery.kernels import reference

_FEW_COLUMNS = 1 << 14  # up to here float64 costs next to nothing
_COLUMNS = 1 << 22  # whose tiles' products are held at once
_CONVERTED_COLUMNS = 1 << 18  # the same, of what becomes float32 first
# Columns of a tile. Few rows are fastest in tiles of the first-level cache; of many, a narrow tile
# is more calls than work, and a wide one loses digits of its products.
_FEW_TASKS = 8
_MANY_TASKS = 64
# Between the two a product of two parts is taken once: 0.72 of the time of all for 50 tasks, 0.81
# for 40, 0.63 for 24; from 64 on all at once is as fast.
_ROWS_OF_PART = 13
_NARROW, _WIDE_PRODUCTS, _WIDE_SUMS = 1 << 9, 1 << 11, 1 << 14
_SHORT_SUMS = 1 << 16
# Squared norms between these leave float32 room for every product that counts.
_SMALLEST, _LARGEST = 1e-20, 1e30


def gram_matrix(
    grads: Tensor,  # [T, P]
) -> Tensor:  # [T, T]
    """Like :func:`gradsurgery.kernels.reference.gram_matrix`, from one read of the rows.

    Products and the sums of a tile are float32, totals float64. Where that could underflow or
    overflow, by the squared norms that came out, and for float64 or short rows, the reference does
    it all; reading those few numbers waits for nobody on a CPU.

    Args:
        grads: per-task flat gradients, ``[T, P]``, on a CPU.

    Example:
        >>> gram_matrix(torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])).tolist()
        [[18.0, -22.0], [-22.0, 38.0]]
    """
    num_tasks, num_columns = grads.shape
    is_small = num_tasks <= _FEW_TASKS and num_columns <= _FEW_COLUMNS
    tile = _tile(num_columns) if num_tasks < _MANY_TASKS else _WIDE_PRODUCTS
    whole = num_columns - num_columns % tile
    if grads.dtype == torch.float64 or is_small or not whole:
        return reference.gram_matrix(grads)
    columns = _COLUMNS if grads.dtype == torch.float32 else _CONVERTED_COLUMNS
    columns -= columns % tile
    gram = _products(grads, 0, min(columns, whole), tile)
    for start in range(columns, whole, columns):
        gram += _products(grads, start, min(start + columns, whole), tile)
    if whole < num_columns:
        rest = grads[:, whole:].double()
        gram = torch.addmm(gram, rest, rest.T)
    gram = torch.maximum(gram, gram.T)  # whichever of the two, as long as it is the same
    squared_norms = [row[task] for task, row in enumerate(gram.tolist())]
    if all(_SMALLEST < norm < _LARGEST or math.isnan(norm) for norm in squared_norms):
        return gram
    return reference.gram_matrix(grads)


@cache
def _tile(num_columns: int) -> int:
    """Chooses columns of a tile such that none are left over, if it can."""
    widths = range(2 * _NARROW, _NARROW // 2 - 1, -32)
    return next((width for width in widths if num_columns % width == 0), _NARROW)


def _products(
    grads: Tensor,  # [T, P]
    start: int,
    end: int,
    tile: int,
) -> Tensor:  # [T, T]
    """Inner products over some columns: float32 in each tile, float64 over them."""
    num_tasks = len(grads)
    if grads.dtype != torch.float32:
        grads, start, end = grads[:, start:end].float(), 0, end - start
    shape = (end - start) // tile, num_tasks, tile
    (of_row, of_column), offset = grads.stride(), grads.storage_offset()
    strides = tile * of_column, of_row, of_column
    tiles = grads.as_strided(shape, strides, offset + start * of_column)
    if num_tasks <= _ROWS_OF_PART or num_tasks >= _MANY_TASKS:
        return torch.bmm(tiles, tiles.mT).sum(0, dtype=torch.float64)
    gram = torch.empty(num_tasks, num_tasks, dtype=torch.float64)
    num_parts = math.ceil(num_tasks / _ROWS_OF_PART)
    bounds = [num_tasks * part // num_parts for part in range(num_parts + 1)]
    for start, end in pairwise(bounds):
        part = torch.bmm(tiles[:, start:end], tiles[:, :end].mT).sum(0, dtype=torch.float64)
        gram[start:end, :end] = part
        gram[:start, start:end] = part[:, :start].T
    return gram


def combine(
    weights: Tensor,  # [T]
    grads: Tensor,  # [T, P]
    out: Tensor | None = None,  # [P]
) -> Tensor:  # [P]
    """Like :func:`gradsurgery.kernels.reference.combine`.

    Args:
        weights: one number per task, ``[T]``.
        grads: per-task flat gradients, ``[T, P]``, on a CPU.
        out: where to write the result, ``[P]``; it may be one of the rows of ``grads``.

    Example:
        >>> combine(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.5, 3.0]])).tolist()
        [2.0, 6.0]
    """
    num_columns = grads.shape[1]
    if out is None:
        out = torch.empty(num_columns, dtype=grads.dtype)
    if grads.dtype != torch.float32 or grads.stride(1) != 1:
        return reference.combine(weights, grads, out)
    first, *_ = weights.tolist()
    weights = weights.to(torch.float32)
    in_place = out.data_ptr() == grads.data_ptr()
    # A factor of 0 would overwrite what is there, were it NaN; and another row than the first is
    # still wanted when it is written.
    if in_place and (first == 0 or len(grads) == 1):
        return reference.combine(weights, grads, out)
    if not in_place and _overlap(grads, out):
        return reference.combine(weights, grads, out)
    tile = _NARROW if len(grads) <= _FEW_TASKS else _WIDE_SUMS
    # Of short rows one matrix-vector product: a third of the time for 3 of 38,000 columns.
    whole = 0 if num_columns <= _SHORT_SUMS else num_columns - num_columns % tile
    if whole:
        tiles = grads[:, :whole].unflatten(1, (-1, tile)).transpose(0, 1)  # [N, T, tile]
        sums = out[:whole].view(-1, 1, tile)
        factors = weights.expand(len(tiles), 1, -1)
        if in_place:
            sums.baddbmm_(factors[:, :, 1:], tiles[:, 1:], beta=first)
        else:
            torch.bmm(factors, tiles, out=sums)
    if in_place:
        out[whole:].addmv_(grads[1:, whole:].T, weights[1:], beta=first)
    else:
        torch.mv(grads[:, whole:].T, weights, out=out[whole:])
    return out


gram_matrices = partial(reference.gram_matrices, of_one=gram_matrix)
combine_segments = partial(reference.combine_segments, of_one=combine)


def _overlap(grads: Tensor, out: Tensor) -> bool:
    return grads.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
