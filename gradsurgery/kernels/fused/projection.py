"""PCGrad's projection in Triton: T×T numbers, all visits of all tasks in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 4096  # that a program keeps in registers


def project(
    gram: Tensor,  # [..., T, T]
    order: Tensor,  # [..., T, T]
) -> Tensor:  # [..., T, T]
    """Does what :func:`gradsurgery.pcgrad_coefficients` does, in one launch."""
    num_tasks = gram.shape[-1]
    batch = torch.broadcast_shapes(gram.shape, order.shape)
    grams = gram.expand(batch).reshape(-1, num_tasks, num_tasks)
    orders = order.expand(batch).reshape(-1, num_tasks, num_tasks)
    coefficients = torch.empty(batch, dtype=gram.dtype, device=gram.device)
    width = triton.next_power_of_2(num_tasks)
    rows = min(width, max(1, _NUMBERS // width))
    if coefficients.numel():
        with torch.cuda.device_of(gram):
            _project[(len(grams),)](
                grams, orders, coefficients, num_tasks, *grams.stride(), *orders.stride(),
                ROWS=rows, WIDTH=width, num_warps=8 if rows * width > 1024 else 1,
            )  # fmt: skip
    return coefficients


@triton.jit
def _project(
    gram, order, coefficients, num_tasks,
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
            conflict = (dots < 0) & (visit != tasks) & (squared_norms != 0)
            removed = tl.where(conflict, dots / squared_norms, 0.0)
            mixed -= tl.where(visit[:, None] == others[None, :], removed[:, None], 0.0)
        cells = coefficients + tasks[:, None] * num_tasks + others[None, :]
        tl.store(cells, mixed, mask=real[:, None] & exists[None, :])
