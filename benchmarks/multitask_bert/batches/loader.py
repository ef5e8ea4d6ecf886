"""Batches of a split: those of an epoch in a random order, those of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from benchmarks.multitask_bert.batches.seeds import derive_seed
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.batches.tokens import Batch


class BatchLoader:
    """The batches of one epoch each time it is iterated.

    The order depends on seed and epoch alone: it is the same after a resume and on every rank, and
    the global random state is neither read nor written. As with torch's ``DistributedSampler``,
    call ``set_epoch`` before each epoch; without it every iteration repeats the same one.

    Args:
        tokenized: where the examples are.
        batch_size: of every batch but the last, which may be smaller.
        shuffle: a new order each epoch, else that of the split.
        seed: of the orders, together with the epoch.
        drop_last: leave out a last batch that is not full.
        min_label: leave out the examples with a smaller label.

    Raises:
        ValueError: ``batch_size`` is below 1, or no batch is left.
    """

    def __init__(
        self,
        tokenized: TokenizedSplit,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        min_label: float = -math.inf,
    ) -> None:
        _check_batch_size(batch_size)
        self._indices = tokenized.at_least(min_label)
        if not len(self._indices):
            raise ValueError(
                f"min_label must leave an example of {tokenized.split.task}, found none of at least"
                f" {min_label}; lower it"
            )
        if drop_last and len(self._indices) < batch_size:
            raise ValueError(
                f"batch_size must be <= {len(self._indices)}, the examples left, for drop_last,"
                f" found {batch_size}; lower it"
            )
        self.tokenized = tokenized
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def __len__(self) -> int:
        num_full, rest = divmod(len(self._indices), self.batch_size)
        return num_full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._order().split(self.batch_size)
        return map(self.tokenized.batch, islice(batches, len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    def _order(self) -> Tensor:  # [N] int64
        if not self.shuffle:
            return self._indices
        # Four bytes are all that torch's CPU generator uses of a seed.
        seed = derive_seed(self.seed, self.epoch, num_bytes=4)
        generator = torch.Generator("cpu").manual_seed(seed)
        places = torch.randperm(len(self._indices), generator=generator, device="cpu")
        return self._indices[places]


def evaluation_batches(
    tokenized: TokenizedSplit,
    batch_size: int,
    num_batches: int | None = None,
    *,
    rank: int = 0,
    num_processes: int = 1,
) -> Iterator[Batch]:
    """Every example once, the longest first: little padding, and memory runs out at once or never.

    Args:
        tokenized: where the examples are.
        batch_size: of every batch but the last, which may be smaller.
        num_batches: so many batches' worth of the first examples of the split, instead of all.
        rank: of the process whose batches these are, every ``num_processes``-th from its own on.
        num_processes: that evaluate together.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    _check_batch_size(batch_size)
    number = len(tokenized) if num_batches is None else num_batches * batch_size
    order = tokenized.lengths[:number].argsort(descending=True, stable=True)
    return map(tokenized.batch, order.split(batch_size)[rank::num_processes])


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, found {batch_size}; pass 1 or more")
