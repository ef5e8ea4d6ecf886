"""The tiny encoder against the built-in corpus that it is for, and its settings against recipes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import JOINT, SIAMESE, TokenizedSplit
from benchmarks.multitask_bert.data.synthetic import SIZES, make_corpus
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.model.tiny import settings, tiny_encoder, word_tokenizer
from benchmarks.multitask_bert.recipes.catalog import all_recipes, find
from benchmarks.multitask_bert.recipes.overrides import override

RECIPE = find("smet-walker/v2-dropout-0.3")
CORPUS = make_corpus(sizes={key: min(size, 400) for key, size in SIZES.items()})


@pytest.mark.parametrize("id", all_recipes())
def test_settings_suit_every_recipe(id):
    """They are fields that it has, and make a recipe that a model can be built of."""
    recipe = find(id)
    changed, deviations = override(recipe, settings(recipe))
    assert deviations
    torch.manual_seed(0)
    encoder, _ = tiny_encoder(changed)
    MultiTaskModel(encoder, changed)


@pytest.mark.parametrize("id", all_recipes())
def test_settings_leave_what_a_recipe_is_about(id):
    """Method, heads, losses and kind of pair encoding are the recipe's."""
    recipe = find(id)
    changed, _ = override(recipe, settings(recipe))
    assert [stage.method for stage in changed.stages] == [stage.method for stage in recipe.stages]
    assert changed.heads == recipe.heads
    assert changed.losses == recipe.losses
    joined = {"joint-raw-ids": "joint-sep"}
    assert changed.pairs == {task: joined.get(pair, pair) for task, pair in recipe.pairs.items()}


def test_pairs_in_one_sequence_get_a_separator():
    recipe = replace(RECIPE, pairs={"quora": "siamese-dot", "sts": "joint-raw-ids"})
    chosen = [setting for setting in settings(recipe) if setting.startswith("pairs.")]
    assert chosen == ["pairs.sts=joint-sep"]


def test_size():
    encoder, tokenizer = tiny_encoder(RECIPE)
    assert encoder.config.num_layers == 2
    assert encoder.config.hidden_size == 64
    assert encoder.config.vocab_size == tokenizer.get_vocab_size()
    assert encoder.config.pad_token_id == tokenizer.token_to_id("[PAD]")


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_dropout_is_that_of_the_recipe(rate):
    encoder, _ = tiny_encoder(replace(RECIPE, encoder_dropout=rate))
    assert encoder.hidden_dropout == encoder.attention_dropout == rate


def test_every_word_of_the_corpus_is_known():
    _, tokenizer = tiny_encoder(RECIPE)
    unknown = tokenizer.token_to_id("[UNK]")
    for split in CORPUS.splits.values():
        for example in split.examples:
            for text in example.texts:
                encoding = tokenizer.encode(text)
                assert unknown not in encoding.ids, text
                assert len(encoding.ids) == len(text.split()), text


@pytest.mark.parametrize("pair", [*JOINT, *SIAMESE])
def test_every_batch_of_the_corpus_fits(pair):
    encoder, tokenizer = tiny_encoder(RECIPE)
    for split in CORPUS.splits.values():
        batches = evaluation_batches(TokenizedSplit(split, tokenizer, pair), 64)
        for tokens in (t for b in batches for t in (b.first, b.second) if t is not None):
            assert tokens.ids.shape[1] <= encoder.config.max_positions
            assert tokens.ids.max() < encoder.config.vocab_size


def test_weights_are_a_function_of_the_random_state():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(tiny_encoder(RECIPE)[0].pooler.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


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
