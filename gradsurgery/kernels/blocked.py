"""The two passes on a CPU: blocks that stay in the cache, on as many threads as torch has."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from torch import Tensor

from gradsurgery.kernels import reference

_FEW_COLUMNS = 1 << 14  # up to here float64 costs next to nothing
_COLUMNS = 1 << 18  # of a block: a few rows of it stay in a CPU's last-level cache
_FEW_TASKS = 6  # up to here a product with each row is faster than one with all
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
    starts = range(0, num_columns, _COLUMNS)
    parts = torch.zeros(len(starts), num_tasks, num_tasks)

    def multiply(block: int) -> None:
        rows = grads[:, starts[block] : starts[block] + _COLUMNS].float()
        if num_tasks > _FEW_TASKS:
            torch.mm(rows, rows.T, out=parts[block])
            return
        for task in range(num_tasks):
            torch.mv(rows[task:], rows[task], out=parts[block, task, task:])

    _for_all(multiply, len(starts))
    gram = parts.sum(0, dtype=torch.float64).triu_()
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
    """The same as :func:`gradsurgery.kernels.reference.combine`.

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
    starts = range(0, num_columns, _COLUMNS)

    def add(block: int) -> None:
        columns = slice(starts[block], starts[block] + _COLUMNS)
        if in_place:
            out[columns].addmv_(grads[1:, columns].T, weights[1:], beta=first)
        else:
            torch.mv(grads[:, columns].T, weights, out=out[columns])

    _for_all(add, len(starts))
    return out


gram_matrices = partial(reference.gram_matrices, of_one=gram_matrix)
combine_segments = partial(reference.combine_segments, of_one=combine)
pcgrad_coefficients = reference.pcgrad_coefficients


def _overlap(grads: Tensor, out: Tensor) -> bool:
    return grads.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()


def _for_all(work: Callable[[int], None], num_blocks: int) -> None:
    """Does the work on every block, on torch's number of threads."""
    num_threads = min(torch.get_num_threads(), num_blocks)
    cuts = [num_blocks * i // num_threads for i in range(num_threads + 1)]

    def share(thread: int) -> None:
        with torch.no_grad():  # which is a setting of each thread
            for block in range(cuts[thread], cuts[thread + 1]):
                work(block)

    if num_threads == 1:
        share(0)
    else:
        list(_pool(num_threads).map(share, range(num_threads)))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="gradsurgery")
