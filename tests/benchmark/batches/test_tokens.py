"""Token ids side by side and end to end against examples by hand."""

import pytest
import torch

from benchmarks.multitask_bert.batches.tokenized import (
    JOINT,
    SIAMESE,
    TokenizedSplit,
)
from benchmarks.multitask_bert.batches.tokens import Batch, Tokens
from tests.benchmark.batches.examples import everything, pairs_of, places_of


@pytest.mark.parametrize("encoding", [*JOINT, *SIAMESE])
def test_places_are_where_the_mask_is_true(words, encoding):
    batch = everything(TokenizedSplit(pairs_of("a|b c", "d e a|c", "|a"), words, encoding))
    for side in (batch.first, batch.second):
        if side is not None:
            assert side.places.dtype == torch.int64
            assert side.places.tolist() == places_of(side.mask)


@pytest.mark.parametrize("width", [5, 7])
def test_rows_of_two_sides_together(words, width):
    sides = everything(TokenizedSplit(pairs_of("a|b", "d e a|c"), words, "siamese-cos"))
    first, second = sides.first, sides.second
    both = first.widen(width, 9) + second.widen(width, 9)
    rest = [9] * (width - 5)
    assert both.ids.tolist() == [
        [2, 4, 3, 0, 0, *rest],
        [2, 7, 8, 4, 3, *rest],
        [2, 5, 3, 9, 9, *rest],
        [2, 6, 3, 9, 9, *rest],
    ]
    assert both.mask.int().sum(1).tolist() == [3, 5, 3, 3]
    assert both.places.tolist() == places_of(both.mask)
    assert first.ids.shape == (2, 5)


def test_batches_move_with_all_their_tensors(words):
    batch = everything(TokenizedSplit(pairs_of("a|b c", "d|c"), words, "siamese-cos")).to("meta")
    assert len(batch) == 2
    assert isinstance(batch, Batch)
    assert isinstance(batch.second, Tokens)
    tensors = [batch.labels, batch.indices]
    tensors += [tensor for side in (batch.first, batch.second) for tensor in vars(side).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
