"""The source that ``--data`` names: the built-in corpus, or a folder of data files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.multitask_bert.data.conflict import make_conflicts
from benchmarks.multitask_bert.data.files import (
    Corpus,
    DataError,
    Split,
    check_names,
    read_split,
)
from benchmarks.multitask_bert.data.synthetic import make_corpus
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA, TASKS

# Rows of the smaller of the two published editions of the Quora split.
_PUBLISHED_QUORA_ROWS = {"train": 141_498, "dev": 20_212}


def load_corpus(
    source: str, tasks: Sequence[str], splits: Sequence[str] = ("train", "dev")
) -> Corpus:
    """Load some tasks of a source.

    Args:
        source: "synthetic" for the built-in corpus, "conflict" for that of conflicts, or a folder.
        tasks: names in ``TASKS``.
        splits: of "train", "dev" and "test".

    Raises:
        DataError: the source does not have them, or a file of it is damaged.
        ValueError: a task or split that does not exist.

    >>> corpus = load_corpus("synthetic", ["sts"])
    >>> [(key, len(split.examples)) for key, split in corpus.splits.items()]
    [(('sts', 'train'), 4000), (('sts', 'dev'), 400)]
    """
    keys = [(task, split) for task in tasks for split in splits]
    if source in BUILT_IN_DATA:
        for task, split in keys:
            check_names(task, split)
        corpus = make_corpus() if source == "synthetic" else make_conflicts()
        return replace(corpus, splits={key: corpus.splits[key] for key in keys})
    if not Path(source).is_dir():
        raise DataError(f"{source}: must be a folder with the data files, found none; check it")
    read = {(task, split): read_split(source, task, split) for task, split in keys}
    return Corpus(source, _notice(source, read), read)


def load_labelled(source: str, task: str, split: str) -> Split:
    """Load the rows of one task's split that have a label, those of "test" too.

    Raises:
        DataError: the source does not have them, or the file is damaged.
        ValueError: a task or split that does not exist.
    """
    if source not in BUILT_IN_DATA:
        return read_split(source, task, split, has_labels=True)
    found = load_corpus(source, [task], [split]).splits[task, split]
    if any(example.label is None for example in found.examples):
        raise DataError(f"{source}: must have labels, found none in its {split} split; choose dev")
    return found


def absent_file(source: str, task: str, split: str) -> Path | None:
    """Return the file that a source lacks for one task's split, or None where it has it."""
    path = Path(source) / TASKS[task].files[split]
    return None if source in BUILT_IN_DATA or os.path.lexists(path) else path


def _notice(source: str, splits: Mapping[tuple[str, str], Split]) -> str:
    """One line: how many examples there are, and whether the Quora split is a published one."""
    parts: dict[str, list[str]] = {}
    for (task, name), split in splits.items():
        skipped = f" ({split.num_skipped} skipped without a label)" if split.num_skipped else ""
        parts.setdefault(task, []).append(f"{len(split.examples)} {name}{skipped}")
    counts = "; ".join(f"{TASKS[task].title} {', '.join(found)}" for task, found in parts.items())
    notice = f"data of {source}: {counts}"
    is_short = any(
        ("quora", name) in splits
        and len(splits["quora", name].examples) + splits["quora", name].num_skipped < rows
        for name, rows in _PUBLISHED_QUORA_ROWS.items()
    )
    if is_short:
        notice += (
            "; this Quora split is not the published one, so no Quora accuracy measured on it"
            " compares with a published one"
        )
    return notice
