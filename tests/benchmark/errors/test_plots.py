"""The plots against the numbers that they must show, read back from the drawn figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.multitask_bert.data.files import Example
from benchmarks.multitask_bert.errors.features import Background
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.errors.pairs import PairErrors
from benchmarks.multitask_bert.errors.plots import draw_binary, draw_classes, draw_scores, save
from benchmarks.multitask_bert.errors.sentences import SentenceErrors, confusion_of
from benchmarks.multitask_bert.page.plot_style import STYLE
from benchmarks.multitask_bert.tasks import TASKS

NOUNS = ("car", "dog", "house", "moon", "river", "stone", "tree", "wall")


def make(task: str, count: int = 120) -> Outcomes:
    random = np.random.default_rng(0)
    kind = TASKS[task]
    labels = random.integers(kind.label_min, kind.label_max + 1, size=count).astype(float)
    predictions = np.where(random.random(count) < 0.6, labels, random.permutation(labels))
    if kind.kind == "score":
        predictions = labels + random.normal(size=count)
    texts = [" ".join(random.choice(NOUNS, size=6)) for _ in range(2 * count)]
    width = 2 if kind.is_pair else 1
    examples = tuple(
        Example(f"id{i}", tuple(texts[width * i : width * (i + 1)]), labels[i])
        for i in range(count)
    )
    return Outcomes(kind, examples, predictions, labels, Background(seen=frozenset(NOUNS[:-2])))


def assert_drawn(values: object, expected: object) -> None:
    assert np.allclose(
        np.asarray(values, dtype=float), np.asarray(expected, dtype=float), equal_nan=True
    )


def test_scores_and_groups_are_drawn_where_they_are() -> None:
    found = PairErrors(make("sts"))
    figure = draw_scores(found)
    scores, length, overlap, plain, equal = figure.get_axes()
    drawn = scores.collections[0].get_offsets()
    pairs = np.column_stack([found.outcomes.labels, found.outcomes.predictions])
    assert np.array_equal(drawn, pairs)
    drawn = length.collections[0].get_offsets()
    assert np.array_equal(drawn[:, 0], found.features["num_characters"])
    assert np.array_equal(drawn[:, 1], found.outcomes.errors)
    means = overlap.containers[0].lines[0].get_ydata()
    bins = found.bins["Word overlap (Jaccard)"]
    expected = [
        found.outcomes.errors[each.members].mean() if each.members.any() else np.nan
        for each in bins
    ]
    assert_drawn(means, expected)
    contrasts = [found.mean_contrast(group) for group in found.groups]
    for axis, values in (
        (plain, [contrast.plain.value for contrast in contrasts]),
        (equal, [contrast.at_equal_label.value for contrast in contrasts]),
    ):
        dots = [container.lines[0].get_xdata()[0] for container in axis.containers]
        assert_drawn(dots, values)
    labels = [label.get_text() for label in plain.get_yticklabels()]
    assert labels[0] == f"{found.groups[0].title} ({found.groups[0].members.sum()})"


def test_rates_are_drawn_where_they_are() -> None:
    found = PairErrors(make("quora"))
    figure = draw_binary(found)
    panels = figure.get_axes()
    assert [axis.get_title() for axis in panels[:3]] == list(found.bins)
    for axis, bins in zip(panels, found.bins.values(), strict=False):
        for label, container in enumerate(axis.containers):
            shares = [found.rate_contrast(each, label).group.value for each in bins]
            assert_drawn(container.lines[0].get_ydata(), shares)
    for axis, label in zip(panels[3:], (0, 1), strict=True):
        dots = [container.lines[0].get_xdata()[0] for container in axis.containers]
        values = [found.rate_contrast(group, label).plain.value for group in found.groups]
        assert_drawn(dots, values)


def test_confusions_and_shares_are_drawn_where_they_are() -> None:
    found = SentenceErrors(make("sst"))
    figure = draw_classes(found)
    matrix, shares, rates, accuracy, severe = figure.get_axes()
    confusion = confusion_of(found.outcomes)
    drawn = [text.get_text().split("\n")[0] for text in matrix.texts]
    assert drawn == [str(count) for count in confusion.counts.flat]
    recall, precision = (c for c in rates.containers if hasattr(c, "patches"))
    assert [bar.get_height() for bar in recall] == pytest.approx(
        list(confusion.hits / confusion.num_labels)
    )
    assert [bar.get_height() for bar in precision] == pytest.approx(
        list(confusion.hits / confusion.num_predictions)
    )
    of_labels, of_predictions = (c for c in shares.containers if hasattr(c, "patches"))
    assert sum(bar.get_height() for bar in of_labels) == pytest.approx(1.0)
    assert sum(bar.get_height() for bar in of_predictions) == pytest.approx(1.0)
    assert "Accuracy" in accuracy.get_title()
    assert "3 classes or more" in severe.get_title()


@pytest.mark.parametrize(
    ("task", "draw", "analysis"),
    [
        ("sts", draw_scores, PairErrors),
        ("quora", draw_binary, PairErrors),
        ("sst", draw_classes, SentenceErrors),
        ("cfimdb", draw_classes, SentenceErrors),
    ],
)
def test_a_plot_has_content_in_every_quarter(
    tmp_path: Path, task: str, draw: object, analysis: type
) -> None:
    import matplotlib
    from matplotlib.image import imread

    assert callable(draw)
    figures = []
    path = tmp_path / "plots" / "a.svg"
    save(lambda: figures.append(draw(analysis(make(task)))) or figures[0], path, "a title")
    assert "a title" in path.read_text(encoding="utf-8")
    with matplotlib.rc_context(dict(STYLE)):
        figures[0].savefig(tmp_path / "a.png", dpi=120)
    image = imread(tmp_path / "a.png")[..., :3]
    assert image.shape[0] > 900
    assert image.shape[1] > 1400
    for rows in np.array_split(image[::2, ::2], 2, axis=0):
        for quarter in np.array_split(rows, 2, axis=1):
            assert (np.ptp(quarter, axis=-1) > 0.3).any()  # neither grey nor text
            assert (quarter < 0.9).any(axis=-1).mean() > 0.01


def test_a_single_example_can_be_drawn(tmp_path: Path) -> None:
    save(partial(draw_scores, PairErrors(make("sts", 1))), tmp_path / "a.svg", "few")
    save(partial(draw_binary, PairErrors(make("quora", 1))), tmp_path / "b.svg", "few")
    save(partial(draw_classes, SentenceErrors(make("sst", 1))), tmp_path / "c.svg", "few")
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "b.svg", "c.svg"}
