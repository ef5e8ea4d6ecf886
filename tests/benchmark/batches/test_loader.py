"""The orders of batches against each other, and batches against their indices."""

import random

import pytest
import torch

from benchmarks.multitask_bert.batches.loader import BatchLoader, evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import (
    SINGLE,
    TokenizedSplit,
)
from benchmarks.multitask_bert.model.tiny import word_tokenizer
from tests.benchmark.batches.examples import split_of


@pytest.fixture(scope="module")
def many():
    """103 sentences of 0 to 9 words, too many for one order to come twice by chance."""
    rng = random.Random(0)
    texts = [(" ".join(rng.choices("abcde", k=rng.randrange(10))),) for _ in range(103)]
    labels = [float(rng.randrange(5)) for _ in texts]
    return TokenizedSplit(split_of("sst", texts, labels), word_tokenizer("abcde"), SINGLE)


def order_of(loader):
    return torch.cat([batch.indices for batch in loader]).tolist()


def test_without_shuffling_the_order_is_that_of_the_split(many):
    loader = BatchLoader(many, 10, shuffle=False)
    assert order_of(loader) == list(range(103))
    assert [len(batch) for batch in loader] == [10] * 10 + [3]
    assert len(loader) == 11


def test_a_batch_is_what_its_indices_say(many):
    for batch in BatchLoader(many, 16, shuffle=True):
        examples = [many.split.examples[index] for index in batch.indices.tolist()]
        assert batch.labels.tolist() == [example.label for example in examples]
        num_words = [len(example.texts[0].split()) for example in examples]
        assert (batch.first.mask.sum(1) - 2).tolist() == num_words
        assert batch.first.ids.shape[1] == max(num_words) + 2


def test_shuffling_visits_every_example_once(many):
    assert sorted(order_of(BatchLoader(many, 10, shuffle=True))) == list(range(103))


def test_the_order_is_a_function_of_seed_and_epoch(many):
    def order(seed, epoch):
        loader = BatchLoader(many, 10, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return order_of(loader)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(set(map(tuple, orders.values()))) == 16
    # A loader that has been through other epochs comes to the same order.
    loader = BatchLoader(many, 10, shuffle=True, seed=2)
    assert order_of(loader) == order_of(loader) == orders[2, 0]
    for epoch in (3, 1):
        loader.set_epoch(epoch)
        assert order_of(loader) == orders[2, epoch]


def test_an_iteration_keeps_its_epoch(many):
    loader = BatchLoader(many, 10, shuffle=True)
    expected = order_of(loader)
    iterator = iter(loader)
    loader.set_epoch(1)
    assert order_of(iterator) == expected


def test_the_global_random_state_is_neither_read_nor_written(many):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = order_of(BatchLoader(many, 10, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert order_of(BatchLoader(many, 10, shuffle=True)) == first


@pytest.mark.parametrize(("batch_size", "sizes"), [(50, [50, 50]), (103, [103]), (1, [1] * 103)])
def test_drop_last_leaves_full_batches(many, batch_size, sizes):
    loader = BatchLoader(many, batch_size, shuffle=True, drop_last=True)
    assert [len(batch) for batch in loader] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("batch_size", [1, 10, 103, 500])
def test_evaluation_visits_every_example_once_longest_first(many, batch_size):
    batches = list(evaluation_batches(many, batch_size))
    assert len(batches) == -(-103 // batch_size)
    assert sorted(order_of(batches)) == list(range(103))
    lengths = many.lengths[torch.cat([batch.indices for batch in batches])]
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)


def test_a_wrong_size_is_refused(many):
    for make in (
        lambda n: BatchLoader(many, n, shuffle=True),
        lambda n: evaluation_batches(many, n),
    ):
        with pytest.raises(ValueError, match="batch_size must be >= 1, found 0"):
            make(0)
    with pytest.raises(ValueError, match=r"batch_size must be <= 103, .* found 104; lower it"):
        BatchLoader(many, 104, shuffle=True, drop_last=True)
