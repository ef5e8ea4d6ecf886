"""The corpus of conflicts: three tasks that want opposite things of the same words.

The grammar and the reviews are those of the built-in corpus. A sentence has a grade in each of
four slots: who it was, what was done, of what quality the thing was, and what it was. Every task
sums the grades with signs of its own; any two tasks agree on two slots and are opposed on two:

=========== ======= ======= ======= =======
task        person  action  quality thing
=========== ======= ======= ======= =======
SST         \\+      \\+      \\+      \\+
Quora       \\+      \\-      \\+      \\-
STS         \\-      \\+      \\+      \\-
=========== ======= ======= ======= =======

The labels of STS are 0 or 5, by chance as much as by grade, so that its gradients are long in every
step, however much has been learned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from benchmarks.multitask_bert.data.files import Corpus
from benchmarks.multitask_bert.data.grammar import (
    QUESTIONS,
    STATEMENTS,
    Meaning,
    draw_meaning,
    grades_of,
    write_pair,
)
from benchmarks.multitask_bert.data.synthetic import SIZES, WRITERS, Written, write_corpus

_NOTICE = (
    "corpus of conflicts: generated sentences of which three tasks want opposite things, in the"
    " shapes of SST, Quora and STS; they are NOT SST, Quora and STS, and no number measured on them"
    " compares with a published one"
)
_QUORA_SIGNS = (1, -1, 1, -1)
_STS_SIGNS = (-1, 1, 1, -1)
_SLOPE = 0.8  # log odds of a 5 for a point of grade


def make_conflicts(seed: int = 0, sizes: Mapping[tuple[str, str], int] = SIZES) -> Corpus:
    """Write the corpus of a seed.

    Args:
        seed, sizes: as in :func:`synthetic.make_corpus`.

    Raises:
        ValueError: as there.

    >>> corpus = make_conflicts(sizes={("sts", "dev"): 100})
    >>> sorted({example.label for example in corpus.splits["sts", "dev"].examples})
    [0.0, 5.0]
    """
    writers = {**WRITERS, "quora": _questions, "sts": _statements}
    return write_corpus("conflict", _NOTICE, writers, seed, sizes)


def _questions(rng: random.Random) -> Written:
    """Two questions, and whether their grades are above 0; one label in 25 is wrong."""
    grade = 0
    while grade == 0:
        first, second = draw_meaning(rng), draw_meaning(rng)
        grade = _grade(first, _QUORA_SIGNS) + _grade(second, _QUORA_SIGNS)
    is_wrong = rng.random() < 0.04
    return write_pair(rng, QUESTIONS, first, second), float((grade > 0) != is_wrong)


def _statements(rng: random.Random) -> Written:
    """Two statements, and 0 or 5, of which 5 is the likelier the higher their grades."""
    first, second = draw_meaning(rng), draw_meaning(rng)
    grade = _grade(first, _STS_SIGNS) + _grade(second, _STS_SIGNS)
    share = 1 / (1 + math.exp(-_SLOPE * grade))
    return write_pair(rng, STATEMENTS, first, second), 5.0 * (rng.random() < share)


def _grade(meaning: Meaning, signs: tuple[int, ...]) -> int:
    return sum(sign * grade for sign, grade in zip(signs, grades_of(meaning), strict=True))
