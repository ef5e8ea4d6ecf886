"""Checks of what an optimizer is made with, each error one line."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch


def check_integer(argument: str, found: object, at_least: int | None = None) -> None:
    """Refuses what is not a whole number, or is too small a one.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise TypeError(f"{argument}: must be a whole number, got {type(found).__name__}")
    if at_least is not None and int(found) < at_least:
        raise ValueError(f"{argument}: must be at least {at_least}, got {found}")


def check_choice(argument: str, found: object, choices: Sequence[str]) -> None:
    """Refuses what is none of the choices.

    Raises:
        ValueError: with the argument's name.
    """
    if found not in choices:
        raise ValueError(f"{argument}: must be one of {', '.join(choices)}, got {found!r}")


def check_floating(argument: str, found: object) -> None:
    """Refuses what is neither a floating type nor ``None``.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if found is None:
        return
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{argument}: must be a torch.dtype, got {type(found).__name__}")
    if not found.is_floating_point:
        raise ValueError(f"{argument}: must be a floating type, got {found}")
