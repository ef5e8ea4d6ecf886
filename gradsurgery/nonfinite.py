"""Gradients with NaN or infinity in them: found and dropped without reading them on the host."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

OnNonfinite = Literal["propagate", "raise", "skip_task", "skip_step"]


def is_finite(grads: Collection[Tensor]) -> Tensor:  # []
    """Whether every number of some gradients is finite, as a boolean on the first one's device.

    Example:
        >>> is_finite([torch.ones(2), torch.tensor([0.0, float("inf")])])
        tensor(False)
    """
    # The largest absolute value: unlike the sum of the squares it cannot overflow by itself.
    norms = torch._foreach_norm([grad for grad in grads if grad.numel()], torch.inf)
    if not norms:
        return torch.ones((), dtype=torch.bool)
    device = norms[0].device
    return torch.stack([n.to(device, torch.float64) for n in norms]).isfinite().all()


def drop_unless(finite: Tensor, grads: Collection[Tensor]) -> None:
    """Sets gradients to zero unless they are all finite, in place.

    Args:
        finite: what :func:`is_finite` says of them, ``[]``.
        grads: the gradients.
    """
    for grad in grads:
        grad.masked_fill_(~finite.to(grad.device, non_blocking=True), 0)
