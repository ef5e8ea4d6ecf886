"""Examples to padded batches of token ids."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.multitask_bert.data import Split
from benchmarks.multitask_bert.tasks import TASKS

JOINT = ("joint-raw-ids", "joint-sep")
SIAMESE = ("siamese-concat", "siamese-dot", "siamese-cos")
SINGLE = "single"  # of a task of one sentence

UNLABELLED = -1  # in place of a class; any other label that is missing is NaN

_CHUNK = 4096  # texts tokenized at once: a tokenizer's own records are large


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
        """The same on a device."""
        return Tokens(
            *(x.to(device, non_blocking=True) for x in (self.ids, self.mask, self.places))
        )

    def widen(self, length: int, pad: int) -> Tokens:
        """The same in rows of a length that is at least L, with padding at the end."""
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
        """The same on a device."""
        return Batch(
            self.task,
            self.first.to(device),
            None if self.second is None else self.second.to(device),
            self.labels.to(device, non_blocking=True),
            self.indices.to(device, non_blocking=True),
            self.share,
        )


class TokenizedSplit:
    """The token ids of a split's examples, made once, and batches of them.

    ``joint-sep`` is one sequence ``[CLS] a [SEP] b [SEP]``; of a pair too long for it, the longer
    sentence is shortened first. ``joint-raw-ids`` is ``[CLS] a [SEP]`` and ``[CLS] b [SEP]``, each
    padded to the longest of the batch and then set end to end, so there is padding inside. The
    siamese encodings keep the two sentences apart.

    Args:
        split: at least one example.
        tokenizer: of a BERT-format checkpoint; its own truncation, padding and special tokens
            play no part, and it is not changed.
        encoding: one of ``JOINT`` and ``SIAMESE`` for a task of pairs; for a task of single
            sentences it makes no difference.
        max_length: most tokens of a sequence, the special ones and, in ``joint-raw-ids``, both
            sentences included; at least 4.

    Raises:
        ValueError: an argument breaks its rule, or the tokenizer has no [PAD], [CLS] or [SEP].

    Jacob Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding", 2019.
    """

    def __init__(
        self, split: Split, tokenizer: Tokenizer, encoding: str, max_length: int = 512
    ) -> None:
        if not split.examples:
            raise ValueError(
                f"split must have an example, found none in {split.task} {split.name};"
                " give a split with data"
            )
        if max_length < 4:
            raise ValueError(f"max_length must be >= 4, found {max_length}; 512 is usual for BERT")
        task = TASKS[split.task]
        if task.is_pair and encoding not in (*JOINT, *SIAMESE):
            raise ValueError(
                f"encoding must be one of {', '.join((*JOINT, *SIAMESE))} for {task.name},"
                f" found {encoding!r}; choose one"
            )
        self.split = split
        self.encoding = encoding if task.is_pair else SINGLE
        special = _special_ids(tokenizer)
        self._pad = special["[PAD]"]
        # A copy, because the settings of the caller's stay as they are.
        bare = Tokenizer.from_str(tokenizer.to_str())
        bare.no_truncation()
        bare.no_padding()
        sides = [
            _token_ids(bare, [example.texts[side] for example in split.examples])
            for side in range(len(task.text_columns))
        ]
        wrap = _Wrapping(special["[CLS]"], special["[SEP]"])
        if self.encoding == "joint-sep":
            self._sequences = [
                _Ragged(wrap.pair(a, b, max_length) for a, b in zip(*sides, strict=True))
            ]
        else:
            limit = max_length // 2 if self.encoding == "joint-raw-ids" else max_length
            self._sequences = [_Ragged(wrap.single(ids, limit) for ids in side) for side in sides]
        if task.kind == "classes":
            missing, dtype = float(UNLABELLED), torch.int64
        else:
            missing, dtype = math.nan, torch.float32
        labels = [missing if x.label is None else x.label for x in split.examples]
        self._labels = torch.tensor(labels, dtype=dtype, device="cpu")

    def __len__(self) -> int:
        return len(self.split.examples)

    @property
    def lengths(self) -> Tensor:  # [N] int64
        """The number of tokens of each example."""
        return torch.stack([ragged.lengths for ragged in self._sequences]).sum(0)

    def at_least(self, label: float) -> Tensor:  # [M] int64
        """The positions of the examples with that label or a larger one."""
        if label == -math.inf:
            return torch.arange(len(self), device="cpu")
        return (self._labels >= label).nonzero().squeeze(-1)

    def batch(self, indices: Tensor) -> Batch:
        """The examples at some positions, padded to the longest of them.

        Args:
            indices: ``[B]`` int64 on the CPU, positions in the split.
        """
        first, *rest = (ragged.pad(indices, self._pad) for ragged in self._sequences)
        second = rest[0] if rest else None
        if second is not None and self.encoding == "joint-raw-ids":
            first = Tokens(
                torch.cat([first.ids, second.ids], dim=1),
                torch.cat([first.mask, second.mask], dim=1),
            )
            second = None
        return Batch(self.split.task, first, second, self._labels[indices], indices)


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
        # A hash, not seed + epoch: epoch 1 of seed 0 must not repeat epoch 0 of seed 1.
        # Four bytes are all that torch's CPU generator uses of a seed.
        digest = hashlib.blake2b(f"{self.seed} {self.epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))
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


def word_tokenizer(vocabulary: Iterable[str]) -> Tokenizer:
    """A tokenizer that gives each word of a vocabulary a token, and any other word [UNK].

    Args:
        vocabulary: lower-case words and marks of punctuation. Their ids follow those of [PAD],
            [UNK], [CLS] and [SEP], which are 0 to 3.

    Raises:
        ValueError: an entry comes twice, or is one of the special tokens.

    >>> word_tokenizer(["film", "good", "."]).encode("Good film, good.").tokens
    ['good', 'film', '[UNK]', 'good', '.']
    """
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise ValueError(
            f"vocabulary must have each word once and no special token, found {twice!r} again;"
            " leave it out"
        )
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(tokens[:4])
    return tokenizer


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, found {batch_size}; pass 1 or more")


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {}
    for token in ("[PAD]", "[CLS]", "[SEP]"):
        found = tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(
                f"tokenizer must have the token {token}, found none; give one of a BERT-format"
                " checkpoint"
            )
        ids[token] = found
    return ids


def _token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, without special tokens."""
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            yield encoding.ids


@dataclass(frozen=True)
class _Wrapping:
    """Sequences with their special tokens, cut to a length."""

    cls: int
    sep: int

    def single(self, ids: list[int], limit: int) -> list[int]:
        return [self.cls, *ids[: limit - 2], self.sep]

    def pair(self, first: list[int], second: list[int], limit: int) -> list[int]:
        room = limit - 3
        shorter = min(len(first), len(second))
        if len(first) + len(second) > room:
            # The shorter keeps all that fits into its half, the longer gets the rest.
            shorter = min(shorter, room // 2)
            longer = room - shorter
            cut = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
            first, second = first[: cut[0]], second[: cut[1]]
        return [self.cls, *first, self.sep, *second, self.sep]


class _Ragged:
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
