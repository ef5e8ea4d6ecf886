"""The weights of a checkpoint, in one file or in several, as if they were in one."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from benchmarks.multitask_bert.model.bert.files import (
    SHARDS,
    WEIGHTS,
    CheckpointError,
    read_json,
    some,
)

# A file in the folder itself: an index must not lead anywhere else.
_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
MAX_SHARDS = 1000


def weight_files(folder: Path) -> list[Path]:
    """Gives the files that hold a checkpoint's weights: one, or those of its index.

    Raises:
        CheckpointError: the index is damaged, or a file of it is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / SHARDS
    places = read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not 0 < len(names) <= MAX_SHARDS or not all(map(_NAME.fullmatch, names)):
        raise CheckpointError(
            f"{index}: weight_map must name safetensors files of this folder, at most "
            f"{MAX_SHARDS}, got {some(names) or 'none'}: fetch the file again"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} has no {some(missing)}, which {SHARDS} names: fetch it")
    return [folder / name for name in names]


class Weights:
    """The tensors of one or several safetensors files, none of them read before it is asked for.

    Args:
        paths: of the files, open as long as this is entered.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._files = ExitStack()
        self._by_name: dict[str, Any] = {}
        self.names: list[str] = []  # one that is in two files is here twice

    def __enter__(self) -> Weights:
        with ExitStack() as files:
            for path in self._paths:
                file = files.enter_context(safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118 (a file handle, not a mapping)
                    self.names.append(name)
                    self._by_name[name] = file
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def form(self, name: str) -> tuple[list[int], str]:
        """Tells the shape and the type of a tensor."""
        part = self._by_name[name].get_slice(name)
        return part.get_shape(), part.get_dtype()

    def tensor(self, name: str) -> Tensor:
        """Reads a tensor."""
        found: Tensor = self._by_name[name].get_tensor(name)
        return found
