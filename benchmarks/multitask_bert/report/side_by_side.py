"""Two recipes example by example: which of the dev examples one answers better than the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert.claims.examples import Predictions, read_predictions
from benchmarks.multitask_bert.claims.paired import Pairs
from benchmarks.multitask_bert.claims.twins import Contrast, contrasts
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.errors.quotes import quote
from benchmarks.multitask_bert.page.document import (
    Block,
    Heading,
    Items,
    Paragraph,
    Table,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
from benchmarks.multitask_bert.significance import ExactTest, Verdict, judge_exact, sign_test
from benchmarks.multitask_bert.tasks import TASKS

NUM_QUOTED = 5
TITLE = "Two recipes example by example"
HEADER = ("seed", "examples", "better", "worse", "as good", "p", "the first is")


@dataclass(frozen=True)
class Versus:
    """How well two rows answered the same dev examples of a task.

    Arguments:
        gains: By seed, how much better the first row's answer to each example is: of classes 1 for
            right instead of wrong, of scores the smaller absolute error.
    """

    task: str
    seeds: tuple[int, ...]
    ids: tuple[str, ...]  # N
    gains: NDArray[Any]  # [seeds, N]
    predictions: tuple[tuple[Predictions, Predictions], ...]

    @classmethod
    def of(cls, pairs: Pairs, task: str) -> Versus | None:
        """Join the predictions of pairs; None where those of a run are not on record."""
        found = [
            (read_predictions(mine, task), read_predictions(theirs, task))
            for mine, theirs in zip(pairs.first.runs, pairs.second.runs, strict=True)
        ]
        read = tuple((a, b) for a, b in found if a is not None and b is not None)
        if not read or len(read) < len(found) or any(a.ids != read[0][0].ids for a, _ in read):
            return None
        gains = [_losses(task, theirs) - _losses(task, mine) for mine, theirs in read]
        return cls(task, pairs.seeds, read[0][0].ids, np.array(gains), read)

    @cached_property
    def mean(self) -> NDArray[Any]:  # [N]
        return np.asarray(self.gains.mean(axis=0))

    @property
    def test(self) -> ExactTest:
        """Test on the examples whether the first is better more often than it is worse."""
        return _test(self.mean)

    @property
    def verdict(self) -> Verdict:
        return _verdict(self.mean)

    @property
    def text(self) -> str:
        """Give the counts over all seeds in a few words."""
        better, worse, _ = _counts(self.mean)
        title = TASKS[self.task].title
        return f"{title} {better} better, {worse} worse (p {self.test.text}: {_word(self.verdict)})"

    def table(self) -> Table:
        rows = [
            (str(seed), *_cells(gains)) for seed, gains in zip(self.seeds, self.gains, strict=True)
        ]
        if len(rows) > 1:
            rows.append(("all together", *_cells(self.mean)))
        return Table(HEADER, tuple(rows), num_references=int(len(self.seeds) > 1))

    def quotes(self, texts: dict[str, Sequence[str]]) -> Iterator[Block]:
        """Quote the examples that are gained and lost by most over the seeds."""
        for sign, title in ((1, "gained by the first"), (-1, "lost by the first")):
            order = np.argsort(-sign * self.mean, kind="stable")
            chosen = [i for i in order[:NUM_QUOTED] if sign * self.mean[i] > 0]
            lines = [
                (self._about(i), texts.get(self.ids[i], ("its text is not at hand",)))
                for i in chosen
            ]
            total = int((sign * self.mean > 0).sum())
            yield from quote(f"{TASKS[self.task].title}: {title}", lines, total)

    def _about(self, index: int) -> str:
        number = "{:.2f}" if TASKS[self.task].kind == "score" else "{:.0f}"
        sides = zip(*self.predictions, strict=True)
        first, second = (
            ", ".join(number.format(each.predictions[index]) for each in side) for side in sides
        )
        label = number.format(self.predictions[0][0].labels[index])
        return f"label {label}, first {first}, second {second}, id {self.ids[index]}"


@dataclass(frozen=True)
class SideBySide:
    """The pages that were written about pairs of recipes, and their summary."""

    summary: tuple[str, ...]
    markdown: str
    page: Path | None


def compare_examples(
    directories: Sequence[Path], data: str | None = None, out: Path | None = None
) -> SideBySide:
    """Write ``comparison.md`` and ``comparison.html`` on the rows that one setting tells apart.

    Arguments:
        directories: Run folders, or folders that hold them at any depth.
        data: Where the texts are now; where they were by default.
        out: Where to write; the first of the directories by default.
    """
    blocks: list[Block] = []
    lines: list[str] = []
    for section in group_by_data(find_runs(directories)[0]):
        for contrast in contrasts(section.rows):
            pairs = Pairs.of(contrast.first, contrast.second)
            tasks = section.tasks if pairs is not None else []
            found = [v for task in tasks if pairs and (v := Versus.of(pairs, task)) is not None]
            if found:
                blocks += _about(contrast, found, data or section.data)
                seeds = f"{len(found[0].seeds)} seed{'' if len(found[0].seeds) == 1 else 's'}"
                told = "; ".join(each.text for each in found)
                lines.append(f"{contrast.title}, example by example over {seeds} alone: {told}")
    if not blocks:
        return SideBySide((), "", None)
    blocks = [Heading(TITLE, 1), Items(tuple(_remarks())), *blocks]
    folder = out or directories[0]
    text, page = to_markdown(blocks), folder / "comparison.html"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    page.write_text(to_html(blocks, TITLE, folder), encoding="utf-8")
    return SideBySide(tuple(lines), text, page)


def _remarks() -> Iterator[str]:
    yield (
        "Better is a right class instead of a wrong one, or a score nearer to the label. Both "
        "recipes answered the same examples, so only those on which they differ tell them apart."
    )
    yield (
        "p is that of the exact sign test over the examples (of classes, McNemar's). It takes the "
        "examples for independent, and knows these seeds alone: what another seed would have given "
        "is in the report's paired differences."
    )
    yield '"All together" takes the mean over the seeds for each example.'


def _about(contrast: Contrast, found: Sequence[Versus], source: str) -> Iterator[Block]:
    yield Heading(contrast.title)
    for each in found:
        yield Heading(TASKS[each.task].title, 3)
        yield each.table()
        yield from each.quotes(_texts(source, each.task))
    if source != "synthetic" and not Path(source).is_dir():
        yield Paragraph("The texts are not at hand; say with --data where they are now.")


def _texts(source: str, task: str) -> dict[str, Sequence[str]]:
    try:
        split = load_corpus(source, [task], ["dev"]).splits[task, "dev"]
    except (ValueError, OSError):
        return {}
    return {example.id: example.texts for example in split.examples}


def _losses(task: str, found: Predictions) -> NDArray[Any]:
    errors = np.abs(found.predictions - found.labels)
    return np.asarray(errors if TASKS[task].kind == "score" else (errors > 0).astype(float))


def _counts(gains: NDArray[Any]) -> tuple[int, int, int]:
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return better, worse, gains.size - better - worse


def _test(gains: NDArray[Any]) -> ExactTest:
    better, worse, _ = _counts(gains)
    return sign_test(better, worse)


def _verdict(gains: NDArray[Any]) -> Verdict:
    better, worse, _ = _counts(gains)
    return judge_exact(_test(gains), better - worse)


def _cells(gains: NDArray[Any]) -> Iterator[str]:
    better, worse, same = _counts(gains)
    yield from (f"{gains.size:,}", f"{better:,}", f"{worse:,}", f"{same:,}")
    yield from (_test(gains).text, _word(_verdict(gains)))


def _word(verdict: Verdict) -> str:
    return {Verdict.HIGHER: "better", Verdict.LOWER: "worse"}.get(verdict, verdict.value)
