"""The two passes on a CPU: blocks that stay in the cache, on as many threads as torch has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from gradsurgery.kernels import reference

_FEW_COLUMNS = 1 << 14  # up to here float64 costs next to nothing
_COLUMNS = 1 << 17  # of a block: a few rows of it fit a CPU's second-level cache
_PAIRWISE_TASKS = 6  # up to here a dot product for each pair is faster than a matrix product
_TILE = 1 << 10  # columns that one small matrix product of `combine` turns into a sum
# Squared norms between these leave float32 room for every product that counts.
_SMALLEST, _LARGEST = 1e-20, 1e30


def gram_matrix(
    grads: Tensor,  # [T, P]
) -> Tensor:  # [T, T]
    """The same as :func:`gradsurgery.kernels.reference.gram_matrix`, from one read of the rows.

    Products and the sums of a block are float32, totals float64. Where that could underflow or
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
    of_block = _gram_by_pairs if num_tasks <= _PAIRWISE_TASKS else _gram_by_product
    blocks = grads.split(_COLUMNS, dim=1)
    if num_tasks <= _PAIRWISE_TASKS:
        parts = _in_threads(of_block, blocks)
    else:
        parts = [of_block(block) for block in blocks]  # a large product has threads of its own
    gram = torch.stack(parts).sum(0, dtype=torch.float64)
    squared_norms = gram.diagonal().tolist()
    if all(_SMALLEST < norm < _LARGEST or math.isnan(norm) for norm in squared_norms):
        return gram
    return reference.gram_matrix(grads)


def combine(
    weights: Tensor,  # [T]
    grads: Tensor,  # [T, P]
    out: Tensor | None = None,  # [P]
) -> Tensor:  # [P]
    """The same as :func:`gradsurgery.kernels.reference.combine`.

    Args:
        weights: one number per task, ``[T]``.
        grads: per-task flat gradients, ``[T, P]``, on a CPU.
        out: where to write the result, ``[P]``; it may be one of the rows of ``grads``.

    Example:
        >>> combine(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.5, 3.0]])).tolist()
        [2.0, 6.0]
    """
    num_tasks, num_columns = grads.shape
    if grads.dtype != torch.float32 or grads.stride(1) != 1:
        return reference.combine(weights, grads, out)
    if out is None:
        out = torch.empty(num_columns, dtype=grads.dtype)
    row = weights.to(torch.float32)[None, None]
    whole = num_columns - num_columns % _TILE
    scratch = torch.empty(min(whole, _COLUMNS) // _TILE, 1, _TILE)
    for start in range(0, whole, _COLUMNS):
        end = min(start + _COLUMNS, whole)
        tiles = grads[:, start:end].unflatten(1, (-1, _TILE)).transpose(0, 1)  # [tiles, T, _TILE]
        sums = scratch[: len(tiles)]
        torch.bmm(row.expand(len(tiles), 1, num_tasks), tiles, out=sums)
        out[start:end].copy_(sums.flatten())
    if whole < num_columns:
        reference.combine(weights, grads[:, whole:], out[whole:])
    return out


def gram_matrices(
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
) -> Tensor:  # [S, T, T]
    """The same as :func:`gradsurgery.kernels.reference.gram_matrices`."""
    return torch.stack([gram_matrix(grads[:, start:end]) for start, end in pairwise(bounds)])


def combine_segments(
    weights: Tensor,  # [S, T]
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
    out: Tensor,  # [P]
) -> Tensor:  # [P]
    """The same as :func:`gradsurgery.kernels.reference.combine_segments`."""
    for of_segment, (start, end) in zip(weights, pairwise(bounds), strict=True):
        combine(of_segment, grads[:, start:end], out[start:end])
    return out


def _gram_by_pairs(block: Tensor) -> Tensor:  # [T, columns] -> [T, T]
    rows = block.float().unbind()
    products = {(i, j): torch.dot(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    cells = [products[max(i, j), min(i, j)] for i in range(len(rows)) for j in range(len(rows))]
    return torch.stack(cells).view(len(rows), len(rows))


def _gram_by_product(block: Tensor) -> Tensor:  # [T, columns] -> [T, T]
    rows = block.float()
    return rows @ rows.T


def _in_threads(function: Callable[[Tensor], Tensor], blocks: tuple[Tensor, ...]) -> list[Tensor]:
    """The function of every block, in order, on torch's number of threads."""
    num_threads = min(torch.get_num_threads(), len(blocks))
    if num_threads == 1:
        return [function(block) for block in blocks]
    return list(_pool(num_threads).map(function, blocks))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="gradsurgery")
