"""The two things a run saves: its best model, and the state that an exact resume needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.multitask_bert.record import RecordError, write_whole


def save_model(path: Path, model: nn.Module) -> None:
    """Writes a model's weights as safetensors."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_whole(path, safetensors.torch.save(tensors))


def load_model(path: Path, model: nn.Module) -> None:
    """Reads them back into a model of the same shape.

    Raises:
        RecordError: the file is missing or damaged, or is that of another model.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RecordError(
            f"{path}: must hold this recipe's weights, found {_first_line(error)}; "
            "remove the run folder and run again"
        ) from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the state of a run, after the checksum by which damage is found."""
    content = BytesIO()
    torch.save(dict(state), content)
    digest = hashlib.sha256(content.getvalue()).digest()
    write_whole(path, _MAGIC + digest + content.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Reads the state of a run; nothing in the file is executed.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        digest, body = content[len(_MAGIC) : _HEADER_BYTES], content[_HEADER_BYTES:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            raise ValueError("other bytes than were written")
        state = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
    except Exception as error:  # what torch.load refuses surfaces as almost any type
        raise RecordError(
            f"{path}: must be the state of an interrupted run, found {_first_line(error)}; "
            "remove the run folder and run again"
        ) from error
    return state


_MAGIC = b"gradsurgery multitask_bert state 1\n"
_HEADER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


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
