"""The files of a BERT-format checkpoint: where they are, and what cannot be read of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"  # which of several files holds which weights
_SHARD = "model-*-of-*.safetensors"
PICKLE = "pytorch_model.bin"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_JSON_BYTES = 2**26  # of a JSON or vocabulary file; a large tokenizer has a quarter of them


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message is one line."""

    def __init__(self, message: str) -> None:
        # File names, tensor names and other libraries' messages may hold line breaks, and a value
        # of the file may fill pages.
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= 1000 else f"{line[:700]} ... {line[-200:]}")


def find(source: str) -> Path:
    """The folder of a checkpoint, fetched from the Hugging Face hub if none of that name is here.

    Raises:
        CheckpointError: there is none, or it has no configuration or no weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(
                f"{source} is a file: give the folder that holds {CONFIG} and {WEIGHTS}"
            )
        folder = _fetch(source)
    if not has_weights(folder) and (folder / PICKLE).is_file():
        raise CheckpointError(
            f"{folder} has {PICKLE} but no {WEIGHTS}: a pickle can run code when read, so it "
            f"is not loaded; this command converts it and runs none of it: {_conversion(folder)}"
        )
    if not (folder / CONFIG).is_file() or not has_weights(folder):
        name = WEIGHTS if (folder / CONFIG).is_file() else CONFIG
        raise CheckpointError(
            f"{folder} has no {name}: give a folder or hub model in BERT format "
            f"({CONFIG}, {WEIGHTS}, {TOKENIZER} or {VOCABULARY})"
        )
    return folder


def has_weights(folder: Path) -> bool:
    """Tells whether a folder has weights, in one file or in several."""
    return any((folder / name).is_file() for name in (WEIGHTS, SHARDS))


def _conversion(folder: Path) -> str:
    """Returns the command that makes safetensors of a pickle with torch's reader of tensors."""
    program = (
        "import sys, torch; from safetensors.torch import save_file; "
        f"read = torch.load(sys.argv[1] + '/{PICKLE}', map_location='cpu', weights_only=True); "
        "save_file({name: tensor.clone() for name, tensor in read.items()}, "
        f"sys.argv[1] + '/{WEIGHTS}')"
    )
    return f'python -c "{program}" {shlex.quote(str(folder))}'


def _fetch(name: str) -> Path:
    wanted = [CONFIG, WEIGHTS, SHARDS, _SHARD, TOKENIZER, VOCABULARY, TOKENIZER_CONFIG]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # its own, httpx's and the OS's, which share no narrower base
        raise CheckpointError(
            f"{name} is no folder here, and the Hugging Face hub did not give a model of that "
            f"name ({summary(error)}): check the name and the connection, or give a folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is too large, unreadable, or holds something else.
    """
    check_size(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable as JSON ({summary(error)}): fetch the file again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, got a {type(raw).__name__}: fetch the file again"
        )
    return raw


def check_size(path: Path) -> None:
    """Refuses a file that is larger than any of its kind, before it is read.

    Raises:
        CheckpointError: with its size.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} must have at most {MAX_JSON_BYTES} bytes, got {size}: fetch the file again"
        )


def some(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    first, rest = list(names)[:3], list(names)[3:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def summary(error: BaseException) -> str:
    """Shortens what another library says to a length that fits into a line."""
    return str(error).strip()[:300] or type(error).__name__
