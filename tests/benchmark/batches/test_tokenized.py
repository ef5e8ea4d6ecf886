"""Texts as token ids against ``transformers``' tokenizer, and against examples by hand."""

import math
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.multitask_bert.batches.tokenized import (
    JOINT,
    SIAMESE,
    SINGLE,
    UNLABELLED,
    TokenizedSplit,
)
from benchmarks.multitask_bert.recipes.choices import PAIR_ENCODINGS
from tests.benchmark.batches.examples import everything, pairs_of, split_of

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "good", "bad", "un", "##a"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A WordPiece tokenizer of ``transformers`` with a few pieces."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*PIECES, ".", ",", "?"]), encoding="utf-8")
    return transformers.BertTokenizerFast(str(path))


def random_texts(number, seed):
    """Texts of 0 to 12 words, known, split into pieces, and unknown."""
    rng = random.Random(seed)
    choices = ["film", "films", "good", "bad.", "una", "unfilm", "xyz", "Good,", "?"]
    return [" ".join(rng.choices(choices, k=rng.randrange(13))) for _ in range(number)]


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


def test_wrong_arguments_are_refused(words):
    with pytest.raises(ValueError, match="split must have an example, found none in sst train"):
        TokenizedSplit(split_of("sst", []), words, SINGLE)
    with pytest.raises(ValueError, match="max_length must be >= 4, found 3"):
        TokenizedSplit(pairs_of("a|b"), words, "joint-sep", 3)
    for encoding in (SINGLE, "joint"):
        with pytest.raises(ValueError, match=f"for sts, found '{encoding}'"):
            TokenizedSplit(pairs_of("a|b"), words, encoding)
    with pytest.raises(ValueError, match=r"tokenizer must have the token \[PAD\]"):
        TokenizedSplit(pairs_of("a|b"), Tokenizer(WordLevel({"a": 0}, "a")), "joint-sep")
