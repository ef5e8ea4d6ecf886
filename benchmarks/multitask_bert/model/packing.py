"""The real tokens of a padded batch, end to end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, calls for a row of its own take about as long as so many attention scores.
_SCORES_PER_ROW = 4000


class Packing:
    """Where the N real tokens of a batch ``[B, L]`` stand, and what needs to know it.

    Args:
        shape: B and L.
        mask: ``[B, L]``, false or 0 at padding; None says that there is no padding.
        places: ``[N]`` int64, where the mask, as ``[B * L]``, is true, in order; None has them
            looked up, for which a GPU makes its host wait.

    Example:
        >>> ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
        >>> packing = Packing(ids.shape, ids != 0)
        >>> packing.pack(ids)
        tensor([5, 6, 7, 8])
        >>> packing.pad(packing.pack(ids))
        tensor([[5, 6, 7],
                [8, 0, 0]])
    """

    def __init__(
        self,
        shape: tuple[int, ...],  # B and L
        mask: Tensor | None,  # [B, L] bool or 0/1
        places: Tensor | None = None,  # [N] int64
    ) -> None:
        self.rows, self.length = shape
        self._places = self._mask = None
        if mask is None:
            return
        mask = mask.bool()
        if places is None:
            places = mask.flatten().nonzero().squeeze(1)
        if len(places) < mask.numel():
            self._places, self._mask = places, mask

    def pack(self, padded: Tensor) -> Tensor:  # [B, L, ...] -> [N, ...]
        """The real tokens alone."""
        flat: Tensor = padded.flatten(0, 1)
        return flat if self._places is None else flat.index_select(0, self._places)

    def pack_columns(self, columns: Tensor) -> Tensor:  # [L, D] -> [N, D]
        """For each real token what belongs to its position in the row."""
        if self._places is None:
            return columns.repeat(self.rows, 1)
        return columns.index_select(0, self._places % self.length)

    def pad(self, packed: Tensor) -> Tensor:  # [N, ...] -> [B, L, ...]
        """Each token at its place, and zeros at padding."""
        if self._places is not None:
            zeros = packed.new_zeros(self.rows * self.length, *packed.shape[1:])
            packed = zeros.index_copy_(0, self._places, packed)
        padded: Tensor = packed.unflatten(0, (self.rows, self.length))
        return padded

    def attend(
        self,
        packed: Tensor,  # [N, 3, H, D / H], of each token its query, its key and its value
        dropout: float,
    ) -> Tensor:  # [N, H, D / H]
        """Attention of each token to all of its row, with dropout on the probabilities."""
        if packed.device.type != "cpu":
            return self._attend_padded(packed, dropout)
        lengths = self._wasteful_lengths(packed.shape[2])
        # Small products in bfloat16 take a CPU longer than in float32.
        exact = packed.float() if packed.dtype == torch.bfloat16 else packed
        with torch.autocast("cpu", enabled=False):
            if lengths is None:
                attended = self._attend_padded(exact, dropout)
            else:
                attended = _attend_rows(exact, lengths, dropout)
        return attended.to(packed.dtype)

    def _wasteful_lengths(self, num_heads: int) -> list[int] | None:
        """Returns the rows' lengths, if one row at a time is faster than all of them padded."""
        if self._mask is None:
            return None
        lengths: list[int] = self._mask.sum(1).tolist()
        padding = self.rows * self.length**2 - sum(length**2 for length in lengths)
        return lengths if num_heads * padding > _SCORES_PER_ROW * self.rows else None

    def _attend_padded(self, packed: Tensor, dropout: float) -> Tensor:
        query, key, value = self.pad(packed).transpose(1, 3).unbind(2)  # [B, H, L, D / H] each
        mask = None if self._mask is None else self._mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.pack(attended.transpose(1, 2))


def _attend_rows(packed: Tensor, lengths: list[int], dropout: float) -> Tensor:
    """Attends within one row after the other."""
    query, key, value = packed.permute(1, 2, 0, 3).unbind(0)  # [H, N, D / H] each
    query = query * query.shape[-1] ** -0.5
    attended = []
    for q, k, v in zip(*(x.split(lengths, 1) for x in (query, key, value)), strict=True):
        probabilities = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        attended.append(torch.bmm(F.dropout(probabilities, dropout), v))
    return torch.cat(attended, 1).transpose(0, 1)
