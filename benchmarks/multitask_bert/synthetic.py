"""The built-in corpus: three related tasks that a grammar writes from a seed.

The sentences of a pair mean a person, an action, a quality and a thing, and may be negated. Two
questions ask the same or not (paraphrase); two statements agree in more or less of their meaning
(similarity); a review tells how good things are (sentiment). The tasks share their words, and each
concept has several, so that a tiny encoder learns all three from scratch. The labels are noisy, so
that it cannot learn any of them completely.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from string import Formatter
from types import MappingProxyType

from benchmarks.multitask_bert.data import Corpus, Example, Split

SIZES: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        ("sst", "train"): 2400,
        ("sst", "dev"): 400,
        ("sst", "test"): 100,
        ("quora", "train"): 6000,
        ("quora", "dev"): 600,
        ("quora", "test"): 100,
        ("sts", "train"): 1600,
        ("sts", "dev"): 400,
        ("sts", "test"): 100,
    }
)

_NOTICE = (
    "built-in corpus: generated sentences in the shapes of SST, Quora and STS; they are NOT SST,"
    " Quora and STS, and no number measured on them compares with a published one"
)

# Slot -> concepts -> the words for each. Actions are participles, which fit active and passive;
# qualities go from the worst to the best.
_CONCEPTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "person": (
        ("doctor", "nurse", "surgeon"),
        ("teacher", "professor", "tutor"),
        ("child", "kid", "toddler"),
        ("farmer", "gardener", "shepherd"),
        ("soldier", "sailor", "guard"),
    ),
    "action": (
        ("bought", "purchased", "acquired"),
        ("fixed", "repaired", "mended"),
        ("described", "depicted", "portrayed"),
        ("found", "discovered", "noticed"),
        ("sold", "traded", "auctioned"),
    ),
    "quality": (
        ("awful", "terrible", "dreadful"),
        ("dull", "boring", "weak"),
        ("ordinary", "typical", "average"),
        ("good", "fine", "pleasant"),
        ("superb", "excellent", "brilliant"),
    ),
    "thing": (
        ("film", "movie", "documentary"),
        ("song", "tune", "melody"),
        ("car", "truck", "van"),
        ("meal", "dinner", "breakfast"),
        ("house", "cottage", "villa"),
    ),
}
_QUALITY = tuple(_CONCEPTS).index("quality")
_QUESTIONS = (
    "has the {person} {negation} {action} the {quality} {thing} ?",
    "was the {quality} {thing} {negation} {action} by the {person} ?",
)
_STATEMENTS = (
    "the {person} has {negation} {action} the {quality} {thing} .",
    "the {quality} {thing} was {negation} {action} by the {person} .",
)

# Reviews with the weights of their two clauses: one that stands against the other counts for more.
_REVIEWS = (
    ("the {person} {opines} that {first} .", 1.0, 0.0),
    ("{first} , {opines} the {person} .", 1.0, 0.0),
    ("{first} , and {second} .", 1.0, 1.0),
    ("{first} , but {second} .", 0.5, 1.5),
    ("although {first} , {second} .", 0.5, 1.5),
)
_CLAUSES = (
    "the {aspect} was {degree} {quality}",
    "the {aspect} seemed {degree} {quality}",
    "we found the {aspect} {degree} {quality}",
)
_OPINES = ("admits", "adds", "argues", "believes", "claims", "insists", "says", "thinks", "writes")
_ASPECTS = (
    *chain.from_iterable(_CONCEPTS["thing"]),
    *("acting", "cast", "design", "ending", "finish", "flavour", "idea", "look", "menu", "mood"),
    *("pace", "plot", "price", "quality", "rhythm", "scenery", "script", "service", "shape"),
    *("smell", "sound", "staff", "story", "style", "taste", "title", "view"),
)
# What a degree makes of a quality's distance from the middle one.
_DEGREES = {"": 1.0, "very": 1.4, "truly": 1.4, "rather": 0.6, "fairly": 0.6, "not": -0.6}
_DEGREE_SHARES = (0.4, 0.1, 0.1, 0.1, 0.1, 0.2)
_CLASS_BOUNDS = (-1.7, -0.4, 0.4, 1.7)


def make_corpus(seed: int = 0, sizes: Mapping[tuple[str, str], int] = SIZES) -> Corpus:
    """Write the corpus of a seed; no text, and no pair of texts in either order, comes twice.

    Args:
        seed: of all draws. The dev and test splits do not depend on the size of the train split.
        sizes: (task, split) -> number of examples, over the tasks sst, quora and sts and the
            splits train, dev and test. Test examples have no label.

    Raises:
        ValueError: another task or split, or more examples than the grammar can write.

    >>> corpus = make_corpus(sizes={("sts", "dev"): 2})
    >>> [example.id for example in corpus.splits["sts", "dev"].examples]
    ['sts-dev-0', 'sts-dev-1']
    """
    for task, split in sizes:
        if (task, split) not in SIZES:
            raise ValueError(
                f"sizes must have keys such as ('sst', 'dev'), found {(task, split)!r};"
                f" the tasks are {', '.join(_WRITERS)}, the splits train, dev and test"
            )
    splits = {}
    for task, write in _WRITERS.items():
        rng = random.Random(f"{seed} {task}")
        seen: set[tuple[str, ...]] = set()
        for name in ("dev", "test", "train"):
            if (task, name) in sizes:
                drawn = _draw(rng, write, sizes[task, name], seen)
                splits[task, name] = _split(task, name, drawn)
    return Corpus("synthetic", _NOTICE, splits)


def vocabulary() -> list[str]:
    """Every word and mark of punctuation that the grammar can write, sorted.

    >>> {"film", "superb", "?"} <= set(vocabulary())
    True
    """
    templates = (*_QUESTIONS, *_STATEMENTS, *(review for review, *_ in _REVIEWS), *_CLAUSES)
    literals = (text for template in templates for text, *_ in Formatter().parse(template))
    concepts = chain.from_iterable(_CONCEPTS.values())
    words = chain(
        chain.from_iterable(concepts), _OPINES, _ASPECTS, _DEGREES, *map(str.split, literals)
    )
    return sorted(set(words) - {""})


_Written = tuple[tuple[str, ...], float]  # texts and label


def _draw(
    rng: random.Random,
    write: Callable[[random.Random], _Written],
    num_examples: int,
    seen: set[tuple[str, ...]],
) -> list[_Written]:
    """Examples whose texts are not in ``seen`` yet; they are added to it."""
    drawn: list[_Written] = []
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


def _split(task: str, name: str, drawn: list[_Written]) -> Split:
    examples = tuple(
        Example(f"{task}-{name}-{number}", texts, None if name == "test" else label)
        for number, (texts, label) in enumerate(drawn)
    )
    return Split(task, name, examples, num_skipped=0, source="synthetic")


@dataclass(frozen=True)
class _Meaning:
    """What a sentence of a pair says: a concept for each slot, affirmed or negated."""

    concepts: tuple[int, ...]
    negated: bool


def _meaning(rng: random.Random) -> _Meaning:
    concepts = tuple(rng.randrange(len(known)) for known in _CONCEPTS.values())
    return _Meaning(concepts, negated=rng.random() < 0.2)


def _changed(rng: random.Random, meaning: _Meaning, num_slots: int, negated: bool) -> _Meaning:
    """The same but for ``num_slots`` slots, which get another concept each."""
    concepts = list(meaning.concepts)
    sizes = [len(known) for known in _CONCEPTS.values()]
    for slot in rng.sample(range(len(concepts)), num_slots):
        concepts[slot] = (concepts[slot] + rng.randrange(1, sizes[slot])) % sizes[slot]
    return _Meaning(tuple(concepts), negated)


def _pair(
    rng: random.Random, templates: tuple[str, ...], first: _Meaning, second: _Meaning
) -> tuple[str, str]:
    """Two meanings in words; half of the concepts that they share are written by the same word.

    Were it fewer, matching synonyms would take a tiny encoder longer to discover.
    """
    slots = list(zip(_CONCEPTS.values(), first.concepts, second.concepts, strict=True))
    words = [rng.choice(known[a]) for known, a, _ in slots]
    others = [
        word if a == b and rng.random() < 0.5 else rng.choice(known[b])
        for word, (known, a, b) in zip(words, slots, strict=True)
    ]
    return _sentence(rng, templates, words, first), _sentence(rng, templates, others, second)


def _sentence(
    rng: random.Random, templates: tuple[str, ...], words: list[str], meaning: _Meaning
) -> str:
    fields = dict(zip(_CONCEPTS, words, strict=True))
    negation = "not" if meaning.negated else ""
    return _fill(rng.choice(templates), negation=negation, **fields)


def _fill(template: str, **fields: str) -> str:
    # An empty field leaves two spaces.
    return " ".join(template.format(**fields).split())


def _paraphrase(rng: random.Random) -> _Written:
    """Two questions, and 1 where they ask the same; one label in 25 is wrong."""
    first = second = _meaning(rng)
    same = rng.random() < 0.4
    if not same and rng.random() < 0.25:
        second = _changed(rng, first, 0, not first.negated)
    elif not same:
        num_slots = rng.choices((1, 2, 3, 4), (0.2, 0.3, 0.3, 0.2))[0]
        second = _changed(rng, first, num_slots, first.negated)
    is_wrong = rng.random() < 0.04
    return _pair(rng, _QUESTIONS, first, second), float(same != is_wrong)


def _similarity(rng: random.Random) -> _Written:
    """Two statements, and five times the share of the meaning that they have in common.

    A quality counts half beside a neighbouring one, and a contradiction halves the share. The
    noise has a standard deviation of 0.5.
    """
    first = _meaning(rng)
    contradicts = rng.random() < 0.15
    second = _changed(rng, first, rng.randint(0, 4), first.negated != contradicts)
    kept = [float(a == b) for a, b in zip(first.concepts, second.concepts, strict=True)]
    distance = abs(first.concepts[_QUALITY] - second.concepts[_QUALITY])
    kept[_QUALITY] = max(0.0, 1.0 - distance / 2)
    share = sum(kept) / len(kept) * (0.5 if contradicts else 1.0)
    score = min(max(5.0 * share + rng.gauss(0.0, 0.5), 0.0), 5.0)
    return _pair(rng, _STATEMENTS, first, second), round(score * 5) / 5


def _review(rng: random.Random) -> _Written:
    """A review of one or two things, and the class 0 to 4 of its noisy sentiment."""
    review, first_weight, second_weight = rng.choice(_REVIEWS)
    first, first_value = _clause(rng)
    second, second_value = _clause(rng)
    person = rng.choice(rng.choice(_CONCEPTS["person"]))
    text = _fill(review, person=person, opines=rng.choice(_OPINES), first=first, second=second)
    value = first_weight * first_value + second_weight * second_value + rng.gauss(0.0, 0.4)
    return (text,), float(sum(value > bound for bound in _CLASS_BOUNDS))


def _clause(rng: random.Random) -> tuple[str, float]:
    """A clause, and its sentiment in steps between qualities."""
    degree = rng.choices(tuple(_DEGREES), _DEGREE_SHARES)[0]
    grade = rng.randrange(len(_CONCEPTS["quality"]))
    quality = rng.choice(_CONCEPTS["quality"][grade])
    aspect = rng.choice(_ASPECTS)
    text = _fill(rng.choice(_CLAUSES), aspect=aspect, degree=degree, quality=quality)
    return text, (grade - len(_CONCEPTS["quality"]) // 2) * _DEGREES[degree]


_WRITERS: Mapping[str, Callable[[random.Random], _Written]] = {
    "sst": _review,
    "quora": _paraphrase,
    "sts": _similarity,
}
