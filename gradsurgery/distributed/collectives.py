"""Collectives of processes: over one tensor, and over many gradients of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gradsurgery.distributed.columns import copy, cut
from gradsurgery.gradients.memory import as_grad, column_dtype, like, real, strides_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the processes, in place."""
    from torch.distributed import all_reduce

    all_reduce(part, group=group)
    return part


def largest_over(part: Tensor, group: ProcessGroup) -> Tensor:
    """The largest over the processes of each number, in place."""
    from torch.distributed import ReduceOp, all_reduce

    all_reduce(part, ReduceOp.MAX, group=group)
    return part


def sum_of_own(rows: Tensor, group: ProcessGroup) -> Tensor:  # [W, ...] -> [...]
    """This process's entry of the sum over the processes."""
    found = rows.new_empty(rows.shape[1:])
    _named("reduce_scatter_single", "reduce_scatter_tensor")(
        found.view(-1), rows.view(-1), group=group
    )
    return found


def everybodys(part: Tensor, group: ProcessGroup) -> Tensor:  # [...] -> [W, ...]
    """Gives all processes what each has."""
    from torch.distributed import get_world_size

    found = part.new_empty((get_world_size(group), *part.shape))
    _named("all_gather_single", "all_gather_into_tensor")(found.view(-1), part, group=group)
    return found


def average(grads: Mapping[Tensor, Tensor | None], group: ProcessGroup) -> dict[Tensor, Tensor]:
    """The mean over the processes, in place; a gradient that is missing here counts as zero.

    Args:
        grads: by parameter, the same parameters in the same order on every process.
        group: the processes.
    """
    from torch.distributed import get_world_size

    averaged = {parameter: _in_order(parameter, grad) for parameter, grad in grads.items()}
    for bucket in cut(averaged, column_dtype, 1):
        (pieces,) = bucket.pieces
        columns = torch.zeros(bucket.width, dtype=bucket.dtype, device=bucket.device)
        copy((columns[piece.columns], piece.of(averaged[piece.parameter])) for piece in pieces)
        columns /= get_world_size(group)
        sum_over(columns, group)
        copy((piece.of(averaged[piece.parameter]), columns[piece.columns]) for piece in pieces)
    return averaged


def _in_order(parameter: Tensor, grad: Tensor | None) -> Tensor:
    """A gradient, or the real numbers of a complex one, in the memory order of its parameter; zero
    where there is none."""
    form = real(parameter.detach())
    if grad is None:
        zeros = torch.zeros(form.numel(), dtype=column_dtype(parameter), device=parameter.device)
        return as_grad(parameter, like(parameter, zeros), parameter.dtype)
    numbers = real(grad)
    if numbers.stride() == strides_of(form):
        return grad.resolve_conj().resolve_neg()
    kept = torch.empty(form.numel(), dtype=numbers.dtype, device=grad.device)
    kept = like(parameter, kept).copy_(numbers)
    return torch.view_as_complex(kept) if grad.is_complex() else kept


def _named(name: str, before: str) -> Callable[..., Any]:
    """A collective under the name that it has in this version of torch."""
    found: Callable[..., Any] | None = getattr(torch.distributed, name, None)
    return found or cast("Callable[..., Any]", getattr(torch.distributed, before))
