"""Features of texts that may explain an error: overlap, negation, numbers, names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

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

MAX_PHRASE = 3  # words, for two texts to differ in one phrase
NAME_SHARE = 0.75  # of a name's occurrences inside sentences that begin with a capital

# Both the preprocessing and the treebank's tokens set the endings of contractions apart.
_CONTRACTION = re.compile(r" (?=n't\b|'(?:s|t|m|re|ve|ll|d)\b)")
_DECIMAL = re.compile(r"(?<=\d) (?=[.,]\d)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+|[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.?!:;]+[\s\"')]+|[\"\u201c\u201d(]")


@dataclass(frozen=True)
class Background:
    """Knowledge from outside of the texts that are compared."""

    names: frozenset[str] = frozenset()
    seen: frozenset[str] = frozenset()  # the words of all training texts
    # Word pieces of a word; None where the encoder's tokenizer is not at hand.
    num_pieces: Callable[[str], int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PairFeatures:
    """Measurements on two texts."""

    num_characters: int
    num_words: int
    jaccard: float
    common_run: int
    shares_content: bool
    replaces_phrase: bool
    negated_once: bool
    clauses_once: bool
    numbers_differ: bool
    names_differ: bool
    num_unseen: int
    max_pieces: int


@dataclass(frozen=True)
class SentenceFeatures:
    """Measurements on one text."""

    num_words: int
    polarity: int
    is_negated: bool
    is_contrasting: bool
    has_idiom: bool
    num_unseen: int
    max_pieces: int


def pair_features(first: str, second: str, background: Background) -> PairFeatures:
    """Measure two texts, preprocessed as the model gets them."""
    a, b = words(first), words(second)
    return PairFeatures(
        num_characters=len(first) + len(second),
        num_words=len(a) + len(b),
        jaccard=jaccard(a, b),
        common_run=longest_common_run(a, b),
        shares_content=bool(content_words(a) & content_words(b)),
        replaces_phrase=replaced_phrase(a, b) is not None,
        negated_once=has_negation(a) != has_negation(b),
        clauses_once=CLAUSE_MARKERS.isdisjoint(a) != CLAUSE_MARKERS.isdisjoint(b),
        numbers_differ=numbers(a) != numbers(b),
        names_differ=bool({*map(stem, a)} & background.names ^ {*map(stem, b)} & background.names),
        num_unseen=_num_unseen([*a, *b], background),
        max_pieces=_max_pieces([*a, *b], background),
    )


def sentence_features(text: str, background: Background) -> SentenceFeatures:
    """Measure one text, preprocessed as the model gets it."""
    found = words(text)
    return SentenceFeatures(
        num_words=len(found),
        polarity=polarity(found),
        is_negated=has_negation(found),
        is_contrasting=not CONTRASTS.isdisjoint(found),
        has_idiom=bool(idioms(found)),
        num_unseen=_num_unseen(found, background),
        max_pieces=_max_pieces(found, background),
    )


def words(text: str) -> list[str]:
    """Give the words and numbers of a text; contractions and decimals are put together again.

    Example:
        >>> words("it 's 1 ,000 .5 miles , i do n't know")
        ["it's", '1,000.5', 'miles', 'i', "don't", 'know']
    """
    text = _CONTRACTION.sub("", text.replace("\u2019", "'"))
    return _WORD.findall(_DECIMAL.sub("", text))


def stem(word: str) -> str:
    """Give a word without the ending of the genitive."""
    return word.removesuffix("'s")


def content_words(found: Iterable[str]) -> frozenset[str]:
    """Give the words that are not there for grammar.

    Example:
        >>> sorted(content_words(words("the dog 's owner is n't here")))
        ['dog', 'owner']
    """
    return frozenset(
        stem(word)
        for word in found
        if word.partition("'")[0] not in FUNCTION_WORDS and not word.endswith("n't")
    )


def jaccard(a: Iterable[str], b: Iterable[str]) -> float:
    r"""Give the share of words that two texts have in common, $|A \cap B| / |A \cup B|$.

    Example:
        >>> jaccard(["a", "dog", "runs"], ["a", "cat", "runs"])
        0.5
    """
    first, second = set(a), set(b)
    union = first | second
    return len(first & second) / len(union) if union else 0.0


def longest_common_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Give the length of the longest sequence of adjacent words that stands in both texts.

    Example:
        >>> longest_common_run("he saw a red car".split(), "a red car hit him".split())
        3
    """
    longest = 0
    before = [0] * (len(b) + 1)  # runs that end at the word before in a, by the end in b
    for word in a:
        runs = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if word == other:
                runs[j + 1] = before[j] + 1
        longest = max(longest, *runs)
        before = runs
    return longest


def replaced_phrase(
    a: Sequence[str], b: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Give what stands for what where two texts differ in one phrase alone, else None.

    Each phrase has one to three words, and a content word among them.

    Example:
        >>> replaced_phrase("a red car stopped".split(), "a small bus stopped".split())
        (('red', 'car'), ('small', 'bus'))
    """
    start = _num_equal(a, b)
    end = _num_equal(a[start:][::-1], b[start:][::-1])
    first, second = tuple(a[start : len(a) - end]), tuple(b[start : len(b) - end])
    fits = all(0 < len(p) <= MAX_PHRASE and content_words(p) for p in (first, second))
    return (first, second) if start + end and fits else None


def has_negation(found: Iterable[str]) -> bool:
    """Say whether there is a negation cue.

    Example:
        >>> has_negation(words("they ca n't swim")), has_negation(words("they know"))
        (True, False)
    """
    return any(word in NEGATIONS or word.endswith("n't") for word in found)


def numbers(found: Iterable[str]) -> frozenset[str]:
    """Give the numbers of a text, in digits.

    Example:
        >>> sorted(numbers(words("two of 1,000 cars")))
        ['1000', '2']
    """
    return frozenset(
        NUMBERS.get(word, word.replace(",", ""))
        for word in found
        if word in NUMBERS or word[0].isdigit()
    )


def polarity(found: Iterable[str]) -> int:
    """Give the number of words of praise less that of words of blame.

    Example:
        >>> polarity("a charming and funny mess".split())
        1
    """
    return sum((word in POSITIVE) - (word in NEGATIVE) for word in found)


def idioms(found: Iterable[str]) -> list[str]:
    """Give the idioms of a text.

    Example:
        >>> idioms(words("it falls flat , i ca n't wait for the end"))
        ["can't wait", 'falls flat']
    """
    text = f" {' '.join(found)} "
    return [idiom for idiom in IDIOMS if f" {idiom} " in text]


def name_words(texts: Iterable[str]) -> frozenset[str]:
    """Give the words, in lower case, that these texts write with a capital inside a sentence.

    It takes the texts as they were before preprocessing. Headlines with a capital on every longer
    word tell nothing and do not count.

    Example:
        >>> sorted(name_words(["The mayor of Oslo smiled. She met Kim.", "The mayor smiled."]))
        ['kim', 'oslo']
    """
    total: Counter[str] = Counter()
    capitalised: Counter[str] = Counter()
    for text in texts:
        for sentence in _SENTENCE_END.split(text):
            inside = [stem(word) for word in words(sentence)[1:]]
            longer = [word for word in inside if len(word) > 3]
            if len(longer) > 2 and all(word[0].isupper() for word in longer):
                continue
            total.update(word.lower() for word in inside)
            capitalised.update(word.lower() for word in inside if word[0].isupper())
    return frozenset(
        word
        for word, count in capitalised.items()
        if count >= NAME_SHARE * total[word] and word.partition("'")[0] not in FUNCTION_WORDS
    )


def _num_equal(a: Sequence[str], b: Sequence[str]) -> int:
    """Give the number of words that two texts begin with in common."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def _num_unseen(found: Iterable[str], background: Background) -> int:
    return sum(stem(word) not in background.seen for word in found)


def _max_pieces(found: Iterable[str], background: Background) -> int:
    """Give the word pieces of the word that has most; 0 where they are not known."""
    if background.num_pieces is None:
        return 0
    # Numbers and contractions fall into pieces however common they are.
    return max((background.num_pieces(word) for word in found if word.isalpha()), default=0)
