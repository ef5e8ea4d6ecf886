"""Checks of what an optimizer is made with, each error one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Shared = Tensor | nn.Module | Iterable[Tensor | nn.Module]

_MOST_BITS = 2000  # of a whole number that torch.load(weights_only=True) reads


def plain(argument: str, found: Any) -> Any:
    """The equal value of a built-in type, as a checkpoint can hold it.

    Returns:
        ``None``, a ``bool``, ``int``, ``float``, ``str``, ``bytes``, ``torch.dtype``, or a tuple of
        such: what ``torch.load(weights_only=True)`` reads.

    Raises:
        TypeError, ValueError: there is no such value; with the argument's name.

    Example:
        >>> plain("task", ("a", torch.Size([2])))
        ('a', (2,))
    """
    if type(found).__module__ == "numpy" and hasattr(found, "item"):
        found = found.item()
    if found is None or isinstance(found, (bool, torch.dtype)):
        return found
    if isinstance(found, str):
        return str.__str__(found)
    if isinstance(found, bytes):
        return bytes(found)
    if isinstance(found, tuple):
        return tuple(plain(argument, part) for part in found)
    if isinstance(found, Integral):
        if int(found).bit_length() > _MOST_BITS:
            raise ValueError(
                f"{argument}: must have at most {_MOST_BITS} bits, got a longer number"
            )
        return int(found)
    if isinstance(found, float) or (isinstance(found, Real) and float(found) == found):
        return float(found)
    remedy = "use its .name" if isinstance(found, Enum) else "use a str"
    raise TypeError(
        f"{argument}: must be a str, a number or a tuple of such, which a checkpoint can be read "
        f"with, got {type(found).__name__}; {remedy}"
    )


def check_integer(argument: str, found: Any, at_least: int | None = None) -> int:
    """Refuses what is not a whole number, or is too small a one; returns it as an ``int``.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise TypeError(f"{argument}: must be a whole number, got {type(found).__name__}")
    if at_least is not None and int(found) < at_least:
        raise ValueError(f"{argument}: must be at least {at_least}, got {found}")
    return int(plain(argument, found))


def check_places(argument: str, found: Any, number: int) -> None:
    """Refuses what is not a list of different places below ``number``.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if not isinstance(found, (list, tuple)):
        raise TypeError(f"{argument}: must be a list of places, got {type(found).__name__}")
    for place in found:
        if check_integer(argument, place, at_least=0) >= number:
            raise ValueError(f"{argument}: must be below {number}, got {place}")
    if len(set(found)) < len(found):
        raise ValueError(f"{argument}: must name each place once, got {list(found)}")


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


def parameters_in(argument: str, found: object, base: Optimizer) -> frozenset[Tensor]:
    """Collects parameters and those of modules.

    Parameters that need no gradient may be none of the optimizer's: they may become so.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    known = {parameter for group in base.param_groups for parameter in group["params"]}
    collected: list[Tensor] = []
    for part in [found] if isinstance(found, (Tensor, nn.Module)) else _each(argument, found):
        if not isinstance(part, (Tensor, nn.Module)):
            raise TypeError(
                f"{argument}: must be parameters or modules, got {type(part).__name__}; "
                "give it model.trunk or model.trunk.parameters()"
            )
        collected += part.parameters() if isinstance(part, nn.Module) else [part]
    for parameter in collected:
        if parameter.requires_grad and parameter not in known:
            raise ValueError(
                f"{argument}: must be parameters of base, found one of shape "
                f"{tuple(parameter.shape)} that it has not; give base the parameters first"
            )
    if not collected:
        raise ValueError(f"{argument}: must hold at least one parameter, got none")
    return frozenset(collected)


def _each(argument: str, found: object) -> Iterable[object]:
    if isinstance(found, Iterable) and not isinstance(found, str):
        return found
    raise TypeError(
        f"{argument}: must be parameters or modules, got {type(found).__name__}; "
        "give it model.trunk or model.trunk.parameters()"
    )
