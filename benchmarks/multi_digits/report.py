"""The page of a study: the answer, a table for each setting, and the trade-off of the tasks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.multi_digits.digits import TASKS
from benchmarks.multi_digits.study import BASELINE, Setting, best_rates, is_tuning, setting
from benchmarks.multi_digits.trial import Outcome
from benchmarks.multitask_bert.intervals import Interval, interval
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.page.document import (
    Block,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
    code,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.page.plot_style import DPI, STYLE, grid, line_style
from benchmarks.multitask_bert.significance import Verdict, mean_estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

_MARKERS = "osD^vP*X"
_WORDS = {
    Verdict.HIGHER: "better",
    Verdict.LOWER: "worse",
    Verdict.NOISE: "not decided",
    Verdict.TOO_FEW: "too few seeds",
}


@dataclass(frozen=True)
class Row:
    """The outcomes of one method in one setting, over the reported seeds.

    Args:
        method: its name.
        outcomes: by seed.
        lr: the learning rate that was chosen.
        paired: mean accuracy less the loss sum's, seeds as pairs; ``None`` for the loss sum.
        unpaired: the same, seeds as strangers.
        slowness: seconds of a training, in those of the loss sum: median over the seeds.
    """

    method: str
    outcomes: dict[int, Outcome]
    lr: float
    paired: Interval | None
    unpaired: Interval | None
    slowness: float

    @property
    def title(self) -> str:
        return METHODS[self.method].title

    def accuracy(self, task: int) -> list[float]:
        return [outcome.accuracy[task] for outcome in self.outcomes.values()]


@dataclass(frozen=True)
class Section:
    """The methods in one setting, best first."""

    num_channels: int
    noise: float
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.num_channels} channels, {100 * self.noise:.0f} % random labels"

    @property
    def num_seeds(self) -> str:
        """Says how many seeds the methods have."""
        counts = sorted({len(row.outcomes) for row in self.rows})
        return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def sections(outcomes: Iterable[Outcome]) -> list[Section]:
    """Sorts the outcomes of the reported seeds at the chosen learning rates.

    Raises:
        ValueError: a setting has not the loss sum that its methods are compared with.
    """
    outcomes = list(outcomes)
    best = best_rates(outcomes)
    found: dict[tuple[int, float], dict[str, dict[int, Outcome]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for outcome in outcomes:
        trial = outcome.trial
        if not is_tuning(trial) and trial.lr == best.get(setting(trial)):
            found[trial.num_channels, trial.noise][trial.method][trial.seed] = outcome
    return [
        Section(*key, tuple(sorted(_rows(by_method, best), key=_rank)))
        for key, by_method in sorted(found.items())
    ]


def _rows(by_method: dict[str, dict[int, Outcome]], best: dict[Setting, float]) -> Iterator[Row]:
    if BASELINE not in by_method:
        raise ValueError(
            f"methods: must include {BASELINE}, which the others are compared with, got "
            f"{', '.join(by_method)}; run it too"
        )
    baseline = by_method[BASELINE]
    for method, by_seed in by_method.items():
        lr = best[setting(next(iter(by_seed.values())).trial)]
        shared = sorted(by_seed.keys() & baseline.keys())
        slowness = float(
            np.median([by_seed[s].seconds / baseline[s].seconds for s in shared] or [math.nan])
        )
        paired = unpaired = None
        if method != BASELINE:
            paired = _difference(
                [by_seed[s].mean_accuracy - baseline[s].mean_accuracy for s in shared]
            )
            unpaired = _difference(
                [o.mean_accuracy for o in by_seed.values()],
                [o.mean_accuracy for o in baseline.values()],
            )
        yield Row(method, by_seed, lr, paired, unpaired, slowness)


def _difference(values: Sequence[float], others: Sequence[float] | None = None) -> Interval:
    """Gives a mean, or the difference of two means of independent values, with its interval."""
    groups = [values] if others is None else [values, others]
    means = [mean_estimate(group) for group in groups]
    value = means[0].value - (means[1].value if others is not None else 0.0)
    return interval(
        value, *((m.error, len(group) - 1) for m, group in zip(means, groups, strict=True))
    )


def _rank(row: Row) -> float:
    return -float(np.mean([outcome.mean_accuracy for outcome in row.outcomes.values()]))


def summary(found: Sequence[Section]) -> list[str]:
    """Says in a few lines what the study decided."""
    lines = []
    for section in found:
        judged = [(row, row.paired) for row in section.rows if row.paired is not None]
        words = {
            verdict: [row.title for row, paired in judged if paired.verdict is verdict]
            for verdict in Verdict
        }
        lines.append(f"{section.title}, {section.num_seeds}, against the loss sum:")
        lines += [
            f"  {_WORDS[verdict]}: {', '.join(titles)}"
            for verdict, titles in words.items()
            if titles
        ]
        for row, paired in judged:
            if row.method == "pcgrad":
                lines.append(f"  PCGrad: {paired.text()}, {_WORDS[paired.verdict]}")
    return lines


def write(found: Sequence[Section], folder: Path, described: str) -> list[Path]:
    """Writes `report.md`, `report.html` and their figure; returns the paths."""
    figure = _draw(found)
    path = folder / "trade-off.png"
    figure.savefig(path, dpi=DPI)
    blocks = list(_blocks(found, path, described))
    pages = [folder / "report.md", folder / "report.html"]
    pages[0].write_text(to_markdown(blocks), encoding="utf-8")
    pages[1].write_text(to_html(blocks, "Two overlaid digits", folder), encoding="utf-8")
    return [*pages, path]


def _blocks(found: Sequence[Section], figure: Path, described: str) -> Iterator[Block]:
    yield Heading("Two overlaid digits", 1)
    yield Paragraph(
        "A small convolutional network names both of two overlaid digits, a task each. Runs of a "
        "seed share their first weights, their images and their batches; every method takes Adam "
        "at the best of three learning rates, chosen on seeds that are not shown. Accuracy is on "
        "images of single digits that no training has seen."
    )
    for section in found:
        first, *others = summary([section])
        yield Paragraph(first)
        yield Items(tuple(line.strip() for line in others))
    yield Figure("The trade-off of the two tasks", Path(figure.name), "Accuracy of one task "
                 "against the other's, mean and standard error of every method.")  # fmt: skip
    for section in found:
        yield Heading(section.title)
        yield Table.of(_HEADER, (_cells(row) for row in section.rows))
    yield Heading("How to read this")
    yield Paragraph(
        "Differences are in mean accuracy over both tasks, less the loss sum's, with the interval "
        "of 95 %. Paired: Student's, over the differences of the seeds that both have, which "
        "assumes that these are drawn alike. Unpaired: takes the runs for strangers. Decided "
        "means that zero lies outside the paired interval; of twenty methods that do nothing, one "
        "is decided by chance. Times are medians of ratios to the loss sum of the same seed, two "
        "processes at a time: read them as rough."
    )
    yield Paragraph(("Machine: ", code(described)))


_HEADER = (
    *("", "seeds", "lr", *TASKS, "mean", "paired difference", "", "unpaired"),
    *("conflicts", "time"),
)


def _cells(row: Row) -> Iterator[str]:
    yield row.title
    yield str(len(row.outcomes))
    yield f"{row.lr:g}"
    for task in range(len(TASKS)):
        yield f"{np.mean(row.accuracy(task)):.3f}"
    yield mean_estimate([o.mean_accuracy for o in row.outcomes.values()]).text("{:.3f}")
    yield row.paired.text() if row.paired else "-"
    yield _WORDS[row.paired.verdict] if row.paired else ""
    yield row.unpaired.text() if row.unpaired else "-"
    rates = [o.conflicts for o in row.outcomes.values() if o.conflicts is not None]
    yield f"{100 * np.mean(rates):.0f} %" if rates else "-"
    yield f"{row.slowness:.2f} ×"


def _draw(found: Sequence[Section]) -> MatplotlibFigure:
    import matplotlib as mpl

    with mpl.rc_context(dict(STYLE)):
        figure, axes = grid(len(found), size=(5.5, 4.6), max_columns=2)
        names = list(METHODS)
        for axis, section in zip(axes, found, strict=True):
            for row in section.rows:
                index = names.index(row.method)
                x, y = (mean_estimate(row.accuracy(task)) for task in range(2))
                axis.errorbar(
                    x.value, y.value, y.error, x.error,
                    marker=_MARKERS[index % len(_MARKERS)], linewidth=1, label=row.title,
                    color=line_style(index)["color"],
                )  # fmt: skip
            axis.set(title=section.title, xlabel=f"accuracy, {TASKS[0]}",
                     ylabel=f"accuracy, {TASKS[1]}")  # fmt: skip
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
