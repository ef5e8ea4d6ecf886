"""The word lists against the tokens that texts are split into, and against each other."""

from __future__ import annotations

import pytest

from benchmarks.multitask_bert.errors.features import words
from benchmarks.multitask_bert.errors.lexicon import (
    CLAUSE_MARKERS,
    CONTRASTS,
    FUNCTION_WORDS,
    IDIOMS,
    NEGATIONS,
    NEGATIVE,
    NUMBERS,
    POSITIVE,
)


@pytest.mark.parametrize(
    "listed",
    [CLAUSE_MARKERS, CONTRASTS, FUNCTION_WORDS, NEGATIONS, NEGATIVE, NUMBERS, POSITIVE],
)
def test_every_entry_is_a_token(listed: frozenset[str]) -> None:
    for word in listed:
        assert words(word.lower()) == [word]


def test_every_idiom_is_a_sequence_of_tokens() -> None:
    for idiom in IDIOMS:
        assert " ".join(words(idiom)) == idiom == idiom.lower()
    assert len(set(IDIOMS)) == len(IDIOMS)


def test_a_word_has_one_polarity_and_is_about_something() -> None:
    assert not POSITIVE & NEGATIVE
    assert not (POSITIVE | NEGATIVE) & FUNCTION_WORDS


@pytest.mark.parametrize(
    ("word", "digits"), [("zero", "0"), ("ten", "10"), ("twenty", "20"), ("ninety", "90")]
)
def test_number_words(word: str, digits: str) -> None:
    assert NUMBERS[word] == digits
