"""Whole numbers hashed alike on every device and process, of a seed, a step and a place."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def key_of(
    seed: int, step: int | Tensor, device: torch.device | str | None
) -> tuple[int | Tensor, torch.device | str | None]:
    """Mixes seed and step into one number, and tells the device that it is wanted on."""
    if isinstance(step, Tensor):
        device = step.device if device is None else device
        step = step.to(device, torch.int64)
    key: int | Tensor = 0  # of the host's numbers as long as there are no others
    for part in (seed, seed >> 32, step, step >> 32):
        key = mix(key, part)
    return key, device


def drawn(number: int, key: int | Tensor, device: torch.device | str | None) -> Tensor:  # [number]
    """Draws 32-bit integers."""
    cells = torch.arange(number, dtype=torch.int64, device=device)
    return cast("Tensor", mix(key, cells))


_MASK = 0xFFFFFFFF
# Odd and below 2**27, so that its product with a 32-bit number never overflows a signed 64-bit one
# and the same bits come out of every device.
_MULTIPLIER = 0x45D9F3B


def mix(key: int | Tensor, value: int | Tensor) -> int | Tensor:
    """A 32-bit number that depends on every bit of a 32-bit key and the low 32 of a value."""
    mixed = ((key ^ (value & _MASK)) + 0x9E3779B9) & _MASK
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * _MULTIPLIER) & _MASK
    return mixed ^ (mixed >> 16)
