"""Batches against ``transformers``' tokenizer, against examples written out by hand, and the orders
of their loaders against each other."""

import math
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.multitask_bert.batches.loader import BatchLoader, evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import (
    JOINT,
    SIAMESE,
    SINGLE,
    UNLABELLED,
    TokenizedSplit,
)
from benchmarks.multitask_bert.batches.tokens import Batch, Tokens
from benchmarks.multitask_bert.data.files import Example, Split
from benchmarks.multitask_bert.model.tiny import word_tokenizer
from benchmarks.multitask_bert.recipes.recipe import PAIR_ENCODINGS

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "good", "bad", "un", "##a"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A WordPiece tokenizer of ``transformers`` with a few pieces."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*PIECES, ".", ",", "?"]), encoding="utf-8")
    return transformers.BertTokenizerFast(str(path))


@pytest.fixture
def words():
    """[PAD] [UNK] [CLS] [SEP] are 0 to 3; a to e are 4 to 8."""
    return word_tokenizer("abcde")


def split_of(task, texts, labels=None):
    labels = [1.0] * len(texts) if labels is None else labels
    pairs = zip(texts, labels, strict=True)
    examples = [Example(str(n), tuple(text), label) for n, (text, label) in enumerate(pairs)]
    return Split(task, "train", tuple(examples), 0, "test")


def pairs_of(*pairs):
    return split_of("sts", [tuple(pair.split("|")) for pair in pairs])


def random_texts(number, seed):
    """Texts of 0 to 12 words, known, split into pieces, and unknown."""
    rng = random.Random(seed)
    choices = ["film", "films", "good", "bad.", "una", "unfilm", "xyz", "Good,", "?"]
    return [" ".join(rng.choices(choices, k=rng.randrange(13))) for _ in range(number)]


def everything(tokenized):
    return tokenized.batch(torch.arange(len(tokenized)))


def places_of(mask):
    return [number for number, there in enumerate(mask.flatten().tolist()) if there]


@pytest.mark.parametrize("max_length", [4, 5, 6, 9, 16, 512])
def test_single_sentences_are_tokenized_as_by_transformers(bert, max_length):
    texts = random_texts(80, seed=0)
    tokenized = TokenizedSplit(
        split_of("sst", [(text,) for text in texts]), bert.backend_tokenizer, SINGLE, max_length
    )
    expected = bert(texts, truncation=True, max_length=max_length, padding=True)
    batch = everything(tokenized)
    assert batch.first.ids.tolist() == expected["input_ids"]
    assert batch.first.mask.int().tolist() == expected["attention_mask"]
    assert batch.second is None


@pytest.mark.parametrize("max_length", [4, 5, 6, 7, 8, 9, 13, 16, 512])
def test_joint_pairs_are_tokenized_as_by_transformers(bert, max_length):
    first, second = random_texts(200, seed=1), random_texts(200, seed=2)
    split = split_of("quora", list(zip(first, second, strict=True)))
    batch = everything(TokenizedSplit(split, bert.backend_tokenizer, "joint-sep", max_length))
    expected = bert(first, second, truncation="longest_first", max_length=max_length, padding=True)
    assert batch.first.ids.tolist() == expected["input_ids"]
    assert batch.first.mask.int().tolist() == expected["attention_mask"]
    assert batch.second is None


def test_the_settings_of_the_tokenizer_play_no_part_and_are_kept(bert):
    split = pairs_of("film good|bad", "good|film film film")
    plain = everything(TokenizedSplit(split, bert.backend_tokenizer, "joint-sep"))
    tokenizer = Tokenizer.from_str(bert.backend_tokenizer.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=40)
    before = tokenizer.to_str()
    batch = everything(TokenizedSplit(split, tokenizer, "joint-sep"))
    assert torch.equal(batch.first.ids, plain.first.ids)
    assert tokenizer.to_str() == before


def test_raw_ids_are_padded_side_by_side_and_set_end_to_end(words):
    batch = everything(TokenizedSplit(pairs_of("a|b c", "d e a|c"), words, "joint-raw-ids"))
    assert batch.first.ids.tolist() == [
        [2, 4, 3, 0, 0, 2, 5, 6, 3],
        [2, 7, 8, 4, 3, 2, 6, 3, 0],
    ]
    assert batch.first.mask.int().tolist() == [
        [1, 1, 1, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert batch.second is None


@pytest.mark.parametrize("max_length", [4, 5, 8, 11])
def test_raw_ids_give_each_side_half_of_the_length(words, max_length):
    split = pairs_of("a b c d e|e d c b a", "a|b b b b b b")
    first = everything(TokenizedSplit(split, words, "joint-raw-ids", max_length)).first
    assert first.ids.shape == (2, 2 * (max_length // 2))
    assert first.ids[0, max_length // 2 - 1] == first.ids[0, -1] == 3


@pytest.mark.parametrize("encoding", SIAMESE)
def test_siamese_pairs_stay_apart(words, encoding):
    batch = everything(TokenizedSplit(pairs_of("a|b c", "d e a|c"), words, encoding))
    assert batch.first.ids.tolist() == [[2, 4, 3, 0, 0], [2, 7, 8, 4, 3]]
    assert batch.second.ids.tolist() == [[2, 5, 6, 3], [2, 6, 3, 0]]
    assert torch.equal(batch.second.mask, batch.second.ids != 0)


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


def test_every_pair_encoding_of_the_recipes_is_known():
    assert set(PAIR_ENCODINGS) == {*JOINT, *SIAMESE}


def test_a_batch_is_padded_to_its_own_longest(words):
    tokenized = TokenizedSplit(split_of("sst", [("a",), ("a b c d e",), ("",)]), words, SINGLE)
    assert tokenized.batch(torch.tensor([0, 1])).first.ids.shape == (2, 7)
    assert tokenized.batch(torch.tensor([2, 0])).first.ids.tolist() == [[2, 3, 0], [2, 4, 3]]
    assert tokenized.lengths.tolist() == [3, 7, 2]


def test_the_padding_token_is_the_tokenizers(words):
    tokenizer = Tokenizer(
        WordLevel({"a": 0, "b": 1, "[CLS]": 2, "[SEP]": 3, "[PAD]": 9, "[UNK]": 5}, "[UNK]")
    )
    batch = everything(TokenizedSplit(pairs_of("a|b", "|a"), tokenizer, "joint-raw-ids"))
    assert batch.first.ids.tolist() == [[2, 0, 3, 2, 1, 3], [2, 3, 9, 2, 0, 3]]
    assert batch.first.mask.int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]]


def test_types_are_those_that_the_model_and_the_losses_want(words):
    classes = everything(TokenizedSplit(split_of("sst", [("a",), ("b",)], [4.0, 0.0]), words, ""))
    assert (classes.labels.dtype, classes.labels.tolist()) == (torch.int64, [4, 0])
    scores = everything(
        TokenizedSplit(split_of("sts", [("a", "b"), ("b", "c")], [4.2, 0.0]), words, "joint-sep")
    )
    assert scores.labels.dtype == torch.float32
    assert torch.equal(scores.labels, torch.tensor([4.2, 0.0]))
    for batch in (classes, scores):
        assert batch.first.ids.dtype == batch.indices.dtype == torch.int64
        assert batch.first.mask.dtype == torch.bool
        assert batch.task in ("sst", "sts")


def test_labels_that_are_missing_cannot_pass_for_labels(words):
    classes = everything(TokenizedSplit(split_of("sst", [("a",)], [None]), words, SINGLE))
    assert classes.labels.tolist() == [UNLABELLED]
    assert UNLABELLED < 0
    score = everything(TokenizedSplit(split_of("sts", [("a", "b")], [None]), words, "joint-sep"))
    assert math.isnan(score.labels.item())


def test_batches_move_with_all_their_tensors(words):
    batch = everything(TokenizedSplit(pairs_of("a|b c", "d|c"), words, "siamese-cos")).to("meta")
    assert len(batch) == 2
    assert isinstance(batch, Batch)
    assert isinstance(batch.second, Tokens)
    tensors = [batch.labels, batch.indices]
    tensors += [tensor for side in (batch.first, batch.second) for tensor in vars(side).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


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


def test_words_have_the_ids_of_their_places():
    tokenizer = word_tokenizer(["film", "good", "."])
    assert tokenizer.get_vocab() == {
        "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "film": 4, "good": 5, ".": 6,
    }  # fmt: skip
    assert tokenizer.encode("GOOD film. films").ids == [5, 4, 6, 1]


@pytest.mark.parametrize("vocabulary", [["a", "b", "a"], ["a", "[PAD]"]])
def test_words_that_come_twice_are_refused(vocabulary):
    with pytest.raises(ValueError, match=r"vocabulary must have each word once .* again; leave"):
        word_tokenizer(vocabulary)


def test_wrong_arguments_are_refused(words, many):
    with pytest.raises(ValueError, match="split must have an example, found none in sst train"):
        TokenizedSplit(split_of("sst", []), words, SINGLE)
    with pytest.raises(ValueError, match="max_length must be >= 4, found 3"):
        TokenizedSplit(pairs_of("a|b"), words, "joint-sep", 3)
    for encoding in (SINGLE, "joint"):
        with pytest.raises(ValueError, match=f"for sts, found '{encoding}'"):
            TokenizedSplit(pairs_of("a|b"), words, encoding)
    with pytest.raises(ValueError, match=r"tokenizer must have the token \[PAD\]"):
        TokenizedSplit(pairs_of("a|b"), Tokenizer(WordLevel({"a": 0}, "a")), "joint-sep")
    for make in (
        lambda n: BatchLoader(many, n, shuffle=True),
        lambda n: evaluation_batches(many, n),
    ):
        with pytest.raises(ValueError, match="batch_size must be >= 1, found 0"):
            make(0)
    with pytest.raises(ValueError, match=r"batch_size must be <= 103, .* found 104; lower it"):
        BatchLoader(many, 104, shuffle=True, drop_last=True)
