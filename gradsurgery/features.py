"""The gradients of losses up to a representation that they share, and what goes on below it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Edge = tuple[Any, int]  # a node of the graph, and which output of its operation


class FeatureGradients:
    """Back-propagates several losses to a representation, and to the leaves reached without it.

    The features are a cut through the graph: a loss's gradient of one of them is that of the paths
    that meet no other feature before, and its gradient of a leaf that of the paths that meet none.
    So every path from a loss to a leaf is counted once, by the first feature on it.

    Args:
        losses: scalars, which may share a graph.
        features: tensors of that graph, F numbers in all; a complex number is two.
        retain_graph: whether the graph beyond the features is kept.
        copy: whether :meth:`of` must give memory that nobody else holds.

    Attributes:
        grads: the gradients of the features, a row for each loss, ``[T, F]``.
        heads: for each loss those of the leaves that it reaches around the features.

    Raises:
        ValueError: no loss depends on the features, or a checkpoint that cannot be cut.

    Example:
        >>> feature, head = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> found = FeatureGradients([(feature * head).sum()], [feature], retain_graph=False)
        >>> found.grads.tolist(), found.heads[0][head].tolist()
        ([[1.0, 1.0]], [1.0, 1.0])
    """

    def __init__(
        self,
        losses: Sequence[Tensor],
        features: Sequence[Tensor],
        retain_graph: bool,
        copy: bool = False,
    ) -> None:
        cuts = {_edge(feature): feature for feature in features}  # each of them once
        self._features = list(cuts.values())
        walks = [_walk([_edge(loss)], cuts) for loss in losses]
        below, _ = _walk([edge for node, _ in cuts for edge in node.next_functions], ())
        leaves = [{n: n.variable for n in beyond if _is_leaf(n)} for beyond, _ in walks]
        aims = {node for node, _ in cuts}.union(*leaves)
        goes_around = not below.keys().isdisjoint(aims)
        _check([*walks, (below, ())] if goes_around else walks)

        tensors = [self._features + list(of_one.values()) for of_one in leaves]
        rows, self.heads = [], []
        self._is_reached = [False] * len(self._features)
        with _undisturbed({tensor for some in tensors for tensor in some}, cuts, goes_around):
            for place, (loss, inputs) in enumerate(zip(losses, tensors, strict=True)):
                # A graph that losses share must last until the last of them, and what leads around
                # the features until the last pass.
                retain = retain_graph or goes_around or place + 1 < len(losses)
                found = torch.autograd.grad(loss, inputs, retain_graph=retain, allow_unused=True)
                row = []
                for number, feature in enumerate(self._features):
                    grad = found[number]
                    self._is_reached[number] |= grad is not None
                    row.append(_flat(torch.zeros_like(feature) if grad is None else grad))
                rows.append(torch.cat(row))
                skipped = len(self._features)
                of_leaves = zip(inputs[skipped:], found[skipped:], strict=True)
                self.heads.append(
                    {leaf: g.clone() if copy else g for leaf, g in of_leaves if g is not None}
                )
        self._sizes = [part.numel() for part in row]
        self.grads = torch.stack(rows)

    def of(self, place: int) -> list[Tensor]:
        """All gradients of one loss."""
        return [self.grads[place], *self.heads[place].values()]

    def scale_heads(self, place: int, weight: float) -> None:
        """Multiplies what one loss sends around the features by the weight of that loss."""
        if weight != 1.0:
            heads = self.heads[place]
            self.heads[place] = {leaf: grad * weight for leaf, grad in heads.items()}

    def back_propagate(self, update: Tensor, retain_graph: bool) -> None:  # [F]
        """Adds to ``.grad`` what an update of the features comes to in the leaves below, and the
        gradients of the leaves that were reached around them."""
        parts = zip(self._features, update.split(self._sizes), self._is_reached, strict=True)
        pairs = [(feature, _like(feature, part)) for feature, part, reached in parts if reached]
        for of_leaves in self.heads:
            pairs += of_leaves.items()
        # All in one pass, so that autograd's own rules hold for each leaf: memory, hooks.
        torch.autograd.backward(
            [tensor for tensor, _ in pairs], [grad for _, grad in pairs], retain_graph=retain_graph
        )


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
        if feature.layout != torch.strided:
            raise ValueError(
                f"features: must be dense, got one of layout {feature.layout}; use backward()"
            )
        if feature.device != features[0].device:
            raise ValueError(
                f"features: must be on one device, got {features[0].device} and {feature.device}; "
                "use backward()"
            )


def _check(walks: Iterable[tuple[Collection[Any], Collection[Edge]]]) -> None:
    """Refuses graphs in which the gradients of the features cannot be told."""
    walks = list(walks)
    if not any(ends for _, ends in walks):
        raise ValueError(
            "features: must be what a loss is made of, no loss depends on any of them; give the "
            "tensors that the losses were computed from, or use backward()"
        )
    if any(
        type(node).__name__ == "CheckpointFunctionBackward" for nodes, _ in walks for node in nodes
    ):
        raise ValueError(
            "features: must not meet checkpoint(use_reentrant=True) on the way from a loss or on a "
            "path around them, because it hides parameters; use_reentrant=False, or use backward()"
        )


@contextmanager
def _undisturbed(
    tensors: Collection[Tensor], cuts: Iterable[Edge], goes_around: bool
) -> Iterator[None]:
    """Keeps gradients of single losses from the hooks and retained gradients of ``tensors``, which
    the last pass serves with the total, and where they would go on below ``cuts`` stops them."""
    hooks = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    retained = {tensor: tensor.grad for tensor in tensors if tensor.retains_grad}
    handles = [
        node.register_prehook(partial(_stop, number)) for node, number in cuts if goes_around
    ]
    for of_tensor, _ in hooks:
        of_tensor.clear()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for of_tensor, hidden in hooks:
            of_tensor.update(hidden)
        for tensor, grad in retained.items():
            tensor.grad = grad


def _stop(number: int, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Sets one of the gradients that enter a node to zero: not to ``None``, which hooks of tensors
    below would be given too."""
    return tuple(
        torch.zeros_like(grad) if place == number and grad is not None else grad
        for place, grad in enumerate(grads)
    )


def _edge(tensor: Tensor) -> Edge:
    """Where gradients of a tensor enter the graph."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    with torch.enable_grad():
        return get_gradient_edge(tensor).node, 0


def _walk(start: Iterable[Edge], cuts: Collection[Edge]) -> tuple[dict[Any, None], set[Edge]]:
    """The nodes that gradients reach from some edges on if they stop at the cuts, and those cuts
    at which they do."""
    nodes: dict[Any, None] = {}
    ends: set[Edge] = set()
    to_visit = list(start)
    while to_visit:
        edge = to_visit.pop()
        node = edge[0]
        if edge in cuts:
            ends.add(edge)
        elif node is not None and node not in nodes:
            nodes[node] = None
            to_visit += node.next_functions
    return nodes, ends


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _flat(grad: Tensor) -> Tensor:  # [...] -> [F]
    """A gradient as real numbers."""
    if grad.layout != torch.strided:  # that of an embedding's rows
        grad = grad.to_dense()
    return (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).flatten()


def _like(feature: Tensor, part: Tensor) -> Tensor:  # [F] -> [...]
    """Undoes :func:`_flat`, in the type of the feature."""
    if feature.is_complex():
        # A copy, because pairs of real numbers must begin at an even place.
        pairs = part.to(feature.dtype.to_real(), copy=True).view(*feature.shape, 2)
        return torch.view_as_complex(pairs)
    return part.to(feature.dtype).view_as(feature)
