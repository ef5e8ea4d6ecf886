"""A tokenizer of five words for the tests of batches."""

import pytest

from benchmarks.multitask_bert.model.tiny import word_tokenizer


@pytest.fixture
def words():
    """[PAD] [UNK] [CLS] [SEP] are 0 to 3; a to e are 4 to 8."""
    return word_tokenizer("abcde")
