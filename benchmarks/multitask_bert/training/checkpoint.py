"""The two things a run saves: its best model, and the state that an exact resume needs."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from benchmarks.multitask_bert.model.multitask import make_heads
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError
from benchmarks.multitask_bert.records.record import RecordError, write_whole

STATE = Path("state", "state.pt")  # in a run folder
PREVIOUS = Path("state", "previous.pt")  # the one before, until the run is complete


@dataclass(frozen=True)
class Origin:
    """The run that a checkpoint is of; another one's may fit and mean something else.

    Args:
        recipe: its id.
        seed: of the run.
        settings: SHA-256 of all of the recipe's fields.
    """

    recipe: str
    seed: str
    settings: str

    @staticmethod
    def of(recipe: Mapping[str, Any], seed: int) -> Origin:
        """The origin of a run.

        Args:
            recipe: its fields, as ``config.json`` has them.
            seed: of the run.
        """
        text = json.dumps(recipe, sort_keys=True)
        return Origin(str(recipe.get("id")), str(seed), hashlib.sha256(text.encode()).hexdigest())

    def check(self, found: Mapping[str, str]) -> None:
        """Refuses what another run saved; versions before this one did not say which run it was.

        Raises:
            ValueError: it is of another recipe or seed, or has other settings.
        """
        if "settings" not in found or dict(found) == asdict(self):
            return
        same = found["recipe"] == self.recipe and found["seed"] == self.seed
        raise ValueError(
            f"that of {found['recipe']} seed {found['seed']}"
            f"{' with other settings' if same else ''} for {self.recipe} seed {self.seed}"
        )


def save_model(path: Path, model: nn.Module, origin: Origin | None = None) -> None:
    """Writes a model's weights as safetensors, with the checksum by which damage is found."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    told = {} if origin is None else asdict(origin)
    # One entry: safetensors writes several in any order, and equal models are to be equal files.
    metadata = {_METADATA: json.dumps({"sha256": digest_of(tensors), **told})}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_model(path: Path, model: nn.Module, origin: Origin | None = None) -> None:
    """Reads them back into a model of the same shape.

    Raises:
        RecordError: the file is missing or damaged, or is that of another model or run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _told(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Files of versions before this one have no checksum.
        if metadata.get("sha256") not in (None, digest_of(tensors)):
            raise ValueError("other numbers than were written")
        if origin is not None:
            origin.check({name: metadata[name] for name in asdict(origin) if name in metadata})
        model.load_state_dict(tensors)
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise _not_weights(path, error) from error


_METADATA = "gradsurgery"


def _told(metadata: Mapping[str, str]) -> dict[str, str]:
    """Holds what the header of a model says of itself.

    Raises:
        ValueError: it is damaged.
    """
    told = json.loads(metadata.get(_METADATA, "{}"))
    if not isinstance(told, dict) or not all(isinstance(each, str) for each in told.values()):
        raise ValueError("a damaged header")
    return told


def check_heads(path: Path, recipe: Recipe, width: int) -> None:
    """Refuses weights without the recipe's heads, before any memory is taken for those.

    Args:
        path: a file that :func:`save_model` wrote.
        recipe: whose heads they are to be.
        width: of the encoder.

    Raises:
        RecordError: the file cannot be read, or a head's tensor is missing or of another shape.
    """
    try:
        with torch.device("meta"):
            heads = make_heads(recipe, width).state_dict()
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, tensor in heads.items():
                stored = f"heads.{name}"
                found = file.get_slice(stored).get_shape() if stored in names else None
                if found != list(tensor.shape):
                    raise ValueError(f"{stored} of shape {found} for {list(tensor.shape)}")
    except RecipeError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise _not_weights(path, error) from error


def _not_weights(path: Path, error: Exception) -> RecordError:
    return RecordError(
        f"{path}: must hold this recipe's weights, found {_first_line(error)}; "
        "remove the run folder and run again"
    )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content.data)
    return digest.hexdigest()


def save_state(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Writes the state of a run, after the checksum by which damage is found.

    Args:
        path: the file.
        state: numbers, texts, tensors, and mappings and lists of them.
        previous: the name that the state of before gets.
    """
    content = BytesIO()
    torch.save(dict(state), content)
    body = content.getbuffer()
    write_whole(path, _MAGIC, hashlib.sha256(body).digest(), body, previous=previous)


def load_state(path: Path, origin: Origin | None = None) -> dict[str, Any]:
    """Reads the state of a run; nothing in the file is executed, and it never takes more memory
    than the file has bytes.

    Raises:
        RecordError: the file is missing or damaged, or is that of another run.
    """
    try:
        with path.open("rb") as file:
            magic, digest = file.read(len(_MAGIC)), file.read(_DIGEST_BYTES)
            body = file.read() if magic == _MAGIC else b""
        if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
            raise ValueError("other bytes than were written")
        with zipfile.ZipFile(BytesIO(body)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(body):
                raise ValueError("an archive that grows when it is read")
        state = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
        if origin is not None:
            origin.check(state.get("origin", {}))
    except Exception as error:  # what torch.load refuses surfaces as almost any type
        found = "none" if isinstance(error, FileNotFoundError) else _first_line(error)
        raise RecordError(
            f"{path}: must be the state of an interrupted run, found {found}; "
            "remove the run folder and run again"
        ) from error
    return state


_MAGIC = b"gradsurgery multitask_bert state 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states that a training step draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts them back."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
