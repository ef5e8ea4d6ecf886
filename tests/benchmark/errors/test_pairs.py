"""The analysis of pairs against counts by hand, on invented pairs with errors put into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from benchmarks.multitask_bert.data.files import Example
from benchmarks.multitask_bert.errors.contrasts import Group
from benchmarks.multitask_bert.errors.features import Background
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.errors.pairs import PairErrors, binary_blocks, score_blocks
from benchmarks.multitask_bert.page.document import Block, Table
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.significance import Verdict
from benchmarks.multitask_bert.tasks import TASKS

TEXTS = (
    ("a red car stopped", "a blue car stopped"),
    ("a dog sleeps", "the moon is bright"),
    ("he did not go home", "he did go home"),
    ("2 men met", "3 men met"),
)


def make(
    task: str,
    predictions: Sequence[float],
    labels: Sequence[float],
    texts: Sequence[tuple[str, str]] = TEXTS,
    background: Background | None = None,
) -> PairErrors:
    examples = tuple(
        Example(f"id{i}", pair, label)
        for i, (pair, label) in enumerate(zip(texts, labels, strict=True))
    )
    outcomes = Outcomes(
        TASKS[task],
        examples,
        np.asarray(predictions, dtype=float),
        np.asarray(labels, dtype=float),
        background or Background(),
    )
    return PairErrors(outcomes)


def members(found: PairErrors, title: str) -> list[int]:
    (group,) = [group for group in found.groups if title in group.title]
    return np.flatnonzero(group.split()[0]).tolist()


def drawn(blocks: Iterable[Block]) -> list[str]:
    return to_markdown(blocks).splitlines()


def row(lines: Sequence[str], title: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_pair_is_in_the_groups_of_its_features() -> None:
    found = make("sts", [3, 1, 2, 4], [1.0, 0.0, 3.0, 4.0])
    assert members(found, "one phrase replaced") == [0, 3]
    assert members(found, "negation in exactly one") == [2]
    assert members(found, "numbers differ") == [3]
    assert members(found, "overlap of 0.5") == [0, 2, 3]
    # Of the pairs of a low label, the cars alone share a content word.
    assert members(found, "content word in common, of labels up to 1") == [0]
    assert members(found, "fewer than 12 words") == [0, 1, 2, 3]
    assert members(found, "300 characters") == []
    assert not [group for group in found.groups if "pieces" in group.title]


def test_content_words_count_for_every_label_where_labels_are_binary() -> None:
    found = make("quora", [1, 0, 1, 0], [0, 0, 1, 1])
    assert members(found, "content word in common") == [0, 2, 3]


def test_pieces_and_length_have_their_thresholds() -> None:
    background = Background(num_pieces=lambda word: 3 if word == "moon" else 1)
    found = make("sts", [3, 1, 2, 4], [1.0, 0.0, 3.0, 4.0], background=background)
    assert members(found, "a word of 3 pieces") == [1]
    short = PairErrors(found.outcomes, long_pair=35)
    assert [sum(map(len, pair)) >= 35 for pair in TEXTS] == [True, False, False, False]
    assert members(short, "35 characters") == [0]
    titles = [each.title for each in short.bins["Length in characters"]]
    assert titles == ["0 to 5", "6 to 11", "12 to 22", "23 to 34", "35 or more"]


def test_every_pair_is_in_one_bin_of_each_kind() -> None:
    found = make("sts", [3, 1, 2, 4], [1.0, 0.0, 3.0, 4.0])
    for bins in found.bins.values():
        assert np.sum([each.members for each in bins], axis=0).tolist() == [1] * 4


def long_pairs(
    num_short: int, num_over: int, num_under: int
) -> tuple[PairErrors, Sequence[tuple[str, str]]]:
    random = np.random.default_rng(0)
    count = num_short + num_over + num_under
    labels = random.integers(0, 6, size=count).astype(float)
    errors = random.choice([-0.5, 0.5], size=count)
    errors[num_short:] = [1.0] * num_over + [-1.0] * num_under
    texts = [("a dog sleeps here", "a cat runs away")] * num_short
    texts += [("word " * 40, "thing " * 30)] * (num_over + num_under)
    return make("sts", labels + errors, labels, texts), texts


def test_a_length_effect_is_tested_by_signs() -> None:
    found, _ = long_pairs(100, 9, 4)  # what Benton counted
    cells = row(drawn(score_blocks(found, 2)), "300 or more")
    assert cells == ["300 or more", "13", "+0.38 ± 0.27", "9", "4", "0.267", "within noise"]
    found, _ = long_pairs(100, 12, 1)
    assert row(drawn(score_blocks(found, 2)), "300 or more")[-2:] == ["0.003", "higher"]
    found, _ = long_pairs(100, 4, 0)
    assert row(drawn(score_blocks(found, 2)), "300 or more")[-1] == "too few to tell"


def test_an_overlap_effect_is_found_at_equal_label_and_not_credited_to_length() -> None:
    random = np.random.default_rng(1)
    pool = ["car", "dog", "house", "moon", "river", "stone", "tree", "wall", "wind", "field"]
    pool += ["bread", "chair", "lamp", "shirt"]
    texts, overlaps = [], []
    for _ in range(400):
        shared, size = int(random.integers(0, 5)), int(random.integers(5, 8))
        words = random.permutation(pool)[: 2 * size - shared]
        first = words[:size]
        second = [*words[:shared], *words[size:]]
        texts.append((" ".join(first), " ".join(second)))
        overlaps.append(shared / (2 * size - shared))
    labels = np.clip(5 * np.array(overlaps) + random.normal(1, 1, size=400), 0, 5)
    errors = 2 * np.array(overlaps) - 0.4 * labels + random.normal(0, 0.2, size=400)
    found = make("sts", labels + errors, labels, texts)
    assert found.features["jaccard"] == pytest.approx(overlaps)
    slopes = found.slopes()
    _, equal, alone = slopes["0.1 of overlap"]
    assert equal.value == pytest.approx(0.2, abs=4 * equal.error)
    assert alone.value == pytest.approx(0.2, abs=4 * alone.error)
    assert alone.error < 0.05
    length = slopes["100 characters"][-1]
    assert abs(length.value) < 3 * length.error
    # Without the label, its own pull hides the overlap's.
    assert slopes["0.1 of overlap"][0].value < 0.1


def test_features_that_never_vary_have_no_slope() -> None:
    texts = [(f"a dog {word}", "a dog") for word in ("runs", "eats", "sits", "naps")]
    found = make("sts", [3.0, 1.0, 2.0, 4.0], [1.0, 0.0, 3.0, 4.0], texts)
    assert found.slopes() == {}
    varied = make("sts", [3.0, 1.0, 2.0, 4.0], [1.0, 0.0, 3.0, 4.0])
    assert next(iter(varied.slopes())) == "100 characters"


def test_false_positives_of_high_overlap_are_counted() -> None:
    near = ("how do i bake bread", "how do i bake cakes")
    far = ("where is the moon", "who sold that horse")
    texts = [near] * 20 + [far] * 30
    labels = [0] * 15 + [1] * 5 + [0] * 25 + [1] * 5
    predictions = [1] * 12 + [0] * 3 + [1] * 4 + [0] + [0] * 24 + [1] + [0] * 3 + [1] * 2
    found = make("quora", predictions, labels, texts)
    (group,) = [group for group in found.groups if group.title == "overlap of 0.5 or more"]
    positives = found.rate_contrast(group, 0)
    assert (positives.num_hits, positives.count) == (12, 15)
    assert (positives.num_others, positives.other_count) == (1, 25)
    assert positives.verdict is Verdict.HIGHER
    negatives = found.rate_contrast(group, 1)
    assert (negatives.num_hits, negatives.count) == (1, 5)
    assert (negatives.num_others, negatives.other_count) == (3, 5)
    assert negatives.verdict is Verdict.NOISE
    lines = drawn(binary_blocks(found, 3))
    cells = row(lines, "overlap of 0.5 or more")
    assert cells[1] == "15"
    assert cells[2].startswith("0.800")
    assert cells[5] == "higher"
    assert "<summary>False positives of the highest overlap: 3 of 13</summary>" in lines
    assert "<summary>False negatives of the lowest overlap: 3 of 4</summary>" in lines


def test_the_worst_are_shown_first_with_their_texts() -> None:
    found = make("sts", [3.0, 1.0, 2.0, 4.0], [1.0, 0.0, 3.0, 4.0])
    text = "\n".join(drawn(score_blocks(found, 2)))
    block = re.search(r"All pairs: 2 of 4</summary>\n\n(.*?)\n\n</details>", text, re.DOTALL)
    assert block is not None
    assert block.group(1).splitlines() == [
        "    predicted 3.00, label 1.00, id id0",
        "        a red car stopped",
        "        a blue car stopped",
        "    predicted 1.00, label 0.00, id id1",
        "        a dog sleeps",
        "        the moon is bright",
    ]


def test_errors_stand_beside_those_of_the_best_constant() -> None:
    lines = drawn(score_blocks(make("sts", [3.0, 1.0, 2.0, 4.0], [1.0, 0.0, 3.0, 4.0]), 1))
    # Errors 2, 1, -1, 0; labels off their median, 2, by 1, 2, 1, 2, and with a variance of 2.5.
    assert row(lines, "mean absolute error")[1:] == ["1.000", "1.500"]
    assert row(lines, "root mean square error")[1:] == ["1.225", "1.581"]


def test_a_single_pair_has_nothing_to_compare() -> None:
    found = make("sts", [3.0], [1.0], TEXTS[:1])
    tables = [block for block in score_blocks(found, 1) if isinstance(block, Table)]
    verdicts = {
        cell for table in tables for row in table.rows for cell in row if isinstance(cell, Verdict)
    }
    assert verdicts == {Verdict.TOO_FEW}
    everything = Group("all", np.array([True]))
    assert found.mean_contrast(everything).rest.text() == "-"
