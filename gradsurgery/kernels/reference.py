"""The two passes over the big buffer in plain torch, on any device: the definition of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def gram_matrix(
    grads: Tensor,  # [T, P]
) -> Tensor:  # [T, T]
    r"""Inner products of every pair of per-task gradients.

    .. math:: G_{ij} = \langle g_i, g_j \rangle

    Products and totals are float64 (float32 on a device without float64), block by block, so that
    the result does not depend on the range or the precision of the gradients' own type, and no
    second copy of the gradients is ever made.

    Args:
        grads: per-task flat gradients, ``[T, P]``, any floating type; rows may be strided.

    Returns:
        The Gram matrix ``[T, T]``, on the device of ``grads``.

    Example:
        >>> gram_matrix(torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])).tolist()
        [[18.0, -22.0], [-22.0, 38.0]]
    """
    wide = widest_dtype(grads.device)
    gram = torch.zeros(grads.shape[0], grads.shape[0], dtype=wide, device=grads.device)
    for block in grads.split(_block_columns(grads.device), dim=1):
        rows = block.to(wide)
        gram.addmm_(rows, rows.T)
    return gram


def combine(
    weights: Tensor,  # [T]
    grads: Tensor,  # [T, P]
    out: Tensor | None = None,  # [P]
) -> Tensor:  # [P]
    r"""Weighted sum of the per-task gradients.

    .. math:: u = \sum_t w_t \, g_t

    Sums are float32 for types of up to 32 bits and float64 for float64, rounded once at the end.

    Args:
        weights: one number per task, ``[T]``, on the device of ``grads``.
        grads: per-task flat gradients, ``[T, P]``.
        out: where to write the result, ``[P]``; it may be one of the rows of ``grads``.

    Returns:
        ``out``, or a new tensor ``[P]`` in the type of ``grads``.

    Example:
        >>> combine(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.5, 3.0]])).tolist()
        [2.0, 6.0]
    """
    if out is None:
        out = torch.empty(grads.shape[1], dtype=grads.dtype, device=grads.device)
    sum_dtype = torch.float64 if grads.dtype == torch.float64 else torch.float32
    weights = weights.to(sum_dtype)
    columns = _block_columns(grads.device)
    for block, target in zip(grads.split(columns, dim=1), out.split(columns), strict=True):
        target.copy_(torch.mv(block.to(sum_dtype).T, weights))
    return out


def gram_matrices(
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
    of_one: Callable[[Tensor], Tensor] = gram_matrix,
) -> Tensor:  # [S, T, T]
    """The Gram matrix of each segment of the columns.

    Args:
        grads: per-task flat gradients, ``[T, P]``.
        bounds: where the S segments begin, and where the last one ends.
        of_one: makes that of one segment.

    Example:
        >>> gram_matrices(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), [0, 1, 2]).tolist()
        [[[1.0, 3.0], [3.0, 9.0]], [[4.0, -2.0], [-2.0, 1.0]]]
    """
    found = [of_one(grads[:, start:end]) for start, end in pairwise(bounds)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def combine_segments(
    weights: Tensor,  # [S, T]
    grads: Tensor,  # [T, P]
    bounds: Sequence[int],  # [S + 1]
    out: Tensor,  # [P]
    of_one: Callable[[Tensor, Tensor, Tensor], Tensor] = combine,
) -> Tensor:  # [P]
    """Weighted sum of the per-task gradients, with weights of its own in each segment.

    Args:
        weights: one number for each segment and task, ``[S, T]``, on the device of ``grads``.
        grads: per-task flat gradients, ``[T, P]``.
        bounds: where the S segments begin, and where the last one ends.
        out: where to write the result, ``[P]``; it may be one of the rows of ``grads``.
        of_one: makes that of one segment.

    Example:
        >>> grads = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> weights = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
        >>> combine_segments(weights, grads, [0, 1, 2], torch.empty(2)).tolist()
        [4.0, 0.0]
    """
    for of_segment, (start, end) in zip(weights, pairwise(bounds), strict=True):
        of_one(of_segment, grads[:, start:end], out[start:end])
    return out


def widest_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type the device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _block_columns(device: torch.device) -> int:
    """Columns a block: small enough for a CPU's cache, large enough to hide a GPU's launches."""
    return 1 << 14 if device.type == "cpu" else 1 << 20
