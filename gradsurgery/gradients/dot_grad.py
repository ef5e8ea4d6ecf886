"""The gradients attached to parameters, ``.grad``: taken away, hidden for a while, put back."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.memory import is_held, is_whole, storage_of
from gradsurgery.gradients.shards import is_spread, local, placed_as, whole

Grads = dict[Tensor, Tensor]  # by parameter


def take(parameters: Iterable[Tensor]) -> Grads:
    """Removes ``.grad`` from every parameter that has one.

    Example:
        >>> parameter = torch.ones(2, requires_grad=True)
        >>> parameter.grad = torch.zeros(2)
        >>> take([parameter])[parameter].tolist(), parameter.grad
        ([0.0, 0.0], None)
    """
    taken: Grads = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            if type(grad) is not Tensor:
                if not (is_spread(grad) or grad.requires_grad):
                    grad = grad.detach()  # has one made that awaits another optimizer's surgery
                grad = placed_as(parameter, grad)
            taken[parameter] = grad
            parameter.grad = None
    return taken


def take_over(parameters: Iterable[Tensor], only_read: Container[Tensor] = ()) -> Grads:
    """Like :func:`take`, for us to write to: a gradient that somebody holds, or that shares its
    memory with another tensor, is copied.

    Args:
        parameters: all that may have one.
        only_read: those whose gradients nobody is going to write to.
    """
    taken = take(parameters)
    for parameter in [p for p in taken if p not in only_read]:
        grad = taken[parameter]
        if grad.layout is torch.strided and not grad.requires_grad:  # else we never write to it
            # A tensor that we alone have: the other goes away here, unless somebody holds it.
            taken[parameter] = grad = local(grad).detach()
            if is_held(storage_of(grad)):
                grad = grad.clone()
            taken[parameter] = whole(parameter, grad)
    return taken


def hide(parameters: Iterable[Tensor], buffer: GradientBuffer) -> Grads:
    """Like :func:`take`, but copies gradients that share memory with our rows or with DDP's
    buckets, which will be overwritten."""
    return {
        parameter: grad if is_whole(grad) and not buffer.holds(grad) else grad.clone()
        for parameter, grad in take(parameters).items()
    }


def put(parameters: Iterable[Tensor], grads: Mapping[Tensor, Tensor]) -> None:
    """Makes ``.grad`` what it is in ``grads``, of the other parameters ``None``."""
    for parameter in parameters:
        parameter.grad = None
    for parameter, grad in grads.items():
        parameter.grad = grad


def add(grads: Mapping[Tensor, Tensor]) -> None:
    """Adds gradients to ``.grad``, in place of which they become ours."""
    for parameter, grad in grads.items():
        parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)


def merge(into: Grads, grads: Mapping[Tensor, Tensor]) -> None:
    """Adds gradients to others, in place."""
    both = [parameter for parameter in grads if parameter in into]
    if both:
        torch._foreach_add_([local(into[p]) for p in both], [local(grads[p]) for p in both])
    for parameter, grad in grads.items():
        into.setdefault(parameter, grad)


@contextmanager
def hidden(parameters: Sequence[Tensor], buffer: GradientBuffer) -> Iterator[Grads]:
    """Hides ``.grad`` while the block makes new ones; afterwards it is what was hidden, and what
    the block has merged into that."""
    outside = hide(parameters, buffer)
    try:
        yield outside
    finally:
        put(parameters, outside)


def check_dense(name: Hashable, grads: Mapping[Tensor, Tensor]) -> None:
    """Refuses the sparse gradients of a task.

    Raises:
        ValueError: with the layout and shape.
    """
    for grad in grads.values():
        if grad.layout != torch.strided:
            raise ValueError(
                f"task {name!r}: gradients must be dense, found one of layout {grad.layout} and "
                f"shape {tuple(grad.shape)}; build the embedding with sparse=False"
            )


def multiply(grads: Iterable[Tensor], factor: Tensor) -> None:  # []
    """Multiplies gradients by a number, in place, on each device at once."""
    alike: dict[torch.device, list[Tensor]] = {}
    for grad in grads:
        alike.setdefault(grad.device, []).append(local(grad))
    for device, here in alike.items():
        torch._foreach_mul_(here, factor.to(device, non_blocking=True))
