"""Where the classes of single sentences go wrong: confusions, negation, idioms, neutral ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert.errors.confusion import Confusion
from benchmarks.multitask_bert.errors.contrasts import (
    MEAN_HEADER,
    RATE_HEADER,
    Flags,
    Group,
    MeanContrast,
    RateContrast,
)
from benchmarks.multitask_bert.errors.features import sentence_features
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.errors.quotes import quote
from benchmarks.multitask_bert.page.document import Block, Heading, Paragraph, Table
from benchmarks.multitask_bert.significance import judge_exact, share_estimate, sign_test

SHORT_SENTENCE = 10  # words
LONG_SENTENCE = 25  # words
MANY_PIECES = 3  # of one word
SEVERE = 3  # classes between prediction and label


@dataclass(frozen=True)
class SentenceErrors:
    """The outcomes of a task of single sentences with what is measured on each sentence."""

    outcomes: Outcomes

    @cached_property
    def features(self) -> Mapping[str, NDArray[Any]]:
        """Each feature by its name, a value an example."""
        background = self.outcomes.background
        found = [sentence_features(e.texts[0], background) for e in self.outcomes.examples]
        return {name: np.array([vars(f)[name] for f in found]) for name in vars(found[0])}

    @cached_property
    def groups(self) -> Sequence[Group]:
        """The groups that may be harder than the rest; they overlap."""
        f = self.features
        found = [
            Group("negation cue", f["is_negated"]),
            Group("contrast (but, although, ...)", f["is_contrasting"]),
            Group("idiom", f["has_idiom"]),
            Group("words of praise and blame in balance", f["polarity"] == 0),
            Group(f"fewer than {SHORT_SENTENCE} words", f["num_words"] < SHORT_SENTENCE),
            Group(f"{LONG_SENTENCE} words or more", f["num_words"] >= LONG_SENTENCE),
            Group("a word unseen in training", f["num_unseen"] > 0),
        ]
        if self.outcomes.background.num_pieces is not None:
            title = f"a word of {MANY_PIECES} pieces or more"
            found.append(Group(title, f["max_pieces"] >= MANY_PIECES))
        return found

    @property
    def neutral(self) -> int | None:
        """The class in the middle; None where there is none."""
        middle, is_between = divmod(self.outcomes.num_classes - 1, 2)
        return None if is_between else middle

    @property
    def at_an_end(self) -> Flags:
        """Where the first or the last class is predicted."""
        predictions = self.outcomes.predictions
        return np.asarray((predictions == 0) | (predictions == self.outcomes.num_classes - 1))

    def hit_contrast(self, group: Group) -> RateContrast:
        """Compare accuracies."""
        return RateContrast.of(self.outcomes.errors == 0, *group.split())

    def severe_contrast(self, group: Group) -> RateContrast:
        """Compare the shares of errors that are far off."""
        return RateContrast.of(np.abs(self.outcomes.errors) >= SEVERE, *group.split())

    def mean_contrast(self, group: Group) -> MeanContrast:
        """Compare signed errors."""
        return MeanContrast(self.outcomes.errors, self.outcomes.labels, *group.split())


def confusion_of(outcomes: Outcomes) -> Confusion:
    """Count labels and predictions of classes, or of the two answers of a binary task."""
    return Confusion.of(outcomes.predictions, outcomes.labels, outcomes.num_classes)


def confusion_blocks(outcomes: Outcomes) -> Iterator[Block]:
    """Write about labels against predictions, whatever the texts are."""
    confusion = confusion_of(outcomes)
    measures: dict[str, Callable[[Confusion], float]] = {
        "accuracy": lambda c: c.accuracy,
        "macro F1": lambda c: c.macro_f1,
    }
    if outcomes.num_classes > 2:
        measures["at most one class off"] = lambda c: c.off_by_one
    yield Table.of(
        ["", "run", "best constant class"],
        [
            [title, f"{measure(confusion):.3f}", f"{confusion.best_constant(measure):.3f}"]
            for title, measure in measures.items()
        ],
    )
    classes = range(len(confusion.counts))
    yield Table.of(
        ["label", *(f"predicted {c}" for c in classes), "all"],
        [[str(c), *map(str, confusion.counts[c]), str(confusion.num_labels[c])] for c in classes],
    )
    header = ["class", "share of labels", "share of predictions", "p", "predicted"]
    header += ["recall", "precision", "F1"]
    yield Table.of(header, [_class_row(confusion, c) for c in classes])


def _class_row(confusion: Confusion, c: int) -> list[str]:
    total = int(confusion.counts.sum())
    hits, labels = int(confusion.hits[c]), int(confusion.num_labels[c])
    predictions = int(confusion.num_predictions[c])
    # McNemar's test in its exact form: hits cannot tell one share from the other.
    test = sign_test(predictions - hits, labels - hits)
    return [
        str(c),
        f"{labels / total:.3f}",
        f"{predictions / total:.3f}",
        test.text,
        judge_exact(test, predictions - labels),
        f"{share_estimate(hits, labels).text('{:.3f}')} of {labels}",
        f"{share_estimate(hits, predictions).text('{:.3f}')} of {predictions}",
        f"{confusion.f1[c]:.3f}" if np.isfinite(confusion.f1[c]) else "-",
    ]


def sentence_blocks(found: SentenceErrors, num_worst: int) -> Iterator[Block]:
    """Write about what the sentences that go wrong have in common."""
    outcomes = found.outcomes
    yield Heading("Accuracy of groups against the rest", 3)
    hits = [found.hit_contrast(group).cells(group.title) for group in found.groups]
    yield Table.of(RATE_HEADER, hits)
    wrong = outcomes.errors != 0
    shown = {"wrong": wrong, **{f"wrong, {g.title}": wrong & g.members for g in found.groups}}
    if found.neutral is not None:
        yield from _about_severe(found)
        yield from _about_cues(found, found.neutral)
        yield from _about_neutral(found, found.neutral)
        is_neutral = outcomes.labels == found.neutral
        shown["neutral, predicted at an end"] = is_neutral & found.at_an_end
    yield Heading("Worst examples", 3)
    distance = np.abs(outcomes.errors)
    for title, flags in shown.items():
        yield from quote(title, outcomes.largest(distance, flags, num_worst), int(flags.sum()))


def _about_severe(found: SentenceErrors) -> Iterator[Block]:
    yield Heading(f"Share of errors of {SEVERE} classes or more", 3)
    rows = [found.severe_contrast(group).cells(group.title) for group in found.groups]
    yield Table.of(RATE_HEADER, rows)


def _about_cues(found: SentenceErrors, neutral: int) -> Iterator[Block]:
    yield Heading("Signed error by sentiment and cue", 3)
    groups = [
        Group(f"{sentiment} sentences: {cue}", found.features[feature], among)
        for sentiment, among in (
            ("positive", found.outcomes.labels > neutral),
            ("negative", found.outcomes.labels < neutral),
        )
        for cue, feature in (("negation cue", "is_negated"), ("idiom", "has_idiom"))
    ]
    yield Table.of(MEAN_HEADER, [found.mean_contrast(group).cells(group.title) for group in groups])


def _about_neutral(found: SentenceErrors, neutral: int) -> Iterator[Block]:
    yield Heading("Neutral sentences", 3)
    predictions, polarity = found.outcomes.predictions, found.features["polarity"]
    is_neutral = found.outcomes.labels == neutral
    at_an_end = found.at_an_end
    count = int(is_neutral.sum())
    tally = {
        **{f"predicted {c}": predictions == c for c in range(found.outcomes.num_classes)},
        "predicted at an end": at_an_end,
    }
    rows = []
    for title, flags in tally.items():
        hits = int((flags & is_neutral).sum())
        rows.append([title, str(hits), share_estimate(hits, count).text("{:.3f}")])
    yield Table.of([f"{count} neutral sentences", "number", "share"], rows)
    yield Paragraph("With words of praise or blame, against neutral sentences where they balance:")
    groups = [
        Group(f"more words of {kind}", members, is_neutral & (members | (polarity == 0)))
        for kind, members in (("praise", polarity > 0), ("blame", polarity < 0))
    ]
    yield Table.of(MEAN_HEADER, [found.mean_contrast(group).cells(group.title) for group in groups])
    ends = Group("predicted at an end: more praise or more blame", polarity != 0, is_neutral)
    yield Table.of(RATE_HEADER, [RateContrast.of(at_an_end, *ends.split()).cells(ends.title)])
