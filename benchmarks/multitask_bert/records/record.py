"""The folder a run leaves: what it was, where it ran, what it measured and predicted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.multitask_bert.records.format import parse_event


class RecordError(ValueError):
    """A run folder that cannot be used as asked."""


class WriteError(RecordError, OSError):
    """A file of a run that could not be written; what was there before is still there."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path}: cannot be written ({error.strerror or error}); make room or give another "
            "--out, and go on with --resume"
        )


class Record:
    """The files of one run; each is written whole or not at all, ``metrics.jsonl`` line by line.

    Args:
        folder: made when the first file is written.
        listener: is called with every event once it is in ``metrics.jsonl``.
    """

    def __init__(
        self, folder: Path, listener: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self.folder = folder
        self._listener = listener

    @property
    def exists(self) -> bool:
        return (self.folder / "config.json").exists()

    @property
    def is_complete(self) -> bool:
        return any(event["event"] == "end" for event in self.events())

    @property
    def metrics_bytes(self) -> int:
        """Length of ``metrics.jsonl``."""
        path = self.folder / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.folder / name, text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            RecordError: it is missing or damaged.
        """
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecordError(
                f"{path}: must be readable JSON, found {found}; remove the run folder and run again"
            ) from error
        if not isinstance(content, dict):
            raise RecordError(
                f"{path}: must be a JSON object, found {type(content).__name__}; "
                "remove the run folder and run again"
            )
        return content

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds one event to ``metrics.jsonl``.

        Raises:
            WriteError: it could not be written, or in part only.
        """
        path = self.folder / "metrics.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
            if self._listener is not None:
                self._listener(event)
        except OSError as error:
            raise WriteError(path, error) from error

    def metrics_digest(self, num_bytes: int) -> str:
        """SHA-256 of the first bytes of ``metrics.jsonl``, which are on the disk afterwards."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return hashlib.sha256().hexdigest()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.sha256(file.read(num_bytes)).hexdigest()

    def check_metrics(self, num_bytes: int, digest: str | None) -> None:
        """Refuses a ``metrics.jsonl`` that does not begin with what a checkpoint knows of.

        Args:
            num_bytes: its length when the checkpoint was written.
            digest: their SHA-256, where it is known.

        Raises:
            RecordError: it is shorter, or was changed.
        """
        path = self.folder / "metrics.jsonl"
        if self.metrics_bytes < num_bytes:
            raise RecordError(
                f"{path}: must hold the {num_bytes} bytes of when the state was saved, found "
                f"{self.metrics_bytes}; remove the run folder and run again"
            )
        if digest is not None and self.metrics_digest(num_bytes) != digest:
            raise RecordError(
                f"{path}: must begin with the {num_bytes} bytes of when the state was saved, found "
                "others; remove the run folder and run again"
            )

    def remove_partial_files(self) -> None:
        """Removes what a process that was killed while writing left half written."""
        for path in self.folder.rglob("*.partial"):
            path.unlink()

    def truncate(self, num_bytes: int) -> None:
        """Forgets what was measured after a checkpoint was written.

        Raises:
            RecordError: the file is shorter than it was then.
        """
        path = self.folder / "metrics.jsonl"
        self.check_metrics(num_bytes, None)
        if path.exists():
            os.truncate(path, num_bytes)

    def events(self) -> Iterable[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``.

        Raises:
            RecordError: a line is no event.
        """
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                event = parse_event(line)
                if event is None:
                    raise RecordError(
                        f"{path}: line {number} must be an event, found something else; "
                        "remove the run folder and run again"
                    )
                yield event

    def write_predictions(
        self, task: str, split: str, rows: Iterable[tuple[str, float, float | None]]
    ) -> None:
        """Predictions of one task: id, prediction, label."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "prediction", "label"])
        for id, prediction, label in rows:
            writer.writerow([id, f"{prediction:g}", "" if label is None else f"{label:g}"])
        write_whole(self.folder / "predictions" / f"{task}-{split}.csv", text.getvalue().encode())


def write_whole(path: Path, *content: bytes | memoryview, previous: Path | None = None) -> None:
    """Writes a file so that nobody, at any moment, finds half of it.

    Args:
        path: the file; folders above it are made.
        content: its parts, in order.
        previous: the name that the file of before gets; without it that file is gone.

    Raises:
        WriteError: it could not be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()  # on a full disk its room is needed
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Has the folder's names on the disk, where the system can be asked for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
