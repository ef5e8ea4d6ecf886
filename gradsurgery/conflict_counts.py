"""Counts in how many surgeries two tasks took part, and in how many of them they conflicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.gradients.places import placed_pairs

_MOST_WAITING = 1 << 12  # numbers of Gram matrices


class ConflictCounts:
    """Counts over pairs of the N tasks, ``[N, N]``, which grow with them.

    On a CPU the Gram matrices of many surgeries wait until somebody asks: counted one by one they
    are 6 % of a step of three tasks on a small network. On a device, where a CUDA graph may be
    replayed, none waits.

    Example:
        >>> counts = ConflictCounts()
        >>> counts.add(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]), [0, 1], 2)
        >>> counts.read()[1].tolist()
        [[0, 1], [1, 0]]
    """

    def __init__(self, met: Tensor | None = None, conflicted: Tensor | None = None) -> None:
        self._met = met
        self._conflicted = conflicted
        self._waiting: list[Tensor] = []
        self._among: tuple[tuple[int, ...], int] = (), 0  # places of the tasks that wait, and N

    def add(self, grams: Tensor, indices: Sequence[int], num_names: int) -> None:
        """Takes note of a surgery.

        Args:
            grams: inner products of the T tasks' gradients, ``[..., T, T]``, to be added up.
            indices: the tasks' places among all.
            num_names: N.
        """
        among = tuple(indices), num_names
        if among != self._among:
            self._count()
            self._among = among
        self._waiting.append(grams)
        if grams.device.type != "cpu" or len(self._waiting) * grams.numel() > _MOST_WAITING:
            self._count()

    def read(self) -> tuple[Tensor | None, Tensor | None]:  # [N, N] each
        """Gives the surgeries in which both tasks took part, and those in which they conflicted."""
        self._count()
        return self._met, self._conflicted

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        (indices, num_names), device = self._among, waiting[0].device
        self._met = _grown(self._met, num_names, device)
        self._conflicted = _grown(self._conflicted, num_names, device)
        shape = -1, len(indices), len(indices)
        conflicts = torch.stack([grams.reshape(shape).sum(0) for grams in waiting]) < 0
        number = conflicts.sum(0).fill_diagonal_(0)
        both = torch.stack([torch.full_like(number, len(waiting)), number], dim=-1)
        met, conflicted = placed_pairs(both, indices, num_names).unbind(-1)
        self._met += met
        self._conflicted += conflicted


def _grown(counts: Tensor | None, num_tasks: int, device: torch.device) -> Tensor:
    """Counts over more tasks than before, the new ones zero."""
    if counts is not None and counts.shape[0] == num_tasks:
        return counts
    grown = torch.zeros(num_tasks, num_tasks, dtype=torch.int64, device=device)
    if counts is not None:
        grown[: counts.shape[0], : counts.shape[1]] = counts
    return grown
