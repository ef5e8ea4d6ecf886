"""Chooses the implementation of the passes over the per-task gradients."""

from __future__ import annotations

from types import ModuleType

from gradsurgery.kernels import reference


def choose(fused: bool | None = None) -> ModuleType:
    """The module whose ``gram_matrix`` and ``combine`` to use.

    Args:
        fused: ``None`` decides by itself, ``False`` takes the reference, ``True`` insists on fused
            kernels.

    Raises:
        ValueError: ``fused=True`` where there are no fused kernels.

    Example:
        >>> choose(fused=False).__name__
        'gradsurgery.kernels.reference'
    """
    if fused:
        raise ValueError(
            "fused: must be None or False, because this version has no fused kernels, got True; "
            "leave it out to take the best there is"
        )
    return reference
