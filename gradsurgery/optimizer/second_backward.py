"""The second backward of losses, with weights that sketches of their gradients gave."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import torch
from torch import Tensor

from gradsurgery.gradients.shards import is_spread


def check_alone(parameters: Iterable[Tensor], *, has_group: bool) -> None:
    """Refuses processes, which would have to wait for each other between the two backwards.

    Args:
        parameters: those of the optimizer, none of which may be sharded.
        has_group: whether there are processes with the same parameters.

    Raises:
        ValueError: with the remedy.
    """
    is_sharded = any(is_spread(parameter) for parameter in parameters)
    if is_sharded or has_group:
        raise ValueError(
            'backward(): must be left out where there are memory="sketch" and '
            f"{'sharded parameters' if is_sharded else 'a process_group'}; run each task's "
            "backward in a block"
        )


def back_propagate(
    losses: Sequence[Tensor],  # [T] of []
    weights: Sequence[Tensor],  # [T] of [2]
    parameters: Iterable[Tensor],
    shared: Container[Tensor],
    retain_graph: bool,
) -> None:
    """Adds gradients of the weighted losses to ``.grad``.

    Args:
        losses: of the tasks.
        weights: of each on the shared parameters, and on all others.
        parameters: all that may get a gradient.
        shared: which of them are shared.
        retain_graph: keep the graph; by default it is freed.

    Example:
        >>> one, other = (torch.ones(1, requires_grad=True) for _ in range(2))
        >>> loss = (one * other).sum()
        >>> back_propagate([loss], [torch.tensor([2.0, 1.0])], [one, other], {one}, False)
        >>> one.grad.item(), other.grad.item()
        (2.0, 1.0)
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    others = [parameter for parameter in wanted if parameter not in shared]
    passes = (([p for p in wanted if p in shared], bool(others)), (others, False))
    for use, (inputs, is_followed) in enumerate(passes):
        if inputs:
            seeds = [w[use].to(loss).view_as(loss) for w, loss in zip(weights, losses, strict=True)]
            torch.autograd.backward(
                losses, seeds, retain_graph=retain_graph or is_followed, inputs=inputs
            )
