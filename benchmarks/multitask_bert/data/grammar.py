"""The grammar of the built-in corpora: meanings, and the sentences that say them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

# Slot -> its concepts, from the worst to the best -> the words for each. Actions are participles,
# which fit active and passive.
CONCEPTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "person": (
        ("amateur", "fool", "fraud", "liar"),
        ("assistant", "clerk", "employee", "worker"),
        ("champion", "expert", "genius", "master"),
    ),
    "action": (
        ("attacked", "condemned", "mocked", "ridiculed"),
        ("depicted", "described", "mentioned", "portrayed"),
        ("admired", "applauded", "celebrated", "praised"),
    ),
    "quality": (
        ("awful", "dreadful", "horrible", "terrible"),
        ("boring", "dull", "poor", "weak"),
        ("average", "common", "ordinary", "typical"),
        ("decent", "fine", "good", "pleasant"),
        ("brilliant", "excellent", "outstanding", "superb"),
    ),
    "thing": (
        ("disaster", "failure", "flop", "mess"),
        ("drama", "film", "movie", "picture"),
        ("gem", "masterpiece", "treasure", "triumph"),
    ),
}
SLOTS = tuple(CONCEPTS)
_NUM_CONCEPTS = tuple(len(concepts) for concepts in CONCEPTS.values())
NEGATION = "not"

QUESTIONS = (
    "has the {person} {negation} {action} the {quality} {thing} ?",
    "was the {quality} {thing} {negation} {action} by the {person} ?",
)
STATEMENTS = (
    "the {person} has {negation} {action} the {quality} {thing} .",
    "the {quality} {thing} was {negation} {action} by the {person} .",
)


@dataclass(frozen=True)
class Meaning:
    """The meaning of a sentence: a concept for each slot, affirmed or negated."""

    concepts: tuple[int, ...]
    negated: bool


def draw_meaning(rng: random.Random) -> Meaning:
    concepts = tuple(rng.randrange(number) for number in _NUM_CONCEPTS)
    return Meaning(concepts, negated=rng.random() < 0.2)


def grades_of(meaning: Meaning) -> tuple[int, ...]:
    """Give how good the concept of each slot is, around 0; a negated action is turned round."""
    person, action, quality, thing = (
        concept - number // 2
        for concept, number in zip(meaning.concepts, _NUM_CONCEPTS, strict=True)
    )
    return person, -action if meaning.negated else action, quality, thing


def changed(rng: random.Random, meaning: Meaning, num_slots: int, negated: bool) -> Meaning:
    """Copies a meaning and gives ``num_slots`` of its slots another concept each."""
    concepts = list(meaning.concepts)
    for slot in rng.sample(range(len(SLOTS)), num_slots):
        step = rng.randrange(1, _NUM_CONCEPTS[slot])
        concepts[slot] = (concepts[slot] + step) % _NUM_CONCEPTS[slot]
    return Meaning(tuple(concepts), negated)


def words_for(rng: random.Random, meaning: Meaning) -> list[str]:
    """A word for each slot."""
    pairs = zip(CONCEPTS.values(), meaning.concepts, strict=True)
    return [rng.choice(concepts[concept]) for concepts, concept in pairs]


def sentence(template: str, words: list[str], meaning: Meaning, degree: str = "") -> str:
    negation = NEGATION if meaning.negated else ""
    fields = dict(zip(SLOTS, words, strict=True))
    # A field that is empty leaves two spaces.
    return " ".join(template.format(negation=negation, degree=degree, **fields).split())


def write_pair(
    rng: random.Random, templates: tuple[str, ...], first: Meaning, second: Meaning
) -> tuple[str, str]:
    """Two meanings in words; of the concepts that they share, half keep their word."""
    words, others = words_for(rng, first), words_for(rng, second)
    for slot in range(len(SLOTS)):
        if first.concepts[slot] == second.concepts[slot] and rng.random() < 0.5:
            others[slot] = words[slot]
    return (
        sentence(rng.choice(templates), words, first),
        sentence(rng.choice(templates), others, second),
    )
