"""The gradients of one task's loss up to a representation that the tasks share, and no further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.memory import is_whole, strides_of
from gradsurgery.nonfinite import drop_unless


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
    of_leaves: dict[Tensor, Tensor] = {}
    memories: set[int] = set()
    for leaf, grad in zip(leaves, grads[len(features) :], strict=True):
        if grad is not None:
            of_leaves[leaf] = _own(leaf, grad, memories)
    return of_features, of_leaves


class FeatureGradients:
    """What several losses send back to a representation, and to their heads beyond it.

    Args:
        losses: scalars, which may share a graph.
        features: tensors of that graph, F numbers in all.
        retain_graph: whether the graph beyond the features is kept.

    Attributes:
        grads: the gradients of the features, a row for each loss, ``[T, F]``.
        heads: those of the leaves that each loss reaches without them.
    """

    def __init__(
        self, losses: Sequence[Tensor], features: Sequence[Tensor], retain_graph: bool
    ) -> None:
        self._features = features
        self.heads: list[dict[Tensor, Tensor]] = []
        rows = []
        for place, loss in enumerate(losses):
            # A graph that losses share must last until the last of them.
            retain = retain_graph or place + 1 < len(losses)
            of_features, of_leaves = head_gradients(loss, features, retain)
            rows.append(torch.cat([grad.flatten() for grad in of_features]))
            self.heads.append(of_leaves)
        self.grads = torch.stack(rows)

    def of(self, place: int) -> list[Tensor]:
        """All gradients of one loss."""
        return [self.grads[place], *self.heads[place].values()]

    def drop(self, failed: Tensor) -> None:  # [T]
        """Sets those of the losses that ``failed`` to zero, in place."""
        for place in range(len(self.heads)):
            drop_unless(~failed[place], self.of(place))

    def back_propagate(self, update: Tensor, retain_graph: bool) -> None:  # [F]
        """Sends an update of the features on to the leaves below, and adds the heads' gradients."""
        parts = update.split([feature.numel() for feature in self._features])
        upstream = [part.view_as(f) for part, f in zip(parts, self._features, strict=True)]
        torch.autograd.backward(list(self._features), upstream, retain_graph=retain_graph)
        for of_leaves in self.heads:
            for leaf, grad in of_leaves.items():
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad


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


def _own(leaf: Tensor, grad: Tensor, memories: set[int]) -> Tensor:
    """A gradient as autograd itself would have left it in ``.grad``: in the leaf's memory order,
    and in memory of its own, none of the ``memories`` of others."""
    memory = grad.untyped_storage().data_ptr()
    if memory in memories or not is_whole(grad) or grad.stride() != strides_of(leaf):
        strides = strides_of(leaf)
        grad = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(
            grad
        )
    memories.add(memory)
    return grad


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
