"""The gradients of one task's loss up to a representation that the tasks share, and no further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def head_gradients(
    loss: Tensor,  # []
    features: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
    """Back-propagates a loss to the features and to the leaves that it reaches without them.

    Args:
        loss: a scalar.
        features: tensors of the loss's graph.
        retain_graph: whether the graph between the two is kept.

    Returns:
        A gradient for each of the features, zero where the loss does not depend on it, and those of
        the leaves, the parameters of the task's head.

    Example:
        >>> feature, head = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> of_features, of_leaves = head_gradients((feature * head).sum(), [feature], False)
        >>> of_features[0].tolist(), of_leaves[head].tolist()
        ([1.0, 1.0], [1.0, 1.0])
    """
    leaves = _leaves_beyond(loss, features)
    grads = torch.autograd.grad(
        loss, [*features, *leaves], retain_graph=retain_graph, allow_unused=True
    )
    of_features = [
        torch.zeros_like(feature) if grad is None else grad
        for feature, grad in zip(features, grads, strict=False)
    ]
    of_leaves = zip(leaves, grads[len(features) :], strict=True)
    return of_features, {leaf: grad for leaf, grad in of_leaves if grad is not None}


def check_features(features: Sequence[Tensor]) -> None:
    """Refuses what cannot be a shared representation.

    Raises:
        TypeError, ValueError: in one line.
    """
    if not features:
        raise ValueError("features: must hold at least one tensor, got none")
    for feature in features:
        if not isinstance(feature, Tensor):
            raise TypeError(f"features: must be tensors, got {type(feature).__name__}")
        if not feature.requires_grad:
            raise ValueError(
                f"features: must need a gradient, one of shape {tuple(feature.shape)} does not; "
                "compute it from trainable parameters, outside torch.no_grad()"
            )


def _leaves_beyond(loss: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of a loss's graph on the near side of the features."""
    ends = {feature.grad_fn for feature in features if feature.grad_fn is not None}
    inputs = {id(feature) for feature in features}
    found: dict[Tensor, None] = {}
    seen: set[Any] = set()
    to_visit: list[Any] = [loss.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen or node in ends:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in inputs:
            found[leaf] = None
        to_visit += [following for following, _ in node.next_functions]
    return list(found)
