"""The analysis of sentences against counts by hand, on invented reviews."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from benchmarks.multitask_bert.data.files import Example
from benchmarks.multitask_bert.errors.features import Background
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.errors.sentences import (
    SentenceErrors,
    confusion_blocks,
    confusion_of,
    sentence_blocks,
)
from benchmarks.multitask_bert.page.document import Block, Table
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.significance import Verdict
from benchmarks.multitask_bert.tasks import TASKS

REVIEWS = (
    "a superb film",  # 0
    "it is not dull",  # 1
    "a dull film , but i ca n't wait for the next",  # 2
    "it is a film",  # 3
    "a charming and funny cast",  # 4
    "an awful mess",  # 5
)
LABELS = (4, 3, 3, 2, 2, 2)
PREDICTIONS = (4, 1, 0, 2, 4, 0)


def make(
    predictions: Sequence[float] = PREDICTIONS,
    labels: Sequence[float] = LABELS,
    texts: Sequence[str] = REVIEWS,
    task: str = "sst",
) -> SentenceErrors:
    examples = tuple(
        Example(f"id{i}", (text,), label)
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    )
    outcomes = Outcomes(
        TASKS[task],
        examples,
        np.asarray(predictions, dtype=float),
        np.asarray(labels, dtype=float),
        Background(),
    )
    return SentenceErrors(outcomes)


def drawn(blocks: Iterable[Block]) -> list[str]:
    return to_markdown(blocks).splitlines()


def row(lines: Sequence[str], title: str, which: int = 0) -> list[str]:
    line = [line for line in lines if line.startswith(f"| {title} ")][which]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_sentence_is_in_the_groups_of_its_features() -> None:
    found = {group.title: np.flatnonzero(group.members).tolist() for group in make().groups}
    assert found["negation cue"] == [1, 2]
    assert found["contrast (but, although, ...)"] == [2]
    assert found["idiom"] == [2]
    assert found["words of praise and blame in balance"] == [3]
    assert found["fewer than 10 words"] == [0, 1, 3, 4, 5]


def test_confusions_are_counted() -> None:
    outcomes = make().outcomes
    assert confusion_of(outcomes).counts.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 0, 1, 0, 1],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    lines = drawn(confusion_blocks(outcomes))
    assert row(lines, "accuracy") == ["accuracy", "0.333", "0.500"]
    assert row(lines, "at most one class off") == ["at most one class off", "0.333", "1.000"]
    # F1 is 1/2 for 2 and 2/3 for 4, of five classes; all 3: F1 2·2/(2+6), of three with a label.
    assert row(lines, "macro F1") == ["macro F1", f"{(1 / 2 + 2 / 3) / 5:.3f}", f"{2 / 3 / 3:.3f}"]


def test_shares_of_a_class_are_compared_by_the_examples_that_tell_them_apart() -> None:
    labels = [0] * 12 + [1] * 12
    predictions = [1] * 8 + [0] * 4 + [1] * 11 + [0]
    lines = drawn(confusion_blocks(make(predictions, labels, ["a film"] * 24, "cfimdb").outcomes))
    # Eight more predictions of 1 than labels would have it against one: 2 (1 + 9) / 2^9.
    cells = row(lines, "1", which=1)
    assert cells[:5] == ["1", "0.500", "0.792", f"{20 / 512:.3f}", "higher"]
    assert cells[5].endswith("of 12")
    assert cells[5].startswith("0.917")
    assert cells[6].startswith("0.579")
    assert not [line for line in lines if "one class off" in line]


def test_severe_errors_and_hits_by_hand() -> None:
    found = make()
    (negation,) = [group for group in found.groups if group.title == "negation cue"]
    hits, severe = found.hit_contrast(negation), found.severe_contrast(negation)
    assert (hits.num_hits, hits.count, hits.num_others, hits.other_count) == (0, 2, 2, 4)
    assert (severe.num_hits, severe.count, severe.num_others, severe.other_count) == (1, 2, 0, 4)


def test_neutral_sentences_at_the_ends_are_counted() -> None:
    lines = drawn(sentence_blocks(make(), 5))
    assert "| 3 neutral sentences | number | share         |" in lines
    assert row(lines, "predicted at an end")[1] == "2"
    assert row(lines, "predicted 2")[1] == "1"
    assert row(lines, "more words of praise")[1:4] == ["1", "+2.00", "1"]
    assert row(lines, "more words of blame")[1:4] == ["1", "-2.00", "1"]
    assert "<summary>Neutral, predicted at an end: 2 of 2</summary>" in lines
    assert lines[lines.index("<summary>Wrong: 4 of 4</summary>") + 2].endswith("id id2")


def test_a_negation_effect_on_positive_sentences_is_found() -> None:
    texts = ["a good film"] * 40 + ["not a bad film"] * 20
    labels = [3, 4] * 30
    predictions = [3, 4] * 20 + [2, 3] * 10
    lines = drawn(sentence_blocks(make(predictions, labels, texts), 1))
    cells = row(lines, "positive sentences: negation cue")
    assert cells[1:6] == ["20", "-1.00 ± 0.00", "40", "+0.00 ± 0.00", "-1.00 ± 0.00"]
    assert cells[-1] == "lower"
    assert row(lines, "negative sentences: negation cue")[-1] == "too few to tell"


@pytest.mark.parametrize(("task", "neutral"), [("sst", 2), ("cfimdb", None)])
def test_neutral_is_the_class_between(task: str, neutral: int | None) -> None:
    assert make([1, 0], [0, 1], ["good", "bad"], task).neutral == neutral


def test_two_classes_have_no_neutral_and_no_severe() -> None:
    lines = drawn(sentence_blocks(make([1, 0], [0, 1], ["a good film", "a bad film"], "cfimdb"), 1))
    assert not [line for line in lines if "eutral" in line or "classes or more" in line]
    assert "<summary>Wrong: 1 of 2</summary>" in lines


def test_few_sentences_tell_nothing() -> None:
    tables = [block for block in sentence_blocks(make(), 1) if isinstance(block, Table)]
    verdicts = {
        cell for table in tables for row in table.rows for cell in row if isinstance(cell, Verdict)
    }
    assert verdicts == {Verdict.TOO_FEW}
