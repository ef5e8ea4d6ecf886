"""The corpus of conflicts against the grades of its own words, read back from each sentence."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from benchmarks.multitask_bert.data.conflict import make_conflicts
from benchmarks.multitask_bert.data.synthetic import SIZES, make_corpus, vocabulary
from tests.benchmark.data.word_grades import grades_of_words

SIGNS = {"sst": (1, 1, 1, 1), "quora": (1, -1, 1, -1), "sts": (-1, 1, 1, -1)}


@pytest.fixture(scope="module")
def corpus():
    return make_conflicts()


def graded(corpus, task):
    """The labels of a task, and the sum of its sentences' grades with the signs of each task."""
    examples = corpus.splits[task, "train"].examples
    slots = np.array([np.sum([grades_of_words(t) for t in e.texts], axis=0) for e in examples])
    return np.array([e.label for e in examples]), {t: slots @ s for t, s in SIGNS.items()}


def test_splits_have_their_sizes_and_no_other_words(corpus):
    assert {key: len(split.examples) for key, split in corpus.splits.items()} == SIZES
    assert (corpus.name, corpus.splits["sts", "dev"].source) == ("conflict", "conflict")
    words = {
        w for s in corpus.splits.values() for e in s.examples for t in e.texts for w in t.split()
    }
    assert words <= set(vocabulary())


def test_a_seed_decides_everything(corpus):
    assert make_conflicts() == corpus
    assert make_conflicts(seed=1) != corpus


def test_the_reviews_are_those_of_the_built_in_corpus(corpus):
    assert corpus.splits["sst", "dev"].examples == make_corpus().splits["sst", "dev"].examples


def test_any_two_tasks_agree_on_two_slots_and_are_opposed_on_two():
    for one, other in combinations(SIGNS.values(), 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) == 2


def test_questions_are_labelled_by_the_sign_of_their_grade(corpus):
    labels, grades = graded(corpus, "quora")
    assert not (grades["quora"] == 0).any()
    assert 0.03 < np.mean(labels != (grades["quora"] > 0)) < 0.05


def test_statements_are_labelled_by_chance_that_rises_with_their_grade(corpus):
    labels, grades = graded(corpus, "sts")
    assert set(labels) == {0.0, 5.0}
    for grade in range(-3, 4):
        found = labels[grades["sts"] == grade] / 5
        share = 1 / (1 + np.exp(-0.8 * grade))
        assert abs(found.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(found)), grade


@pytest.mark.parametrize("task", SIGNS)
def test_the_grades_of_the_other_tasks_say_little(corpus, task):
    labels, grades = graded(corpus, task)
    own, *others = sorted((np.corrcoef(labels, g)[0, 1] for g in grades.values()), reverse=True)
    assert own == np.corrcoef(labels, grades[task])[0, 1] > 0.6
    assert max(map(abs, others)) < 0.3
