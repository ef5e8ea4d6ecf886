"""Entries of a tensor's first dimension by their places, which stay on the host.

An index tensor would have to travel to a GPU, and one operation for each entry costs more than the
entries. These take a fixed number of operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def picked(values: Tensor, places: Sequence[int]) -> Tensor:  # [N, ...] -> [T, ...]
    """Takes the entries at the given places, in their order.

    Example:
        >>> picked(torch.tensor([5, 6, 7]), [2, 0])
        tensor([7, 5])
    """
    if list(places) == list(range(len(values))):
        return values
    entries = values.unbind()
    return torch.stack([entries[place] for place in places])


def placed(values: Tensor, places: Sequence[int], number: int) -> Tensor:  # [T, ...] -> [N, ...]
    """Puts the entries at the given places among ``number``, the others of which are zero.

    Example:
        >>> placed(torch.tensor([7, 5]), [2, 0], 4)
        tensor([5, 0, 7, 0])
    """
    if list(places) == list(range(number)):
        return values
    entries = [values.new_zeros(values.shape[1:])] * number
    for place, entry in zip(places, values.unbind(), strict=True):
        entries[place] = entry
    return torch.stack(entries)


def placed_pairs(
    values: Tensor,  # [T, T, ...]
    places: Sequence[int],
    number: int,
) -> Tensor:  # [N, N, ...]
    """Puts the entries of pairs at the pairs of the given places, those of all others zero."""
    rows = placed(values, places, number)
    return placed(rows.transpose(0, 1), places, number).transpose(0, 1)
