"""Where the scores of sentence pairs go wrong: by length, overlap, negation, numbers and names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert.errors.contrasts import (
    MEAN_HEADER,
    Group,
    MeanContrast,
    RateContrast,
    bins,
)
from benchmarks.multitask_bert.errors.features import pair_features
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.errors.quotes import quote
from benchmarks.multitask_bert.page.document import Block, Heading, Table
from benchmarks.multitask_bert.significance import (
    Estimate,
    judge,
    judge_exact,
    mean_estimate,
    regression,
    sign_test,
)

LONG_PAIR = 300  # characters of both texts
SHORT_PAIR = 12  # words of both texts
HIGH_OVERLAP = 0.5  # Jaccard
LONG_RUN = 5  # words
MANY_PIECES = 3  # of one word
LOW_SCORE = 1.0
OVERLAP_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8)
RUN_EDGES = (0, 1, 2, 3, 5, 8)


@dataclass(frozen=True)
class PairErrors:
    """The outcomes of a task of pairs with what is measured on each pair."""

    outcomes: Outcomes
    long_pair: int = LONG_PAIR

    @cached_property
    def features(self) -> Mapping[str, NDArray[Any]]:
        """Each feature by its name, a value an example."""
        background = self.outcomes.background
        texts = (example.texts for example in self.outcomes.examples)
        found = [pair_features(first, second, background) for first, second in texts]
        return {name: np.array([vars(f)[name] for f in found]) for name in vars(found[0])}

    @cached_property
    def bins(self) -> Mapping[str, Sequence[Group]]:
        """The title of each way to sort all pairs, and its bins."""
        edges = [round(self.long_pair * share) for share in (0, 1 / 6, 1 / 3, 2 / 3, 1)]
        f = self.features
        return {
            "Length in characters": bins(f["num_characters"], edges),
            "Word overlap (Jaccard)": bins(f["jaccard"], OVERLAP_EDGES),
            "Longest run of words in common": bins(f["common_run"], RUN_EDGES),
        }

    @cached_property
    def groups(self) -> Sequence[Group]:
        """The groups that may be harder than the rest; they overlap."""
        f = self.features
        # Where scores are graded, a shared word misleads about pairs that have little in common.
        is_score = self.outcomes.task.kind == "score"
        low = self.outcomes.labels <= LOW_SCORE if is_score else None
        polysemy = "content word in common" + (
            f", of labels up to {LOW_SCORE:g}" if is_score else ""
        )
        found = [
            Group(f"{self.long_pair} characters or more", f["num_characters"] >= self.long_pair),
            Group(f"fewer than {SHORT_PAIR} words", f["num_words"] < SHORT_PAIR),
            Group(f"overlap of {HIGH_OVERLAP:g} or more", f["jaccard"] >= HIGH_OVERLAP),
            Group(f"{LONG_RUN} words or more in a row in common", f["common_run"] >= LONG_RUN),
            Group(polysemy, f["shares_content"], low),
            Group("one phrase replaced", f["replaces_phrase"]),
            Group("negation in exactly one text", f["negated_once"]),
            Group("subordinate clause in exactly one text", f["clauses_once"]),
            Group("numbers differ", f["numbers_differ"]),
            Group("names differ", f["names_differ"]),
            Group("a word unseen in training", f["num_unseen"] > 0),
        ]
        if self.outcomes.background.num_pieces is not None:
            title = f"a word of {MANY_PIECES} pieces or more"
            found.append(Group(title, f["max_pieces"] >= MANY_PIECES))
        return found

    def mean_contrast(self, group: Group) -> MeanContrast:
        """Compare signed errors."""
        return MeanContrast(self.outcomes.errors, self.outcomes.labels, *group.split())

    def rate_contrast(self, group: Group, label: int) -> RateContrast:
        """Compare the share of wrong answers among the pairs of a label."""
        has_label = self.outcomes.labels == label
        return RateContrast.of(self.outcomes.errors != 0, *group.split(has_label))

    def slopes(self) -> Mapping[str, Sequence[Estimate]]:
        """Regress the signed error on each feature, on it and the label, and on all of them."""
        f, labels, errors = self.features, self.outcomes.labels, self.outcomes.errors
        predictors = {
            "100 characters": f["num_characters"] / 100,
            "0.1 of overlap": f["jaccard"] * 10,
            "word of the longest common run": f["common_run"],
            "word unseen in training": f["num_unseen"],
        }
        # A feature that never varies would leave the slopes of all others unknown.
        varied = {title: values for title, values in predictors.items() if np.ptp(values) > 0}
        together = regression([*varied.values(), labels], errors)
        return {
            title: (regression([x], errors)[0], regression([x, labels], errors)[0], joint)
            for (title, x), joint in zip(varied.items(), together[:-1], strict=True)
        }


def score_blocks(found: PairErrors, num_worst: int) -> Iterator[Block]:
    """Write about the signed errors of scores."""
    outcomes = found.outcomes
    errors, labels = outcomes.errors, outcomes.labels
    absolute = (np.mean(np.abs(errors)), np.mean(np.abs(labels - np.median(labels))))
    root_mean_square = (np.sqrt(np.mean(errors**2)), np.std(labels))
    yield Table.of(
        ["", "run", "best constant score"],
        [
            ["mean absolute error", *(f"{value:.3f}" for value in absolute)],
            ["root mean square error", *(f"{value:.3f}" for value in root_mean_square)],
        ],
    )
    yield Table.of(
        ["", "predictions", "labels"],
        [
            ["mean", f"{outcomes.predictions.mean():.2f}", f"{labels.mean():.2f}"],
            ["standard deviation", f"{outcomes.predictions.std():.2f}", f"{labels.std():.2f}"],
        ],
    )
    everything = Group("all pairs", np.ones(len(outcomes), dtype=bool))
    header = ["pairs", "number", "signed error", "over", "under", "sign test p", "predicted"]
    yield Table.of(header, [_sign_row(errors, everything)])
    for title, sorted_pairs in found.bins.items():
        yield Heading(title, 3)
        yield Table.of(header, [_sign_row(errors, group) for group in sorted_pairs])
    yield Heading("Groups against the rest", 3)
    yield Table.of(
        MEAN_HEADER, [found.mean_contrast(group).cells(group.title) for group in found.groups]
    )
    yield Heading("Trends of the signed error", 3)
    yield Table.of(
        ["for each further", "slope", "at equal label", "all else equal", "predicted"],
        [
            [title, *(slope.text("{:+.3f}") for slope in slopes), judge(slopes[-1], len(outcomes))]
            for title, slopes in found.slopes().items()
        ],
    )
    yield Heading("Worst examples", 3)
    for group in (everything, *found.groups):
        inside, _ = group.split()
        worst = outcomes.largest(np.abs(errors), inside, num_worst)
        yield from quote(group.title, worst, int(inside.sum()))


def binary_blocks(found: PairErrors, num_worst: int) -> Iterator[Block]:
    """Write about false positives and false negatives."""
    header = ["pairs", "label 0", "false positives", "rest", "p", "rate"]
    header += ["label 1", "false negatives", "rest", "p", "rate"]
    for title, groups in {**found.bins, "Groups against the rest": found.groups}.items():
        yield Heading(title, 3)
        rows = []
        for group in groups:
            cells = [group.title]
            for contrast in (found.rate_contrast(group, label) for label in (0, 1)):
                shares = (contrast.group.text("{:.3f}"), contrast.rest.text("{:.3f}"))
                cells += [str(contrast.count), *shares, contrast.test.text, contrast.verdict]
            rows.append(cells)
        yield Table.of(header, rows)
    yield Heading("Worst examples", 3)
    outcomes, overlap = found.outcomes, found.features["jaccard"]
    positive, negative = outcomes.errors > 0, outcomes.errors < 0
    shown = {
        "false positives of the highest overlap": (overlap, positive),
        "false negatives of the lowest overlap": (-overlap, negative),
        **{f"false positives, {g.title}": (overlap, positive & g.members) for g in found.groups},
    }
    for title, (values, wrong) in shown.items():
        yield from quote(title, outcomes.largest(values, wrong, num_worst), int(wrong.sum()))


def _sign_row(errors: NDArray[Any], group: Group) -> list[str]:
    own = errors[group.members]
    over, under = int((own > 0).sum()), int((own < 0).sum())
    test = sign_test(over, under)
    return [
        group.title,
        str(own.size),
        mean_estimate(own).text(),
        str(over),
        str(under),
        test.text,
        judge_exact(test, over - under),
    ]
