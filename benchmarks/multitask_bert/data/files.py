"""The data files: tab-separated rows to examples, every one of them checked once here."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.multitask_bert.tasks import TASKS, Task

MAX_BYTES = 2**28  # of one file; the largest published one has a tenth of them


class DataError(ValueError):
    """A file that cannot be used: one line that names file, row, what was found and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its texts as the tokenizer gets them, and its label where it has one."""

    id: str
    texts: tuple[str, ...]
    label: float | None


@dataclass(frozen=True)
class Split:
    """The examples of one task and split, and how many rows were skipped for want of a label."""

    task: str
    name: str
    examples: tuple[Example, ...]
    num_skipped: int
    source: str


@dataclass(frozen=True)
class Corpus:
    """The splits under ``(task, split)``, and one line that says what their numbers are worth."""

    name: str
    notice: str
    splits: Mapping[tuple[str, str], Split] = field(hash=False)


def preprocess(task: Task, text: str) -> str:
    """Lower-case, and for pairs set ``.``, ``?``, ``,`` and ``'`` off by a space before each.

    Single sentences are stripped; pairs have their whitespace normalised.

    >>> preprocess(TASKS["quora"], "What's  this, then?")
    "what 's this , then ?"

    Gabriel Poesia et al., minbert-default-final-project, the starter code of CS 224N, 2023.
    """
    text = text.lower()
    if not task.is_pair:
        return text.strip()
    for mark in ".?,'":
        text = text.replace(mark, " " + mark)
    return " ".join(text.split())


def check_names(task: str, split: str) -> None:
    """Refuse a task or split that does not exist.

    Raises:
        DataError: there is none of that name.
    """
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}, found {task!r}; choose one")
    files = TASKS[task].files
    if split not in files:
        raise DataError(f"split must be one of {', '.join(files)}, found {split!r}; choose one")


def read_split(
    directory: str | Path, task: str, split: str, *, has_labels: bool | None = None
) -> Split:
    """Read and check one file of the starter code's layout.

    Rows without a label are counted and skipped, except where there are no labels.
    A file of n bytes takes less than 64 n bytes of memory, and n is at most ``MAX_BYTES``.

    Args:
        directory: the folder with the files.
        task: a name in ``TASKS``.
        split: "train", "dev" or "test".
        has_labels: whether the rows have labels; by default all but those of "test" have.

    Raises:
        DataError: a file or column is missing, a row is damaged, or no row is usable.
        ValueError: a task or split that does not exist.
    """
    check_names(task, split)
    path = Path(directory) / TASKS[task].files[split]
    rows = _Rows(path)
    has_labels = split != "test" if has_labels is None else has_labels
    examples, num_skipped = _examples(rows, TASKS[task], has_labels=has_labels)
    if not examples:
        found = f"{num_skipped} rows without a label" if num_skipped else "a header alone"
        raise DataError(f"{path}: must have a row to use, found {found}; copy the file again")
    return Split(task, split, examples, num_skipped, source=str(path))


def _examples(rows: _Rows, task: Task, *, has_labels: bool) -> tuple[tuple[Example, ...], int]:
    """The usable rows, and the number of those without a label."""
    id_column = rows.column("id")
    text_columns = [rows.column(name) for name in task.text_columns]
    label_column = rows.column(task.label_column) if has_labels else None
    examples = []
    num_skipped = 0
    for row in rows:
        label = None
        if label_column is not None:
            found = row[label_column].strip()
            if not found:
                num_skipped += 1
                continue
            label = _label(task, found)
            if label is None:
                rule = "a number" if task.kind == "score" else "a whole number"
                raise rows.error(
                    f"{task.label_column} must be {rule} from {task.label_min} to"
                    f" {task.label_max}, found {_shown(found)}",
                    "correct it, or leave it empty to have the row skipped",
                )
        texts = tuple([preprocess(task, row[column]) for column in text_columns])
        examples.append(Example(row[id_column].strip().lower(), texts, label))
    return tuple(examples), num_skipped


# Python's float() also takes "nan", "1_0" and digits of other scripts.
# No digit can be matched in two ways: a long field is refused as fast as a short one.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def _label(task: Task, text: str) -> float | None:
    """The label, or None where the text is none of the task's."""
    if _NUMBER.fullmatch(text) is None:
        return None
    label = float(text)
    if not task.label_min <= label <= task.label_max:
        return None
    return label if task.kind == "score" or label.is_integer() else None


# A NUL, or a byte that is not UTF-8, as the error handler "surrogateescape" stands it in.
_DAMAGE = re.compile("[\0\udc80-\udcff]")


class _Rows:
    """The rows of a file below its header, checked one by one.

    Fields are quoted as in Python's default dialect, which is how the files were written, but
    strictly: a quote that is not closed would swallow the rows after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0  # of the data row, from 1; 0 is the header
        self._line = 1  # on which it starts, from 1
        try:
            content = _read(path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give the folder that has this file"
            ) from error
        text = content.decode("utf-8-sig", errors="surrogateescape")
        self._is_damaged = _DAMAGE.search(text) is not None
        self._reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
        self._header = self._next()
        if not self._header:
            found = "no header" if content else "no byte in it"
            raise DataError(f"{path}: must begin with a header, found {found}; copy the file again")
        for name, count in Counter(self._header).items():
            if name and count > 1:
                raise self.error(
                    f"column names must differ, found {_shown(name)} twice", "rename one of them"
                )

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            self._line = self._reader.line_num + 1
            self._number += 1
            row = self._next()
            if row is None:
                return
            if not row:  # an empty line is no row
                self._number -= 1
                continue
            if len(row) != len(self._header or ()):
                raise self.error(
                    f"a row must have the {len(self._header or ())} fields of the header,"
                    f" found {len(row)}",
                    "check its tabs and double quotes",
                )
            yield row

    def column(self, name: str) -> int:
        """The position of a column."""
        header = self._header or []
        if name not in header:
            raise self.error(
                f"column {name!r} must be there, found {_shown(', '.join(header))}",
                "give a tab-separated file in the layout of the starter code",
            )
        return header.index(name)

    def error(self, found: str, remedy: str) -> DataError:
        """The error of the current row."""
        row = f"row {self._number}" if self._number else "header"
        return DataError(f"{self._path}: {row} (line {self._line}): {found}; {remedy}")

    def _next(self) -> list[str] | None:
        """The next row as it is, or None at the end of the file."""
        try:
            row = next(self._reader, None)
        except csv.Error as error:
            raise self.error(
                f"must be tab-separated fields, found {error}",
                "close the field's double quote, double those inside it, or shorten the field",
            ) from error
        damage = _DAMAGE.search("\t".join(row)) if self._is_damaged and row else None
        if damage is not None:
            byte = ord(damage.group()) & 0xFF
            what = "a NUL byte" if byte == 0 else f"byte 0x{byte:02x}, which is not UTF-8"
            raise self.error(f"must be text, found {what}", "save the file as UTF-8 text")
        return row


def _read(path: Path) -> bytes:
    """The bytes of a plain file: a pipe may never end, and a device such as /dev/zero never does.

    Raises:
        DataError: it is something else, or too large.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: must be a file, found another thing; give a copy of the file")
        if status.st_size > MAX_BYTES:
            raise DataError(
                f"{path}: must have at most {MAX_BYTES} bytes, found {status.st_size}; check that "
                "it is the right file"
            )
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _shown(text: str) -> str:
    """A field as an error message quotes it: on one line, and short."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
