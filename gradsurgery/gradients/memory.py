"""How a gradient lies in memory: the order of its elements, and whose storage it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gradsurgery.gradients.shards import local, whole

_BLOCK_COLUMNS = 1 << 20


def like(parameter: Tensor, row: Tensor, start: int = 0) -> Tensor:
    """A segment of a row with the shape of a parameter's real numbers and, where they are dense,
    their memory order."""
    numbers = real(parameter.detach())
    segment = row[start : start + numbers.numel()]
    return segment.as_strided(numbers.shape, strides_of(numbers))


def num_columns(parameter: Tensor) -> int:
    """How many real numbers a gradient of a parameter is."""
    return 2 * parameter.numel() if parameter.is_complex() else parameter.numel()


_TELLS_GRAD_DTYPE = hasattr(Tensor, "grad_dtype")  # from torch 2.10 on


def grad_dtype(parameter: Tensor) -> torch.dtype | None:
    """The type that a parameter's gradient must have; ``None`` where any is allowed.

    Example:
        >>> grad_dtype(torch.nn.Parameter(torch.ones(1)))
        torch.float32
    """
    if not _TELLS_GRAD_DTYPE:
        return parameter.dtype
    found: torch.dtype | None = parameter.grad_dtype
    return found


def column_dtype(parameter: Tensor) -> torch.dtype:
    """The real type of a parameter's gradient; where any is allowed, that of the parameter."""
    return (grad_dtype(parameter) or parameter.dtype).to_real()


def as_grad(parameter: Tensor, numbers: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Makes what ``.grad`` of a parameter is to be of real numbers.

    Args:
        parameter: whose gradient it is.
        numbers: the part of it that lies here; of a complex one, as :func:`real` shows it.
        dtype: the type where the parameter allows any; by default that of the numbers.

    Example:
        >>> parameter = torch.zeros(1, dtype=torch.complex64, requires_grad=True)
        >>> as_grad(parameter, torch.tensor([[1.0, 2.0]])).tolist()
        [(1+2j)]
    """
    dtype = grad_dtype(parameter) or dtype or numbers.dtype
    if parameter.is_complex():
        pairs = _of_pairs(numbers.to(dtype.to_real()), parameter)
        numbers = torch.view_as_complex(pairs).detach()
    if numbers.dtype != dtype or numbers.device != parameter.device:
        numbers = numbers.to(local(parameter).device, dtype)
    return whole(parameter, numbers)


def _of_pairs(numbers: Tensor, parameter: Tensor) -> Tensor:
    """Gives dimensions of at most one element the parameter's stride, since torch before 2.6 makes
    complex numbers of even strides only, even where a stride means nothing."""
    *sizes, _ = numbers.shape
    if min(sizes, default=2) > 1:
        return numbers
    strides = [2 * stride for stride in local(parameter).stride()]
    if numbers.numel():
        given = zip(sizes, numbers.stride()[:-1], strides, strict=True)
        strides = [free if size == 1 else stride for size, stride, free in given]
    return numbers.as_strided(numbers.shape, (*strides, 1))


def kept(
    parameter: Tensor,
    grad: Tensor,
    dtype: torch.dtype | None = None,
    *,
    copy: bool,
    room: Callable[[torch.Size, tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> Tensor:
    """Makes a gradient ours, in the memory order that autograd promises for the parameter.

    Args:
        parameter: whose gradient it is.
        grad: real numbers.
        dtype: the type that is wanted; by default that of the gradient.
        copy: whether somebody else goes on using the gradient.
        room: gives memory for a shape, strides and a type, where the gradient will be copied to.

    Example:
        >>> parameter, grad = torch.ones(2, requires_grad=True), torch.zeros(2)
        >>> kept(parameter, grad, copy=False).data_ptr() == grad.data_ptr()
        True
    """
    if room is not None:
        form = real(local(parameter).detach())
        return room(grad.shape, strides_of(form), dtype or grad.dtype)
    return owned(local(parameter), grad, dtype, copy=copy)


def check_shape(parameter: Tensor, numbers: Tensor) -> None:
    """Refuses a parameter that took on another shape after a gradient of it was kept.

    Args:
        parameter: as it is now.
        numbers: the gradient, of real numbers.

    Raises:
        ValueError: with both shapes.
    """
    shape = numbers.shape[:-1] if parameter.is_complex() else numbers.shape
    if shape != local(parameter).shape:
        raise ValueError(
            "parameter: must keep its shape between a task's backward and step(), got "
            f"{tuple(local(parameter).shape)} after {tuple(shape)}; call zero_grad() first"
        )


def strides_of(parameter: Tensor) -> tuple[int, ...]:
    """The memory order that autograd promises for a parameter's gradient."""
    return parameter.stride() if is_dense(parameter) else _contiguous(parameter.shape)


def is_dense(tensor: Tensor) -> bool:
    """Tells whether the elements fill one piece of memory, in any order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def copied(parameter: Tensor, grad: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copies a gradient into memory of its own, in the order that autograd promises."""
    strides, dtype = strides_of(parameter), dtype or grad.dtype
    kept = torch.empty_strided(grad.shape, strides, dtype=dtype, device=grad.device)
    return kept.copy_(grad)


def owned(parameter: Tensor, grad: Tensor, dtype: torch.dtype | None, *, copy: bool) -> Tensor:
    """A gradient of our own, in the memory order that autograd promises for the parameter: the one
    given, where it fits and ``copy`` does not forbid it."""
    like = real(parameter.detach()) if parameter.is_complex() else parameter
    is_ours = not copy and is_whole(grad) and grad.dtype == (dtype or grad.dtype)
    if is_ours and grad.stride() == strides_of(like):
        return grad.detach() if grad.requires_grad else grad
    return copied(like, grad, dtype)


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a row-major tensor."""
    return torch.empty(shape, device="meta").stride()


def real(tensor: Tensor) -> Tensor:
    """Views complex numbers as pairs of real ones, ``[..., 2]``: C^n is R^2n here, as it is in
    torch's optimizers. Returns a real tensor as it is.

    Writing to the result writes to ``tensor``, unless that is a lazy conjugate or negative.

    Example:
        >>> real(torch.tensor([1 + 2j])).tolist(), real(torch.ones(1)).tolist()
        ([[1.0, 2.0]], [1.0])
    """
    return torch.view_as_real(resolved(tensor)) if tensor.is_complex() else tensor


def resolved(tensor: Tensor) -> Tensor:
    """Carries out a conjugation or negation that a tensor only stands for; others stay as they
    are."""
    return tensor.resolve_conj().resolve_neg()


def is_whole(grad: Tensor) -> bool:
    """Tells whether a gradient has its memory to itself: part of a larger storage is rewritten by
    the owner of that, as DDP does with its buckets."""
    part = local(grad)
    return part.untyped_storage().nbytes() == part.numel() * part.element_size()


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's storage, good for as long as the tensor lives."""
    return int(tensor.untyped_storage()._cdata)


def is_held(storage: int) -> bool:
    """Tells whether more than one tensor lies in a storage; NumPy's arrays hold a tensor too.

    Args:
        storage: what :func:`storage_of` says of one of them.

    Example:
        >>> alone, seen = torch.ones(2), torch.ones(2)
        >>> view = seen[:1]
        >>> is_held(storage_of(alone)), is_held(storage_of(seen))
        (False, True)
    """
    return bool(_holders(storage) > _ALONE)


def alias(tensor: Tensor) -> Tensor:
    """Makes a tensor over the same memory with a storage of its own, no larger than the tensor: it
    keeps the memory alive, is saved alone, and tells whether anybody else holds it."""
    # DLPack without its stream argument: nothing waits for a device.
    found: Tensor = torch._C._from_dlpack(torch._C._to_dlpack(tensor))
    return found


def _unknown(storage: int) -> int:
    """Stands for the count where torch has none (2.4 without CUDA): whoever may hold, does."""
    return 1 << 30


_holders = getattr(torch._C, "_storage_Use_Count", _unknown)


def _count_alone() -> int:
    """Counts the holders of a storage that one tensor has and Python has seen."""
    tensor = torch.empty(0)
    return int(getattr(torch._C, "_storage_Use_Count", int)(storage_of(tensor)))


_ALONE = _count_alone()


def blocks(grads: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Equal pieces of several gradients of one parameter, each piece flat."""
    columns = [flat(grad).split(_BLOCK_COLUMNS) for grad in grads]
    yield from (list(pieces) for pieces in zip(*columns, strict=True))


def flat(grad: Tensor) -> Tensor:
    """A one-dimensional view of a dense gradient, whatever its memory order."""
    return grad.as_strided((grad.numel(),), (1,))
