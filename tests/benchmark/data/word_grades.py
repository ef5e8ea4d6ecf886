"""The grades of a sentence of the built-in grammar, read from its words."""

from __future__ import annotations

# Slot by slot, each word's grade; written out, so that it is not the grammar's own table.
_PERSON = (("amateur fool fraud liar", -1), ("champion expert genius master", 1))
_ACTION = (("attacked condemned mocked ridiculed", -1), ("admired applauded celebrated praised", 1))
_QUALITY = (
    ("awful dreadful horrible terrible", -2),
    ("boring dull poor weak", -1),
    ("decent fine good pleasant", 1),
    ("brilliant excellent outstanding superb", 2),
)
_THING = (("disaster failure flop mess", -1), ("gem masterpiece treasure triumph", 1))


def grades_of_words(text: str) -> list[int]:
    """Person, action (turned by a "not"), quality and thing; degrees are left out."""
    words = set(text.split())
    found = [
        sum(grade for group, grade in slot if words & set(group.split()))
        for slot in (_PERSON, _ACTION, _QUALITY, _THING)
    ]
    return [found[0], -found[1] if "not" in words else found[1], *found[2:]]
