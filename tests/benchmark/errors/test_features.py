"""The features of invented texts, and of rows known from the reports, against values by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.multitask_bert.data.files import preprocess, read_split
from benchmarks.multitask_bert.errors.features import (
    Background,
    content_words,
    has_negation,
    idioms,
    jaccard,
    longest_common_run,
    name_words,
    numbers,
    pair_features,
    polarity,
    replaced_phrase,
    sentence_features,
    stem,
    words,
)
from benchmarks.multitask_bert.tasks import TASKS
from tests.paths import SHARED

DATA = SHARED / "data"
NO_DATA = "the course's data files are not at hand"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It isn't Kim's, is it?", ["it", "isn't", "kim's", "is", "it"]),
        ("He paid $1,250.75 on Monday.", ["he", "paid", "1,250.75", "on", "monday"]),
        ("A well-known 5-year plan", ["a", "well", "known", "5", "year", "plan"]),
        ("They\u2019re late; we won\u2019t wait", ["they're", "late", "we", "won't", "wait"]),
        ("she said 'no'", ["she", "said", "no"]),
        ("  ...  ", []),
    ],
)
def test_words_survive_the_preprocessing(text: str, expected: list[str]) -> None:
    assert words(preprocess(TASKS["sts"], text)) == expected
    assert words(text.lower()) == expected


def test_words_put_treebank_contractions_together() -> None:
    found = words("it 's a film i could n't leave , and they 'd stay")
    assert found == ["it's", "a", "film", "i", "couldn't", "leave", "and", "they'd", "stay"]


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [
        ("a dog runs", "a dog runs", 1.0),
        ("a a a dog", "dog a", 1.0),
        ("a dog runs", "two cats sleep", 0.0),
        ("a dog runs home", "the dog runs", 2 / 5),
        ("", "a dog", 0.0),
        ("", "", 0.0),
    ],
)
def test_jaccard_by_hand(a: str, b: str, share: float) -> None:
    assert jaccard(words(a), words(b)) == share


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ("x a b c y", "a b c", 3),
        ("a b x b c", "a b c", 2),
        ("a b c d", "d c b a", 1),
        ("a a a", "a a", 2),
        ("a b", "c d", 0),
        ("", "a", 0),
        ("", "", 0),
    ],
)
def test_longest_common_run_by_hand(a: str, b: str, length: int) -> None:
    assert longest_common_run(a.split(), b.split()) == length


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_longest_common_run_is_that_of_all_runs(a: list[str], b: list[str]) -> None:
    def runs(found: list[str]) -> set[tuple[str, ...]]:
        size = len(found)
        return {tuple(found[i:j]) for i in range(size + 1) for j in range(i, size + 1)}

    assert longest_common_run(a, b) == max(map(len, runs(a) & runs(b)))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("the pilot flew home", "the captain flew home", (("pilot",), ("captain",))),
        ("he sold a red car", "he sold a van", (("red", "car"), ("van",))),
        ("a dog barks", "a cat", (("dog", "barks"), ("cat",))),
        ("the dog barks", "the dog barks", None),
        ("the dog barks", "the dog barks loudly", None),  # nothing stands for "loudly"
        ("the dog barks", "a dog barks", None),  # no content word
        ("dogs bark", "cats sleep", None),  # nothing in common
        ("he saw one two three cars", "he saw the very old blue vans", None),  # too long
        ("a red car and a tall man", "a blue car and a short man", None),  # two phrases
        ("a a b", "a b", None),  # start and end must not overlap
    ],
)
def test_replaced_phrase(
    a: str, b: str, expected: tuple[tuple[str, ...], tuple[str, ...]] | None
) -> None:
    assert replaced_phrase(a.split(), b.split()) == expected
    swapped = expected and (expected[1], expected[0])
    assert replaced_phrase(b.split(), a.split()) == swapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he did not come", True),
        ("he didn 't come", True),
        ("he did n't come", True),
        ("nobody came", True),
        ("he can cannot", True),
        ("he knows a note about knots", False),
        ("", False),
    ],
)
def test_negation_cues(text: str, expected: bool) -> None:
    assert has_negation(words(text)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two cats and 3 dogs", {"2", "3"}),
        ("1 ,000 men", {"1000"}),
        ("up 3 .5 percent", {"3.5"}),
        ("twenty of the 20", {"20"}),
        ("often tense", set()),
    ],
)
def test_numbers(text: str, expected: set[str]) -> None:
    assert numbers(words(text)) == expected


def test_content_words_leave_grammar_out() -> None:
    found = content_words(words("the farmer 's dogs have n't been in it 's garden , 2 times"))
    assert found == {"farmer", "dogs", "garden", "2", "times"}
    assert stem("farmer's") == "farmer"


def test_polarity_counts_words() -> None:
    assert polarity(words("superb , superb and dull")) == 1
    assert polarity(words("an awful , boring van")) == -2
    assert polarity(words("the van")) == 0


def test_idioms_are_whole_phrases() -> None:
    assert idioms(words("the joke falls flat .")) == ["falls flat"]
    assert idioms(words("water falls flatly")) == []


def test_names_are_words_with_capitals_inside_sentences() -> None:
    texts = [
        "Yesterday Maria's car stopped near Lima. The driver, Bo, left.",
        "The driver of the Lima car said: Nothing happened.",
        "May I ask when May ends?",
        "Big Storm Hits Northern Coast Towns",
        "the bo tree",
    ]
    # "bo" is in capitals one time of two, and "may" and "i" are there for grammar.
    assert name_words(texts) == {"maria", "lima"}


def test_pair_features_by_hand() -> None:
    background = Background(
        names=frozenset({"lima"}),
        seen=frozenset(words("the train to will not leave in hours")),
        num_pieces=len,
    )
    first, second = "the train to lima will not leave in 2 hours .", "the train leaves in two hours"
    found = pair_features(first, second, background)
    assert found.num_characters == len(first) + len(second)
    assert found.num_words == 10 + 6
    # the, train, in, hours of 12 words: 2 and two are not the same word
    assert found.jaccard == 4 / 12
    assert found.common_run == 2
    assert found.shares_content
    assert not found.replaces_phrase
    assert found.negated_once
    assert not found.clauses_once
    assert not found.numbers_differ
    assert found.names_differ
    assert found.num_unseen == len(["lima", "2", "leaves", "two"])
    assert found.max_pieces == len("leaves")


def test_features_that_stand_on_both_sides_do_not_differ() -> None:
    background = Background(names=frozenset({"lima"}))
    found = pair_features("not in lima , when 3 left", "3 never saw lima 's sea when", background)
    differences = (found.negated_once, found.clauses_once, found.numbers_differ, found.names_differ)
    assert differences == (False,) * 4
    assert found.max_pieces == 0


def test_sentence_features_by_hand() -> None:
    background = Background(seen=frozenset({"a", "film", "but", "i"}), num_pieces=lambda word: 2)
    found = sentence_features("a dull film , but i ca n't wait", background)
    assert found.num_words == 7
    assert found.polarity == -1
    assert found.is_negated
    assert found.is_contrasting
    assert found.has_idiom
    assert found.num_unseen == len(["dull", "can't", "wait"])
    assert found.max_pieces == 2


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
def test_rows_that_the_reports_discuss_show_the_feature_they_are_named_for() -> None:
    texts = [example.texts for example in read_split(DATA, "sts", "dev").examples]
    found = [pair_features(first, second, Background()) for first, second in texts]
    assert sum(features.num_characters >= 300 for features in found[:500]) == 15
    assert found[22].shares_content  # Jiang and Yu: polysemy
    assert found[159].negated_once  # Jiang and Yu: negation
    assert found[185].jaccard >= 0.5  # Benton: overlap
    assert found[291].replaces_phrase  # Benton: one word decides
    sentences = read_split(DATA, "sst", "dev").examples
    reviews = [sentence_features(example.texts[0], Background()) for example in sentences]
    assert reviews[224].has_idiom  # Jiang and Yu: sarcasm and idiom
    assert reviews[79].polarity > 0  # Jiang and Yu: clear words on a neutral sentence
