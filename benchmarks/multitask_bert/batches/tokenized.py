"""A split's texts as token ids, in the ways that models want them, made once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.multitask_bert.batches.tokens import Batch, Ragged, Tokens
from benchmarks.multitask_bert.data.files import Split
from benchmarks.multitask_bert.tasks import TASKS

JOINT = ("joint-raw-ids", "joint-sep")
SIAMESE = ("siamese-concat", "siamese-dot", "siamese-cos")
SINGLE = "single"  # of a task of one sentence

UNLABELLED = -1  # in place of a class; any other label that is missing is NaN

_CHUNK = 4096  # texts tokenized at once: a tokenizer's own records are large


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
                Ragged(wrap.pair(a, b, max_length) for a, b in zip(*sides, strict=True))
            ]
        else:
            limit = max_length // 2 if self.encoding == "joint-raw-ids" else max_length
            self._sequences = [Ragged(wrap.single(ids, limit) for ids in side) for side in sides]
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
