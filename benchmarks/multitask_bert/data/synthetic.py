"""The built-in corpus: three related tasks that a grammar writes from a seed.

Every sentence tells that a person did something to a thing of some quality, or that it was not
done. A review's label is how good all of it is together (sentiment); two questions ask the same or
not (paraphrase); two statements agree in more or less of their meaning (similarity). Each concept
has several words. The tasks share words and meanings, so that a tiny encoder learns all three from
scratch; the labels are noisy, so that it learns none of them completely.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import chain
from string import Formatter
from types import MappingProxyType

from benchmarks.multitask_bert.data.files import Corpus, Example, Split
from benchmarks.multitask_bert.data.grammar import (
    CONCEPTS,
    NEGATION,
    QUESTIONS,
    SLOTS,
    STATEMENTS,
    changed,
    draw_meaning,
    grades_of,
    sentence,
    words_for,
    write_pair,
)

_SIZES = {  # train, dev, test
    "sst": (5000, 400, 100),
    "quora": (12000, 600, 100),
    "sts": (4000, 400, 100),
    "cfimdb": (1600, 240, 100),
}
SIZES: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        (task, split): size
        for task, sizes in _SIZES.items()
        for split, size in zip(("train", "dev", "test"), sizes, strict=True)
    }
)

_NOTICE = (
    "built-in corpus: generated sentences in the shapes of SST, Quora and STS; they are NOT SST,"
    " Quora and STS, and no number measured on them compares with a published one"
)

# Reviews, and what the deed and the thing weigh in them: of two clauses that stand against each
# other, the main one weighs more.
_REVIEWS = (
    ("the {person} has {negation} {action} the {degree} {quality} {thing} .", 1.0, 1.0),
    (
        "the {thing} was {degree} {quality} , and the {person} has {negation} {action} it .",
        1.0,
        1.0,
    ),
    (
        "the {thing} was {degree} {quality} , but the {person} has {negation} {action} it .",
        1.5,
        0.5,
    ),
    (
        "although the {person} has {negation} {action} the {thing} , it was {degree} {quality} .",
        0.5,
        1.5,
    ),
)
_CLASS_BOUNDS = (-2.4, -0.7, 0.7, 2.4)
# What a degree makes of a quality, and how often it stands.
_DEGREES = {"": 1.0, "very": 1.4, "truly": 1.4, "rather": 0.6, "fairly": 0.6, "hardly": -0.6}
_DEGREE_SHARES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)


def make_corpus(seed: int = 0, sizes: Mapping[tuple[str, str], int] = SIZES) -> Corpus:
    """Write the corpus of a seed; no text, and no pair of texts in either order, comes twice.

    Args:
        seed: of all draws. The dev and test splits do not depend on the size of the train split.
        sizes: (task, split) -> number of examples, over the four tasks and the splits train, dev
            and test. Test examples have no label.

    Raises:
        ValueError: another task or split, or more examples than the grammar can write.

    >>> corpus = make_corpus(sizes={("sts", "dev"): 2})
    >>> [example.id for example in corpus.splits["sts", "dev"].examples]
    ['sts-dev-0', 'sts-dev-1']
    """
    return write_corpus("synthetic", _NOTICE, WRITERS, seed, sizes)


def write_corpus(
    name: str,
    notice: str,
    writers: Mapping[str, Callable[[random.Random], Written]],
    seed: int,
    sizes: Mapping[tuple[str, str], int],
) -> Corpus:
    """Write a corpus of the grammar's sentences.

    Args:
        name, notice: of the corpus.
        writers: draws an example of each task.
        seed, sizes: as in :func:`make_corpus`.

    Raises:
        ValueError: as :func:`make_corpus`.
    """
    for task, split in sizes:
        if (task, split) not in SIZES:
            raise ValueError(
                f"sizes must have keys such as ('sst', 'dev'), found {(task, split)!r};"
                f" the tasks are {', '.join(writers)}, the splits train, dev and test"
            )
    splits = {}
    for task, write in writers.items():
        rng = random.Random(f"{seed} {task}")
        seen: set[tuple[str, ...]] = set()
        for split in ("dev", "test", "train"):
            if (task, split) in sizes:
                drawn = _draw(rng, write, sizes[task, split], seen)
                splits[task, split] = _split(task, split, drawn, name)
    return Corpus(name, notice, splits)


def vocabulary() -> list[str]:
    """Every word and mark of punctuation that the grammar can write, sorted.

    >>> {"film", "superb", "?"} <= set(vocabulary())
    True
    """
    templates = (*QUESTIONS, *STATEMENTS, *(review for review, *_ in _REVIEWS))
    literals = " ".join(text for template in templates for text, *_ in Formatter().parse(template))
    concepts = chain.from_iterable(CONCEPTS.values())
    words = {*literals.split(), *chain.from_iterable(concepts), *_DEGREES, NEGATION}
    return sorted(words - {""})


Written = tuple[tuple[str, ...], float]  # texts and label


def _draw(
    rng: random.Random,
    write: Callable[[random.Random], Written],
    num_examples: int,
    seen: set[tuple[str, ...]],
) -> list[Written]:
    """Examples whose texts are not in ``seen`` yet; they are added to it."""
    drawn: list[Written] = []
    for _ in range(10 * num_examples):
        if len(drawn) == num_examples:
            break
        texts, label = write(rng)
        key = tuple(sorted(texts))
        if key not in seen:
            seen.add(key)
            drawn.append((texts, label))
    if len(drawn) < num_examples:
        raise ValueError(
            f"sizes must be what the grammar can write without repetition, found {num_examples};"
            " ask for fewer examples"
        )
    return drawn


def _split(task: str, name: str, drawn: list[Written], source: str) -> Split:
    examples = tuple(
        Example(f"{task}-{name}-{number}", texts, None if name == "test" else label)
        for number, (texts, label) in enumerate(drawn)
    )
    return Split(task, name, examples, num_skipped=0, source=source)


def _paraphrase(rng: random.Random) -> Written:
    """Two questions, and 1 where they ask the same; one label in 25 is wrong."""
    first = second = draw_meaning(rng)
    same = rng.random() < 0.4
    if not same and rng.random() < 0.25:
        second = changed(rng, first, 0, not first.negated)
    elif not same:
        num_slots = rng.choices((1, 2, 3, 4), (0.2, 0.3, 0.3, 0.2))[0]
        second = changed(rng, first, num_slots, first.negated)
    is_wrong = rng.random() < 0.04
    return write_pair(rng, QUESTIONS, first, second), float(same != is_wrong)


def _similarity(rng: random.Random) -> Written:
    """Two statements, and five times the share of the meaning that they have in common.

    A quality counts half beside a neighbouring one, and a contradiction halves the share. The
    noise has a standard deviation of 0.4.
    """
    first = draw_meaning(rng)
    contradicts = rng.random() < 0.1
    second = changed(rng, first, rng.randint(0, len(SLOTS)), first.negated != contradicts)
    kept = [float(a == b) for a, b in zip(first.concepts, second.concepts, strict=True)]
    quality = SLOTS.index("quality")
    distance = abs(first.concepts[quality] - second.concepts[quality])
    kept[quality] = max(0.0, 1.0 - distance / 2)
    share = sum(kept) / len(kept) * (0.5 if contradicts else 1.0)
    score = min(max(5.0 * share + rng.gauss(0.0, 0.4), 0.0), 5.0)
    return write_pair(rng, STATEMENTS, first, second), round(score * 5) / 5


def _review(rng: random.Random) -> Written:
    """A review, and the class 0 to 4 of its sentiment, whose noise has a deviation of 0.4.

    sentiment = weight_deed (person ± action) + weight_thing (thing + degree · quality)

    with the grades of the concepts around 0, the middle one.
    """
    review, deed_weight, thing_weight = rng.choice(_REVIEWS)
    meaning = draw_meaning(rng)
    degree = rng.choices(tuple(_DEGREES), _DEGREE_SHARES)[0]
    text = sentence(review, words_for(rng, meaning), meaning, degree)
    person, action, quality, thing = grades_of(meaning)
    deed = person + action
    sentiment = deed_weight * deed + thing_weight * (thing + _DEGREES[degree] * quality)
    sentiment += rng.gauss(0.0, 0.4)
    return (text,), float(sum(sentiment > bound for bound in _CLASS_BOUNDS))


def _verdict(rng: random.Random) -> Written:
    """A review that is not neutral, and whether it praises."""
    texts, label = _review(rng)
    while label == 2:
        texts, label = _review(rng)
    return texts, float(label > 2)


WRITERS: Mapping[str, Callable[[random.Random], Written]] = {
    "sst": _review,
    "quora": _paraphrase,
    "sts": _similarity,
    "cfimdb": _verdict,
}
