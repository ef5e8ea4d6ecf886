"""Eigenvalues of Gram matrices, without a wait for the device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_SWEEPS = {1: 0, 2: 1, 3: 4, 4: 5, 5: 5, 6: 6, 7: 6, 8: 6}  # by the number of tasks
_MOST_SWEEPS = 10


def spectrum(
    matrix: Tensor,  # [..., T, T]
    *,
    fixed: bool | None = None,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:  # [..., T], [..., T, T]
    """Finds eigenvalues and eigenvectors of symmetric matrices.

    On a CPU by LAPACK; elsewhere by Jacobi's rotations, T / 2 disjoint ones at once, because
    ``torch.linalg.eigh`` reads its error code from the device. A fused kernel makes them in one
    launch for up to 16 tasks; operations on tensors take 160 launches for three tasks and 550 for
    eight, 13 for each round of T / 2 rotations.

    Args:
        matrix: symmetric, ``[..., T, T]``.
        fixed: whether to do a fixed amount of work; by default away from the CPU.
        fused: whether fused kernels may be used.

    Returns:
        Eigenvalues ``[..., T]``, in no particular order, and eigenvectors in the columns of
        ``[..., T, T]``.

    Example:
        >>> values, _ = spectrum(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
        >>> sorted(round(value, 6) for value in values.tolist())
        [1.0, 3.0]

    Source: Ahmed H. Sameh, "On Jacobi and Jacobi-like algorithms for a parallel computer", 1971.
    """
    num_tasks = matrix.shape[-1]
    num_sweeps = _SWEEPS.get(num_tasks, _MOST_SWEEPS)
    if fused:
        from gradsurgery.kernels.fused.rotations import MOST_TASKS, rotate

        if num_tasks <= MOST_TASKS:
            size = 1 << max(1, (num_tasks - 1).bit_length())  # a power of two
            return rotate(matrix, _rounds(size, matrix.device), num_sweeps)
    if matrix.device.type != "cpu" if fixed is None else fixed:
        return _by_rotations(matrix, num_sweeps)
    finite = torch.where(matrix.isfinite(), matrix, 0)  # LAPACK refuses the others
    values, vectors = torch.linalg.eigh(finite)
    return values, vectors


def _by_rotations(matrix: Tensor, num_sweeps: int) -> tuple[Tensor, Tensor]:
    num_tasks = matrix.shape[-1]
    padding = num_tasks % 2
    turned = torch.nn.functional.pad(matrix, (0, padding, 0, padding))
    size = num_tasks + padding
    places, ties, swaps, eye, zero = _constants(size, matrix.dtype, matrix.device)
    turns = eye.expand(turned.shape)
    for _ in range(num_sweeps):
        for place, tie, swap in zip(places, ties, swaps, strict=True):
            own, beside, off = turned.flatten(-2)[..., place].unbind(-2)
            # The smaller of two rotations; its angle is opposite for two partners, at a tie too.
            angle = torch.addcdiv(zero, off, beside - own + tie, value=2).atan() / 2
            cosine, sine = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
            turn = torch.addcmul(eye * cosine, swap, sine, value=-1)
            turned = turn @ turned @ turn.mT
            turns = turn @ turns
    values = turned.diagonal(dim1=-2, dim2=-1)
    return values[..., :num_tasks], turns.mT[..., :num_tasks, :num_tasks]


@lru_cache
def _constants(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor]:
    """For each round the places in a flat matrix of everyone's own entry, the partner's and that
    beside the diagonal ``[3, size]``, what parts ties ``[size]``, and who swaps with whom ``[size,
    size]``; then the identity and 0. Made once for each device."""
    partners = _rounds(size, device)
    own = torch.arange(size, device=device).expand_as(partners)
    # One of the two entries for both: rounding differs above and below the diagonal.
    off = torch.minimum(own, partners) * size + torch.maximum(own, partners)
    places = torch.stack((own * (size + 1), partners * (size + 1), off), -2)
    ties = torch.where(partners > own, 1.0, -1.0).to(dtype) * torch.finfo(dtype).tiny
    eye = torch.eye(size, dtype=dtype, device=device)
    return places.unbind(), ties.unbind(), eye[partners].unbind(), eye, eye.new_zeros(())


@lru_cache
def _rounds(size: int, device: torch.device) -> Tensor:  # [size - 1, size]
    """The partner of everyone in each round of a tournament; made once for each device."""
    ring = list(range(size))
    found = []
    for _ in range(size - 1):
        partner = [0] * size
        for one, other in zip(ring[: size // 2], reversed(ring[size // 2 :]), strict=True):
            partner[one], partner[other] = other, one
        found.append(partner)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return torch.tensor(found, dtype=torch.int64, device=device).view(size - 1, size)
