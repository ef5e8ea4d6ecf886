"""State of a weighting, saved as a checkpoint can hold it and taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.arguments import plain

# What every module has, and no weighting's state.
_OF_MODULES = frozenset(vars(nn.Module()))


def state_of(weighting: Callable[..., Any]) -> dict[str, Any] | None:
    """Copies the state of a weighting that has ``state_dict`` and ``load_state_dict``.

    Of an ``nn.Module`` that is more than its ``state_dict``: buffers that are ``None``, and plain
    attributes, in which TorchJD's GradVac and PCD keep what their buffers belong to.

    Raises:
        TypeError: the state holds something that a checkpoint could not be read with.
    """
    if not (hasattr(weighting, "state_dict") and hasattr(weighting, "load_state_dict")):
        return None
    state = {"state_dict": _copied(weighting.state_dict())}
    if isinstance(weighting, nn.Module):
        state["attributes"] = {
            prefix: _attributes(module) for prefix, module in weighting.named_modules()
        }
    return state


def take_back(weighting: Any, state: Mapping[str, Any]) -> None:
    """Lets a weighting go on from what :func:`state_of` gave."""
    saved = _copied(state["state_dict"])
    if isinstance(weighting, nn.Module):
        for prefix, module in weighting.named_modules():
            for name, value in state.get("attributes", {}).get(prefix, {}).items():
                if name in module._buffers:
                    module._buffers[name] = value
                else:
                    vars(module)[name] = _copied(value)
            # load_state_dict() copies into the tensors that are there: None is none of them.
            for name, buffer in module._buffers.items():
                value = saved.get(f"{prefix}.{name}" if prefix else name)
                if isinstance(value, Tensor) and (buffer is None or buffer.shape != value.shape):
                    module._buffers[name] = torch.empty_like(value)
    weighting.load_state_dict(saved)


def _attributes(module: nn.Module) -> dict[str, Any]:
    kept: dict[str, Any] = {name: None for name, b in module._buffers.items() if b is None}
    for name, value in vars(module).items():
        if name not in _OF_MODULES:
            try:
                kept[name] = _copied(value)
            except TypeError:
                continue  # a function or another object, which is part of how it was made
    return kept


def _copied(state: Any) -> Any:
    """A copy of tensors, their types and devices and plain values in mappings, lists and tuples."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {plain("weighting", key): _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    if isinstance(state, tuple):
        return tuple(_copied(value) for value in state)
    if isinstance(state, (torch.dtype, torch.device)):  # what TorchJD's buffers belong to
        return state
    return plain("weighting", state)
