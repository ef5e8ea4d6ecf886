"""The plots of an error analysis: one figure for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.multitask_bert.errors.confusion import Confusion
from benchmarks.multitask_bert.errors.contrasts import Group
from benchmarks.multitask_bert.errors.pairs import PairErrors
from benchmarks.multitask_bert.errors.sentences import SEVERE, SentenceErrors, confusion_of
from benchmarks.multitask_bert.page.plot_style import (
    COLOURS,
    INK,
    PALE,
    QUIET,
    REFERENCE_LINE,
    STYLE,
    write_svg,
)
from benchmarks.multitask_bert.significance import (
    NUM_ERRORS,
    Estimate,
    Verdict,
    judge,
    mean_estimate,
    share_estimate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE, ORANGE, *_ = COLOURS
VERDICT_COLOURS = {Verdict.TOO_FEW: PALE, Verdict.NOISE: BLUE}  # and orange for a difference
CAPTION = (
    f"Bars: ± {NUM_ERRORS:g} standard errors. Groups, in brackets their number of examples: by the "
    "tests of the tables, orange differs from the rest, blue is within noise, grey too few to tell."
)


def save(draw: Callable[[], Figure], path: Path, title: str) -> None:
    """Draw a figure in the style of the report and write it."""
    import matplotlib

    with matplotlib.rc_context(dict(STYLE)):
        figure = draw()
        figure.suptitle(title, fontweight="bold")
        figure.supxlabel(CAPTION, fontsize=9, color=QUIET)
        write_svg(figure, path)


def draw_scores(found: PairErrors) -> Figure:
    """Draw scores against labels, signed errors by length and overlap, and groups."""
    figure, (scores, length, overlap), (plain, equal) = _panels(3, 2)
    outcomes, task = found.outcomes, found.outcomes.task
    dots: Mapping[str, Any] = {
        "s": 9,
        "alpha": 0.35,
        "color": BLUE,
        "linewidth": 0,
        "rasterized": True,
    }
    scores.scatter(outcomes.labels, outcomes.predictions, **dots)
    ends = (task.label_min, task.label_max)
    scores.plot(ends, ends, label="prediction = label", **REFERENCE_LINE)
    scores.set(title="Scores", xlabel="label", ylabel="prediction")
    scores.legend(loc="upper left")
    characters = found.features["num_characters"]
    length.scatter(characters, outcomes.errors, **dots)
    length.axhline(0, **REFERENCE_LINE)
    length.set(title="Length", xlabel="characters of both texts", ylabel="signed error")
    if found.long_pair <= characters.max():
        length.axvline(found.long_pair, color=ORANGE, linestyle="--", label="long from here on")
        length.legend(loc="upper right")
    bins = found.bins["Word overlap (Jaccard)"]
    _draw_bins(overlap, [mean_estimate(outcomes.errors[each.members]) for each in bins], BLUE)
    _label_bins(overlap, bins, [str(each.members.sum()) for each in bins])
    overlap.axhline(0, **REFERENCE_LINE)
    overlap.set(title="Word overlap", xlabel="Jaccard, number of pairs", ylabel="signed error")
    contrasts = [found.mean_contrast(group) for group in found.groups]
    _label_groups(plain, found.groups, [str(contrast.counts[0]) for contrast in contrasts])
    verdicts = [judge(contrast.plain, *contrast.counts) for contrast in contrasts]
    _draw_groups(plain, [contrast.plain for contrast in contrasts], verdicts)
    plain.set(title="Groups against the rest", xlabel="difference in signed error")
    verdicts = [contrast.verdict for contrast in contrasts]
    _draw_groups(equal, [contrast.at_equal_label for contrast in contrasts], verdicts)
    equal.set(title="The same at equal label", xlabel="difference in signed error")
    return figure


def draw_binary(found: PairErrors) -> Figure:
    """Draw the rates of false positives and negatives by overlap, run, length and group."""
    figure, above, below = _panels(3, 2)
    sides = {0: ("false positives of label 0", ORANGE), 1: ("false negatives of label 1", BLUE)}
    for axis, (title, bins) in zip(above, found.bins.items(), strict=True):
        counts = []
        for label, (name, colour) in sides.items():
            rates = [found.rate_contrast(each, label) for each in bins]
            _draw_bins(axis, [r.group for r in rates], colour, 0.2 * label - 0.1, name)
            counts.append([rate.count for rate in rates])
        _label_bins(axis, bins, [f"{n} / {m}" for n, m in zip(*counts, strict=True)])
        axis.set(title=title, ylabel="share", xlabel="numbers of label 0 / label 1")
        axis.set_ylim(-0.03, min(1.03, 1.3 * axis.get_ylim()[1]))
    above[0].legend(loc="upper left", fontsize=8.5)
    contrasts = [[found.rate_contrast(group, label) for group in found.groups] for label in sides]
    pairs = zip(*contrasts, strict=True)
    _label_groups(below[0], found.groups, [f"{a.count} / {b.count}" for a, b in pairs])
    for axis, rates, (name, _) in zip(below, contrasts, sides.values(), strict=True):
        _draw_groups(axis, [rate.plain for rate in rates], [rate.verdict for rate in rates])
        axis.set(title=f"{name.capitalize()}: groups", xlabel="difference in share from the rest")
    return figure


def draw_classes(found: SentenceErrors) -> Figure:
    """Draw the confusion matrix, shares, recall and precision by class, and groups."""
    figure, (matrix, shares, rates), (accuracy, severe) = _panels(3, 2)
    confusion = confusion_of(found.outcomes)
    _draw_confusion(matrix, confusion)
    hits, labels, predictions = confusion.hits, confusion.num_labels, confusion.num_predictions
    every = np.full_like(labels, confusion.counts.sum())
    _draw_shares(shares, {"of labels": (labels, every), "of predictions": (predictions, every)})
    shares.set_title("Share of each class")
    _draw_shares(rates, {"recall": (hits, labels), "precision": (hits, predictions)})
    rates.set_title("Recall and precision")
    panels = {
        "Accuracy": (accuracy, [found.hit_contrast(group) for group in found.groups]),
        f"Errors of {SEVERE} classes or more": (
            severe,
            [found.severe_contrast(group) for group in found.groups],
        ),
    }
    for title, (axis, contrasts) in panels.items():
        verdicts = [contrast.verdict for contrast in contrasts]
        _draw_groups(axis, [contrast.plain for contrast in contrasts], verdicts)
        axis.set(title=f"{title}: groups", xlabel="difference in share from the rest")
    counts = [str(found.hit_contrast(group).count) for group in found.groups]
    _label_groups(accuracy, found.groups, counts)
    return figure


def _panels(num_above: int, num_below: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Make two rows of panels; those below share the groups at their left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 8.6), layout="constrained")
    # Two grids, so that the long names of the groups push nothing above them aside.
    upper, lower = figure.subfigures(2, 1, squeeze=False).flat
    above = upper.subplots(1, num_above, squeeze=False)
    below = lower.subplots(1, num_below, squeeze=False, sharey=True)
    return figure, list(above.flat), list(below.flat)


def _draw_bins(
    axis: Axes,
    estimates: Sequence[Estimate],
    colour: str,
    shift: float = 0.0,
    label: str | None = None,
) -> None:
    axis.errorbar(
        np.arange(len(estimates)) + shift,
        [estimate.value for estimate in estimates],
        yerr=[NUM_ERRORS * estimate.error for estimate in estimates],
        fmt="o",
        markersize=5,
        color=colour,
        capsize=3,
        label=label,
    )


def _label_bins(axis: Axes, bins: Sequence[Group], counts: Sequence[str]) -> None:
    titles = [each.title.replace(" to ", "-").replace(" or more", "+") for each in bins]
    labels = [f"{title}\n{count}" for title, count in zip(titles, counts, strict=True)]
    axis.set_xticks(range(len(bins)), labels, fontsize=8)


def _draw_shares(
    axis: Axes, sides: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> None:
    """Draw two bars for each class: hits, as a share of a number of examples."""
    looks = zip(sides.items(), (PALE, BLUE), (-0.19, 0.19), strict=True)
    for (name, (hits, counts)), colour, shift in looks:
        shares = [share_estimate(int(h), int(n)) for h, n in zip(hits, counts, strict=True)]
        axis.bar(
            np.arange(len(shares)) + shift,
            [share.value for share in shares],
            width=0.36,
            yerr=[NUM_ERRORS * share.error for share in shares],
            color=colour,
            error_kw={"elinewidth": 1, "ecolor": INK},
            label=name,
        )
        axis.set_xticks(range(len(shares)))
    axis.set(xlabel="class", ylabel="share", ylim=(0, 1.2 * axis.get_ylim()[1]))
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper center", ncols=2)


def _draw_groups(axis: Axes, differences: Sequence[Estimate], verdicts: Sequence[Verdict]) -> None:
    """Draw the difference of each group from the rest, in a colour for its verdict."""
    for row, (found, verdict) in enumerate(zip(differences, verdicts, strict=True)):
        colour = VERDICT_COLOURS.get(verdict, ORANGE)
        reach = NUM_ERRORS * found.error
        axis.errorbar(found.value, row, xerr=reach, fmt="o", markersize=5, color=colour)
    axis.axvline(0, **REFERENCE_LINE)
    axis.set_ylim(len(differences) - 0.5, -0.5)


def _label_groups(axis: Axes, groups: Sequence[Group], counts: Sequence[str]) -> None:
    titles = [f"{group.title} ({count})" for group, count in zip(groups, counts, strict=True)]
    axis.set_yticks(range(len(groups)), titles)


def _draw_confusion(axis: Axes, confusion: Confusion) -> None:
    """Draw counts, coloured by their share of the label."""
    shares = confusion.counts / np.maximum(confusion.num_labels, 1)[:, None]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for label, prediction in np.ndindex(confusion.counts.shape):
        share = shares[label, prediction]
        axis.text(
            prediction,
            label,
            f"{confusion.counts[label, prediction]}\n{share:.0%}",
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if share > 0.6 else "black",
        )
    classes = range(len(confusion.counts))
    axis.set(title="Labels and predictions", xlabel="prediction", ylabel="label")
    axis.set(xticks=classes, yticks=classes)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
