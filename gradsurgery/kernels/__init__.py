"""Chooses the implementation of the passes over the per-task gradients."""

from __future__ import annotations

import os
import shutil
from functools import cache
from types import ModuleType

import torch

from gradsurgery.kernels import blocked, reference


def choose(fused: bool | None = None, *devices: torch.device) -> ModuleType:
    """Chooses the module whose ``gram_matrices`` and ``combine_segments`` to use.

    Args:
        fused: ``None`` takes fused kernels on CUDA devices where Triton works, the blocked passes
            on CPUs and the reference anywhere else, ``False`` the reference, ``True`` insists on
            fused kernels.
        devices: where the gradients are; without any, the question is whether there can be such a
            device.

    Raises:
        ValueError: ``fused=True`` where fused kernels cannot run.

    Example:
        >>> choose(None, torch.device("cpu")).__name__
        'gradsurgery.kernels.blocked'
    """
    types = {device.type for device in devices}
    if fused is None and types == {"cpu"}:
        return blocked
    if fused is False or (fused is None and types != {"cuda"}):
        return reference
    kernels = _fused_kernels()
    obstacle = kernels if isinstance(kernels, str) else _obstacle(kernels.INTERPRETED, devices)
    if isinstance(kernels, ModuleType) and obstacle is None:
        return kernels
    if fused:
        raise ValueError(
            f"fused: must be None or False where {obstacle}, got True; leave it out to take the "
            "best there is"
        )
    return reference


@cache
def _fused_kernels() -> ModuleType | str:
    """The module, imported when it is first wanted, or why it cannot be."""
    try:
        from gradsurgery.kernels import fused
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return fused


def _obstacle(interpreted: bool, devices: tuple[torch.device, ...]) -> str | None:
    """Why fused kernels cannot run, if they cannot."""
    for device in devices:
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) < (8, 0):
                return f"{device} is older than compute capability 8.0"
        elif device.type != "cpu" or not interpreted:
            return f"gradients are on {device}, not on CUDA"
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler, which Triton needs"
    return None
