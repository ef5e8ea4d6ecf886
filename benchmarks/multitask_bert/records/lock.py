"""A run folder for one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.multitask_bert.records.record import RecordError, WriteError

try:
    import fcntl
except ImportError:  # no such locks on this system: two processes there are the user's business
    fcntl = None  # type: ignore[assignment]

NAME = "lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a run folder.

    The lock is the system's, on a file that is removed at the end: it goes with the process that
    holds it, however that ends, and a file left behind locks nothing.

    Args:
        folder: made where it does not exist, and removed again where nothing came into it.

    Raises:
        RecordError: another process is in the folder.
        WriteError: the file cannot be written.
    """
    path = folder / NAME
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    except OSError as error:
        _remove(made)
        raise WriteError(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        _remove(made)


def _take(path: Path) -> int:
    """An open and locked file; it is looked up again, since its last owner may have removed it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                _lock(path, descriptor)
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except BaseException:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode("ascii", errors="replace") or "unknown"
        raise RecordError(
            f"{path.parent}: must be free, found process {owner} at work in it; wait for its end, "
            "or choose another --out"
        ) from None
    except OSError:
        pass  # a file system without locks


def _remove(folders: list[Path]) -> None:
    """Removes the folders that are empty, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
