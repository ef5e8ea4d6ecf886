"""How a gradient lies in memory: the order of its elements, and whose storage it is."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.shards import local


def like(parameter: Tensor, row: Tensor, start: int = 0) -> Tensor:
    """A segment of a row with a parameter's shape and, where it is dense, its memory order."""
    segment = row[start : start + parameter.numel()]
    return segment.as_strided(parameter.shape, strides_of(parameter))


def strides_of(parameter: Tensor) -> tuple[int, ...]:
    """The memory order that autograd promises for a parameter's gradient."""
    return parameter.stride() if _is_dense(parameter) else _contiguous(parameter.shape)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


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
    """Whether a gradient has its memory to itself: part of a larger storage is rewritten by the
    owner of that, as DDP does with its buckets."""
    part = local(grad)
    return part.untyped_storage().nbytes() == part.numel() * part.element_size()


def flat(grad: Tensor) -> Tensor:
    """A one-dimensional view of a dense gradient, whatever its memory order."""
    return grad.as_strided((grad.numel(),), (1,))
