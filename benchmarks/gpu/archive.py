"""Archives: files of a folder in several that are small enough to be sent, and back."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

MAX_BYTES = 15_000_000
_OVERHEAD = 20_000  # of a tar's headers and its end, and of what the compressor holds back


def extract(archive: Path, into: Path) -> None:
    """Writes the files of an archive below a folder; those that are there already stay.

    Raises:
        ValueError: the archive is damaged, or a name in it leads out of the folder.
    """
    root = into.resolve()
    try:
        with tarfile.open(archive, "r:gz") as file:
            for member in file:
                target = (root / member.name).resolve()
                if root not in target.parents:
                    raise ValueError(f"{archive}: must stay below its folder, found {member.name}")
                content = file.extractfile(member) if member.isfile() else None
                if content is not None and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive}: must be a readable archive, found {error}") from error


def split(
    files: Iterable[Path], root: Path, into: Path, stem: str, *, max_bytes: int = MAX_BYTES
) -> tuple[list[Path], list[Path]]:
    """Archives files in parts ``STEM-01.tar.gz``, ...; parts that were there are replaced.

    Args:
        files: below ``root``, in the order in which they are archived.
        root: their names in the archives are relative to it.
        into: folder of the archives; made.
        stem: of their names.
        max_bytes: of each.

    Returns:
        The archives, and the files that are too large for one and were left out.
    """
    into.mkdir(parents=True, exist_ok=True)
    before = set(into.glob(f"{stem}-*.tar.gz"))
    parts: list[Path] = []
    left_out: list[Path] = []
    with ExitStack() as opened:
        for file in files:
            # As large as if nothing could be compressed, so that no part is too large at last.
            size = file.stat().st_size + _OVERHEAD
            if size > max_bytes:
                left_out.append(file)
                continue
            if not parts or parts[-1].stat().st_size + size > max_bytes:
                opened.close()
                parts.append(into / f"{stem}-{len(parts) + 1:02}.tar.gz.partial")
                compressed = opened.enter_context(gzip.open(parts[-1], "wb", compresslevel=6))
                archive = opened.enter_context(tarfile.open(fileobj=compressed, mode="w"))
            archive.add(file, file.relative_to(root).as_posix())
            compressed.flush()
    written = [part.replace(part.with_suffix("")) for part in parts]
    for path in before - set(written):
        path.unlink()
    return written, left_out
