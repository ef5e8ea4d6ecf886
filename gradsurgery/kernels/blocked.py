"""The two passes on a CPU: tiles that stay in the cache, as batches for torch's own threads."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from gradsurgery.kernels import reference

_FEW_COLUMNS = 1 << 14  # up to here float64 costs next to nothing
_COLUMNS = 1 << 22  # whose tiles' products are held at once
_CONVERTED_COLUMNS = 1 << 18  # the same, of what becomes float32 first
# Columns of a tile. Few rows are fastest in tiles of the first-level cache; of many, a narrow tile
# is more calls than work, and a wide one loses digits of its products.
_FEW_TASKS = 8
_NARROW, _WIDE_PRODUCTS, _WIDE_SUMS = 1 << 9, 1 << 11, 1 << 14
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
    if grads.dtype == torch.float64 or num_columns <= _FEW_COLUMNS:
        return reference.gram_matrix(grads)
    tile = _NARROW if num_tasks <= _FEW_TASKS else _WIDE_PRODUCTS
    whole = num_columns - num_columns % tile
    gram = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    columns = _COLUMNS if grads.dtype == torch.float32 else _CONVERTED_COLUMNS
    for block in grads[:, :whole].split(columns, dim=1):
        tiles = block.float().unflatten(1, (-1, tile))  # [T, N, tile]
        products = torch.bmm(tiles.transpose(0, 1), tiles.permute(1, 2, 0))
        gram += products.sum(0, dtype=torch.float64)
    rest = grads[:, whole:].double()
    gram += rest @ rest.T
    gram.triu_()
    gram += gram.triu(1).T
    squared_norms = gram.diagonal().tolist()
    if all(_SMALLEST < norm < _LARGEST or math.isnan(norm) for norm in squared_norms):
        return gram
    return reference.gram_matrix(grads)


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
    if grads.dtype != torch.float32 or num_columns <= _FEW_COLUMNS or grads.stride(1) != 1:
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
    whole = num_columns - num_columns % tile
    tiles = grads[:, :whole].unflatten(1, (-1, tile)).transpose(0, 1)  # [N, T, tile]
    sums = out[:whole].view(-1, 1, tile)
    factors = weights.expand(len(tiles), 1, -1)
    if in_place:
        sums.baddbmm_(factors[:, :, 1:], tiles[:, 1:], beta=first)
        out[whole:].addmv_(grads[1:, whole:].T, weights[1:], beta=first)
    else:
        torch.bmm(factors, tiles, out=sums)
        torch.mv(grads[:, whole:].T, weights, out=out[whole:])
    return out


gram_matrices = partial(reference.gram_matrices, of_one=gram_matrix)
combine_segments = partial(reference.combine_segments, of_one=combine)


def _overlap(grads: Tensor, out: Tensor) -> bool:
    return grads.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
