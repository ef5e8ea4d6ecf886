"""Token ids: of texts of any length, padded to a rectangle, and a batch of examples of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Tokens:
    """Token ids of a batch, and which of them are there rather than padding.

    Args:
        ids: ``[B, L]`` int64.
        mask: ``[B, L]`` bool, false at padding.
        places: ``[N]`` int64, where the mask, as ``[B * L]``, is true, in order. None has them
            looked up, which is for the CPU: a GPU's host would wait.
    """

    def __init__(self, ids: Tensor, mask: Tensor, places: Tensor | None = None) -> None:
        self.ids = ids
        self.mask = mask
        self.places = mask.flatten().nonzero().squeeze(1) if places is None else places

    def to(self, device: torch.device | str) -> Tokens:
        """Moves all tensors to a device."""
        return Tokens(
            *(x.to(device, non_blocking=True) for x in (self.ids, self.mask, self.places))
        )

    def widen(self, length: int, pad: int) -> Tokens:
        """Widens the rows to a length that is at least L, with padding at the end."""
        before = self.ids.shape[1]
        if length == before:
            return self
        more = (0, length - before)
        return Tokens(
            F.pad(self.ids, more, value=pad),
            F.pad(self.mask, more, value=False),
            self.places + self.places // before * (length - before),
        )

    def __add__(self, other: Tokens) -> Tokens:
        """The rows of both, of equal length."""
        return Tokens(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.mask, other.mask]),
            torch.cat([self.places, other.places + self.ids.numel()]),
        )

    def __getitem__(self, rows: slice) -> Tokens:
        """Some of the rows, as long as they are."""
        return Tokens(self.ids[rows], self.mask[rows])


class Ragged:
    """Sequences of different lengths, end to end in one tensor."""

    def __init__(self, sequences: Iterable[list[int]]) -> None:
        values = array("i")
        lengths = array("q")
        for sequence in sequences:
            values.extend(sequence)
            lengths.append(len(sequence))
        self._values = torch.frombuffer(values, dtype=torch.int32)
        self.lengths = torch.frombuffer(lengths, dtype=torch.int64)
        self._starts = self.lengths.cumsum(0) - self.lengths

    def pad(self, indices: Tensor, fill: int) -> Tokens:
        """The sequences at some positions, each followed by ``fill`` up to the longest."""
        lengths = self.lengths[indices, None]  # [B, 1]
        columns = torch.arange(int(lengths.max()), device="cpu")  # [L]
        mask = columns < lengths
        # Where there is no token the position may lie beyond the last sequence.
        positions = (self._starts[indices, None] + columns).clamp_(max=len(self._values) - 1)
        ids = self._values[positions].long().masked_fill_(~mask, fill)
        return Tokens(ids, mask)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples of one task: the inputs of the model and their labels."""

    task: str
    first: Tokens  # the sentence, the joint pair, or a siamese pair's first sentence
    second: Tokens | None  # a siamese pair's second sentence
    labels: Tensor  # [B] int64 for classes, else float32
    indices: Tensor  # [B] int64, positions in the split
    share: float = 1.0  # of the examples of the batch that this is a part of

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, rank: int, num_processes: int) -> Batch:
        """A process's part of the batch, where several divide it. Parts differ by one example at
        most, and the last ones may be empty.

        Every row is as long as in the batch: where padding lies inside, it is part of the input.
        """
        if num_processes == 1:
            return self
        sizes = [len(part) for part in self.indices.tensor_split(num_processes)]
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        return Batch(
            self.task,
            self.first[rows],
            None if self.second is None else self.second[rows],
            self.labels[rows],
            self.indices[rows],
            sizes[rank] / len(self),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Moves all tensors to a device."""
        return Batch(
            self.task,
            self.first.to(device),
            None if self.second is None else self.second.to(device),
            self.labels.to(device, non_blocking=True),
            self.indices.to(device, non_blocking=True),
            self.share,
        )
