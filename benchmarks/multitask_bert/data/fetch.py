"""The public data files: from the starter code's repository into a folder, each whole or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pooch
from requests import RequestException
from tqdm import tqdm

from benchmarks.multitask_bert.tasks import TASKS

REPOSITORY = "gpoesia/minbert-default-final-project"
# Of the commit only the short hash is known; GitHub completes it.
BASE_URL = f"https://raw.githubusercontent.com/{REPOSITORY}/7ac8260/data/"

_SHA256 = {
    "ids-cfimdb-dev.csv": "3087f571b66860fe5d035b5a018d08202ad3fd3720e4821c04b2acf6c7ded559",
    "ids-cfimdb-test-student.csv": (
        "7ae611548c9eac879e9ebb406cc9f8ae68ff12f78090e4965af5cbdfa06240f4"
    ),
    "ids-cfimdb-train.csv": "140fc513045a966109faed46a5c7a898767b96714d71bcb9c15f659129fadcea",
    "ids-sst-dev.csv": "a186ce94577635fbe10beaaddd50f16cccf6c30973221cefdf90deed2a584bfe",
    "ids-sst-test-student.csv": "bdd5a767faa0c26782117e37767ece154c30d5d04fb8727d09c71e3850a55c7b",
    "ids-sst-train.csv": "03b2b625c090f94a6afd59f114cde5282e2053aab0b101e87ed695d8a0c5b1df",
    "sts-dev.csv": "ce3cad6f16062586ac7ba462c28b010a9be10c530fd5074165860d7b7ab4e93d",
    "sts-test-student.csv": "dee455745b72e9ca3ff74e7c056bd73e34bad5b8d5641045a2c1e7e131866f47",
    "sts-train.csv": "15d12efc2d656fffb1d61ac1f08ec4227f43925fd16f420c037cbd063699c21b",
}
# File name -> SHA-256, or None where the published file's is not known.
REGISTRY: Mapping[str, str | None] = MappingProxyType(
    {
        name: _SHA256.get(name)
        for task in TASKS.values()
        if task.is_published
        for name in task.files.values()
    }
)
_COLUMNS = {
    name: {"id", *task.text_columns, *([] if split == "test" else [task.label_column])}
    for task in TASKS.values()
    for split, name in task.files.items()
}
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**16  # bytes


class FetchError(ValueError):
    """A file that cannot be had: one line that names it, what was found and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def fetch(
    directory: Path,
    *,
    base_url: str = BASE_URL,
    registry: Mapping[str, str | None] = REGISTRY,
    progress: bool = True,
) -> list[Path]:
    """Download the files that are not in a folder yet; those that are there stay as they are.

    A file gets its name once it is complete and checked, so the same command goes on where an
    interrupted one stopped.

    Args:
        directory: made where it does not exist.
        base_url: what the files' names are appended to.
        registry: SHA-256 of every file wanted; with None, only the columns are checked.
        progress: show a bar a file, on a terminal.

    Returns:
        The files, in the order of ``registry``.

    Raises:
        FetchError: a file there is not the published one, or one could not be downloaded or
            written; those downloaded before it are kept.
    """
    paths = [Path(directory) / name for name in registry]
    absent = [path for path in paths if not os.path.lexists(path)]
    for path in paths:
        fault = None if path in absent else _fault(path, path.name, registry[path.name])
        if fault is not None:
            raise FetchError(
                f"{path}: must be the published file or absent, found {fault}; move it away, or "
                "give another folder"
            )
    pooch.get_logger().setLevel("WARNING")  # below it are a line a file, and advice on hashes
    for path in absent:
        _download(path, base_url.rstrip("/") + "/" + path.name, registry[path.name], progress)
    return paths


def describe(path: Path, registry: Mapping[str, str | None] = REGISTRY) -> str:
    """One line on a fetched file: its size, and whether its content was checked.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    size = f"{len(content.splitlines()) - 1:,} lines below the header, {len(content):,} bytes"
    if registry[path.name] is None:
        return f"{path}: {size}, NOT checked: the published file's SHA-256 is not known"
    return f"{path}: {size}, SHA-256 as published"


def _download(path: Path, url: str, sha256: str | None, progress: bool) -> None:
    def download(url: str, partial: str, caller: object) -> None:
        http(url, partial, caller)
        fault = _fault(Path(partial), path.name, sha256)
        if fault is not None:
            raise _failure(path, url, fault)
        # A temporary file is its owner's alone; a folder of data is often shared.
        os.chmod(partial, path.parent.stat().st_mode & 0o666)

    bar = tqdm(
        total=1,  # pooch sets it, but takes a bar without a total for no bar at all
        desc=path.name,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    with bar, ExitStack() as responses:
        http = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=_CHUNK,
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # else the total is that of compressed bytes
            # pooch leaves the response of a failed download open.
            hooks={"response": lambda response, **_: responses.enter_context(response)},
        )
        try:
            # Told the hash, pooch would overwrite a file that has another.
            pooch.retrieve(
                url, None, fname=path.name, path=path.parent.absolute(), downloader=download
            )
        except RequestException as error:
            raise _failure(path, url, _reason(error)) from error
        except OSError as error:
            raise FetchError(
                f"{path}: cannot be written ({_reason(error)}); give a folder that can"
            ) from error


def _fault(path: Path, name: str, sha256: str | None) -> str | None:
    """Says what keeps the file at ``path`` from being the published one, as far as is known."""
    try:
        if sha256 is not None:
            found = pooch.file_hash(str(path))
            return None if found == sha256 else f"SHA-256 {found} for {sha256}"
        with path.open("rb") as file:
            header = file.readline(1000).decode("utf-8-sig", errors="replace")
    except OSError as error:
        return _reason(error)
    # A login page or a pointer to large-file storage arrives as well as a data file does.
    absent = _COLUMNS.get(name, set()) - set(header.strip().split("\t"))
    if not absent:
        return None
    return f"no column {', '.join(sorted(absent))} in a file that begins with {header[:60]!r}"


def _failure(path: Path, url: str, found: str) -> FetchError:
    return FetchError(
        f"{path.name}: could not be fetched from {url}, found {found}; run fetch again, or copy "
        f"the files of {REPOSITORY}, folder data/, into {path.parent} by hand"
    )


def _reason(error: OSError) -> str:
    """Says what went wrong at the bottom, without the layers of libraries above it."""
    if isinstance(error, RequestException) and error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}"
    cause: BaseException = error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
    if isinstance(cause, TimeoutError):
        return f"no answer within {_TIMEOUT:g} s"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
