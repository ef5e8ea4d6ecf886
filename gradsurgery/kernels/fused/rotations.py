"""Jacobi's rotations in Triton: T×T numbers, all sweeps in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TASKS = 16  # whose matrix a program turns in its registers


def rotate(
    matrix: Tensor,  # [..., T, T]
    partners: Tensor,  # [R, size]
    num_sweeps: int,
) -> tuple[Tensor, Tensor]:  # [..., T], [..., T, T]
    """Does what :func:`gradsurgery.solvers.spectrum.spectrum` does, in one launch.

    Args:
        matrix: symmetric, ``[..., T, T]``.
        partners: of each row in each round of a sweep, ``[R, size]``, size a power of two of at
            least T.
        num_sweeps: how often all rounds are made.
    """
    num_tasks, size = matrix.shape[-1], partners.shape[-1]
    matrices = matrix.reshape(-1, num_tasks, num_tasks)
    values = matrix.new_empty(matrix.shape[:-1])
    vectors = matrix.new_empty(matrix.shape)
    if vectors.numel():
        with torch.cuda.device_of(matrix):
            _rotate[(len(matrices),)](
                matrices, partners, values, vectors, num_tasks, len(partners), num_sweeps,
                *matrices.stride(), SIZE=size, num_warps=4 if size > 8 else 1,
            )  # fmt: skip
    return values, vectors


@triton.jit
def _rotate(
    matrix, partners, values, vectors, num_tasks, num_rounds, num_sweeps,
    stride, row_stride, column_stride,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Turns size / 2 disjoint pairs of rows and columns at once, in every round."""
    batch = tl.program_id(0).to(tl.int64)
    own = tl.arange(0, SIZE)
    real = own < num_tasks
    both = real[:, None] & real[None, :]
    on_diagonal = own[:, None] == own[None, :]
    cells = own[:, None] * row_stride + own[None, :] * column_stride
    turned = tl.load(matrix + batch * stride + cells, mask=both, other=0.0)
    unit = tl.max(tl.max(tl.abs(turned), 1), 0)  # so that no square overflows or vanishes
    unit = tl.where(unit == 0, 1.0, unit)
    turned = turned / unit
    found = on_diagonal.to(turned.dtype)
    for number in range(0, num_sweeps * num_rounds):
        partner = tl.load(partners + number % num_rounds * SIZE + own)
        is_partner = partner[:, None] == own[None, :]
        diagonal = tl.sum(tl.where(on_diagonal, turned, 0.0), 1)
        beside = tl.sum(tl.where(is_partner, diagonal[None, :], 0.0), 1)
        # Rounding differs above and below the diagonal, but partners must turn alike.
        off = tl.sum(tl.where(is_partner, turned, 0.0), 1)
        off += tl.sum(tl.where(is_partner, turned.trans(1, 0), 0.0), 1)
        gap = beside - diagonal
        steep = tl.abs(gap) + tl.sqrt(gap * gap + off * off)
        tangent = off / tl.where(steep == 0, 1.0, steep)
        first = (gap > 0) | ((gap == 0) & (partner > own))
        tangent = tl.where(first, tangent, -tangent)
        cosine = 1 / tl.sqrt(1 + tangent * tangent)
        sine = cosine * tangent
        rows = tl.sum(tl.where(is_partner[:, :, None], turned[None, :, :], 0.0), 1)
        turned = cosine[:, None] * turned - sine[:, None] * rows
        columns = tl.sum(tl.where(is_partner[None, :, :], turned[:, None, :], 0.0), 2)
        turned = cosine[None, :] * turned - sine[None, :] * columns
        columns = tl.sum(tl.where(is_partner[None, :, :], found[:, None, :], 0.0), 2)
        found = cosine[None, :] * found - sine[None, :] * columns
    diagonal = tl.sum(tl.where(on_diagonal, turned, 0.0), 1)
    tl.store(values + batch * num_tasks + own, diagonal * unit, mask=real)
    cells = own[:, None] * num_tasks + own[None, :]
    tl.store(vectors + batch * num_tasks * num_tasks + cells, found, mask=both)
