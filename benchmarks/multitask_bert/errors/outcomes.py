"""Predictions beside labels: the prediction files of a run joined with the texts."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.data.files import Corpus, Example, Split
from benchmarks.multitask_bert.errors.features import Background, name_words, stem, words
from benchmarks.multitask_bert.records.rows import Run
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA, TASKS, Task

COLUMNS = ("id", "prediction", "label")
# The record rounds a label to six digits.
LABEL_TOLERANCE = 1e-4
_REMEDY = "give the data of the run with --data, or run the recipe again"


@dataclass(frozen=True)
class Outcomes:
    """The dev examples of one task, and what a run predicted for each."""

    task: Task
    examples: tuple[Example, ...]
    predictions: NDArray[Any]  # [N]
    labels: NDArray[Any]  # [N]
    background: Background

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def errors(self) -> NDArray[Any]:  # [N]
        """Prediction less label."""
        return np.asarray(self.predictions - self.labels)

    def largest(
        self,
        values: NDArray[Any],  # [N]
        among: NDArray[np.bool_],  # [N]
        count: int,
    ) -> list[tuple[str, tuple[str, ...]]]:
        """Give a line about, and the texts of, the examples of the largest values.

        Of equal ones the earlier come first.
        """
        positions = np.flatnonzero(among)
        order = np.argsort(-values[positions], kind="stable")[:count]
        number = "{:.2f}" if self.task.kind == "score" else "{:.0f}"
        return [
            (
                f"predicted {number.format(self.predictions[index])}, "
                f"label {number.format(self.labels[index])}, id {self.examples[index].id}",
                self.examples[index].texts,
            )
            for index in positions[order]
        ]

    @property
    def num_classes(self) -> int:
        return self.task.label_max - self.task.label_min + 1

    @property
    def is_degenerate(self) -> bool:
        return metrics.is_degenerate(self.predictions, self.task.kind)

    @property
    def metric(self) -> float:
        measure = metrics.accuracy if self.task.metric == "accuracy" else metrics.pearson
        return measure(self.predictions, self.labels)

    @property
    def metric_error(self) -> float:
        """The standard error of the metric from the choice of dev examples."""
        if self.task.metric == "accuracy":
            return metrics.accuracy_standard_error(self.metric, len(self))
        return metrics.pearson_standard_error(self.metric, len(self))


def read_outcomes(run: Run, data: str | None = None) -> list[Outcomes]:
    """Read what a finished run predicted for the dev examples of its tasks.

    Args:
        run: as ``find_runs`` gives it.
        data: the source of the texts; that of the run by default.

    Raises:
        ValueError: the run is unfinished, its data are not to be found or not those it ran on, or
            a prediction file is missing, damaged, or does not have every example once.
    """
    if run.end is None:
        raise ValueError(
            f"{run.folder / 'metrics.jsonl'}: must have an end event as its last, found a run that "
            f"stopped at step {run.step}; finish it with run ... --resume"
        )
    tasks = [task for task in TASKS if task in (run.recipe.get("tasks") or run.metrics)]
    if not tasks:
        raise ValueError(
            f"{run.folder / 'config.json'}: must name the recipe's tasks, found none; run the "
            "recipe again"
        )
    corpus = _load_corpus(run, data, tasks)
    seen = _seen_words(corpus)
    names = _names(corpus)
    num_pieces = _num_pieces(str(run.config.get("encoder")))
    background = Background(names, seen, num_pieces)
    return [
        _join(run.folder / f"predictions/{task}-dev.csv", corpus.splits[task, "dev"], background)
        for task in tasks
    ]


def _load_corpus(run: Run, data: str | None, tasks: list[str]) -> Corpus:
    source = data or str(run.config.get("data"))
    if data is None and source not in BUILT_IN_DATA and not Path(source).is_dir():
        raise ValueError(
            f"{run.folder / 'config.json'}: data must be a folder that is there, found {source}; "
            "say with --data where it is now"
        )
    return load_corpus(source, tasks)


def _join(path: Path, split: Split, background: Background) -> Outcomes:
    task = TASKS[split.task]
    # An id that comes twice in the data comes in the order of the data here too.
    waiting: dict[str, list[int]] = defaultdict(list)
    for index in reversed(range(len(split.examples))):
        waiting[split.examples[index].id].append(index)
    predictions = np.full(len(split.examples), np.nan)
    for line, row in _rows(path):
        if not waiting[row["id"]]:
            is_known = row["id"] in {example.id for example in split.examples}
            found = f"{row['id']!r} once more" if is_known else repr(row["id"])
            raise ValueError(
                f"{path}: line {line}: id must be that of a dev example of {split.source}, found "
                f"{found}; {_REMEDY}"
            )
        index = waiting[row["id"]].pop()
        predictions[index] = _prediction(path, line, row["prediction"], task)
        label = split.examples[index].label
        given = _number(row["label"])
        if label is None or given is None or not abs(given - label) <= LABEL_TOLERANCE:
            raise ValueError(
                f"{path}: line {line}: label must be that of {split.source}, {label}, found "
                f"{row['label']!r}; {_REMEDY}"
            )
    if missing := [example_id for example_id, left in waiting.items() if left]:
        raise ValueError(
            f"{path}: must have each of the {len(split.examples)} dev examples of {split.source}, "
            f"found none with id {missing[0]!r} and {len(missing) - 1} others; {_REMEDY}"
        )
    labels = np.array([example.label for example in split.examples], dtype=np.float64)
    return Outcomes(task, split.examples, predictions, labels, background)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Give each row with the number of its line."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: must be there, found none; run the recipe again") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: must be UTF-8 text, found other bytes; run the recipe again"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if reader.line_num == 1 and tuple(row) != COLUMNS:
                found = ", ".join(row)[:60] or "an empty line"
                raise ValueError(
                    f"{path}: must begin with {','.join(COLUMNS)}, found {found}; run the recipe "
                    "again"
                )
            if len(row) != len(COLUMNS):
                raise ValueError(
                    f"{path}: line {reader.line_num}: must have {len(COLUMNS)} fields, found "
                    f"{len(row)}; run the recipe again"
                )
            if reader.line_num > 1:
                yield reader.line_num, dict(zip(COLUMNS, row, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {reader.line_num}: must be comma-separated, found {error}; run the "
            "recipe again"
        ) from None


def _prediction(path: Path, line: int, text: str, task: Task) -> float:
    value = _number(text)
    is_class = value is not None and value in range(task.label_min, task.label_max + 1)
    if value is None or not (task.kind == "score" or is_class):
        rule = "a number" if task.kind == "score" else f"a class up to {task.label_max}"
        raise ValueError(
            f"{path}: line {line}: prediction must be {rule}, found {text!r}; run the recipe again"
        )
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _seen_words(corpus: Corpus) -> frozenset[str]:
    """Give the words of the training texts of all tasks: the encoder saw all of them."""
    return frozenset(
        stem(word)
        for (_, name), split in corpus.splits.items()
        if name == "train"
        for example in split.examples
        for text in example.texts
        for word in words(text)
    )


def _names(corpus: Corpus) -> frozenset[str]:
    """Learn what is a name from the capitals of the pairs' files; SST has each word as a token."""
    pairs = [split for (task, _), split in corpus.splits.items() if TASKS[task].is_pair]
    return name_words(text for split in pairs for text in _original_texts(split))


def _original_texts(split: Split) -> Iterator[str]:
    """Give a split's texts with their capitals; those of the built-in corpus have none."""
    path = Path(split.source)
    if not path.is_file():
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            for column in TASKS[split.task].text_columns:
                yield row[column]


def _num_pieces(encoder: str) -> Callable[[str], int] | None:
    """Give a function that counts a word's pieces, where the encoder's tokenizer is at hand."""
    path: object = Path(encoder) / "tokenizer.json"
    if not Path(encoder).is_dir():
        from huggingface_hub import try_to_load_from_cache

        path = None
        with suppress(ValueError):  # no name that the hub could know
            path = try_to_load_from_cache(encoder, "tokenizer.json")
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    @cache
    def num_pieces(word: str) -> int:
        return len(tokenizer.encode(word, add_special_tokens=False).ids)

    return num_pieces
