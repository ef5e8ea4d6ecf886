"""Where the backward of each loss begins: beyond a tensor in which the tasks were put together."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Edge = tuple[Node, int]  # an operation and which of its results

# Operations that put tensors together, that take a part of one, and that work number by number.
_JOINS = re.compile(r"(Stack|Cat)Backward|torch::autograd::CopySlices")
_PARTS = re.compile(
    "(Unbind|Select|Slice|Split|SplitWithSizes|Index|View|ReshapeAlias|UnsafeView|Unsqueeze|Squeeze"
    "|T|Transpose|Permute|Flip|Expand|AsStrided|Alias|Sum|Mean)Backward"
)
_NUMBER_BY_NUMBER = re.compile(
    "(Add|Sub|Rsub|Mul|Div|Neg|Reciprocal|Pow|Exp|Expm1|Log|Log1p|Log2|Sqrt|Rsqrt|Abs|Clamp"
    "|ClampMin|ClampMax|Relu|Sigmoid|Tanh|Softplus|Clone|ToCopy|Where|MseLoss|L1Loss|SmoothL1Loss"
    "|HuberLoss|BinaryCrossEntropy|BinaryCrossEntropyWithLogits)Backward"
    "|torch::autograd::CopyBackwards"
)
_FARTHEST = 64  # operations between a loss and a tensor that it is a part of
_LARGEST = 1 << 20  # numbers in such a tensor
_TAKES_A_PART = re.compile("(Unbind|Select|Slice|Split|SplitWithSizes|Index|AsStrided)Backward")
_CAN_START_ANYWHERE = torch.__version__ >= "2.7"
_KNOWS_SHAPES = hasattr(Node, "_input_metadata")  # from torch 2.5 on


class Roots(NamedTuple):
    """The operations from which a loss's backward starts.

    Attributes:
        edges: results of operations; the loss depends on nothing else.
        are_ones: whether the loss's derivative by each of them is 1, a scalar.
    """

    edges: list[Edge]
    are_ones: bool

    def back_propagate(self, loss: Tensor, retain_graph: bool) -> None:
        """Does what ``loss.backward`` does for all that the loss depends on, and nothing else."""
        edges = [GradientEdge(*edge) for edge in self.edges]
        seeds = None
        if not self.are_ones:
            # One edge may lie below another: what it gets by way of that one comes later.
            blocks = [
                edge.node.register_prehook(lambda grads: (None,) * len(grads))
                for edge in edges
                if edge.node.next_functions
            ]
            try:
                seeds = torch.autograd.grad(loss, edges, retain_graph=True)
            finally:
                for block in blocks:
                    block.remove()
        torch.autograd.backward(edges, seeds, retain_graph=retain_graph)


def beyond_joins(losses: Mapping[Hashable, Tensor]) -> dict[Hashable, Roots]:
    """Finds the losses that are parts of one tensor, such as ``torch.stack(losses).unbind()``, or
    are made of parts of one, such as columns of concatenated outputs of heads. Autograd would send
    zeros from such a loss to all that the other parts depend on, as if it had reached it.

    Args:
        losses: scalars, by task.

    Returns:
        Where to start instead, for each of those losses.

    Raises:
        ValueError: such a loss depends on nothing, or torch is older than 2.7.

    Example:
        >>> weight, bias = torch.ones(3, 2, requires_grad=True).unbind(1)
        >>> both = torch.stack([weight.sum(), bias.sum()])
        >>> [len(roots.edges) for roots in beyond_joins(dict(enumerate(both))).values()]
        [1, 1]
    """
    found = {}
    for name, loss in losses.items():
        if _has_join(loss):
            roots = _roots(loss) if _KNOWS_SHAPES else _roots_without_shapes(loss)
            if roots is not None and not roots.edges:
                raise ValueError(
                    f"losses: must need a gradient, that of task {name!r} is a constant that was "
                    "stacked; give a mapping without the task when it has no loss"
                )
            if roots is not None and not _CAN_START_ANYWHERE:
                raise ValueError(
                    f"losses: must be apart before torch 2.7, that of task {name!r} is a part of a "
                    "tensor; give the list of losses from before torch.stack or torch.cat"
                )
            if roots is not None:
                found[name] = roots
    return found


def check_not_summed(loss: Tensor) -> None:
    """Refuses the sum or mean of losses that were stacked, where it stands for all tasks.

    Raises:
        ValueError: with the way to give the losses apart.
    """
    node = loss.grad_fn
    if node is None or _kind(node) not in ("SumBackward", "MeanBackward"):
        return
    join, result = node.next_functions[0]
    if join is None or not _JOINS.fullmatch(_kind(join)):
        return
    saved = getattr(node, "_saved_self_sym_sizes", ())  # that of what is summed
    if len(_shape(join, result) if _KNOWS_SHAPES else saved) == 1:
        raise ValueError(
            "losses: must be one for each task, got one that is the sum or mean of stacked losses; "
            "give the list from before torch.stack, or {name: loss} where all are one task's"
        )


def _has_join(loss: Tensor) -> bool:
    """Tells whether tensors were put together near a loss."""
    to_visit: list[tuple[Node | None, int]] = [(loss.grad_fn, loss.output_nr)]
    for _ in range(_FARTHEST):
        if not to_visit:
            break
        node, result = to_visit.pop()
        if node is not None:
            kind = _kind(node)
            if _JOINS.fullmatch(kind):
                return True
            if _goes_on(node, result, kind):
                to_visit += node.next_functions
    return False


def _goes_on(node: Node, result: int, kind: str) -> bool:
    """Tells whether tasks may have been put together below an operation: not where it is one of a
    network's, which combines its input with parameters."""
    num_inputs = sum(before is not None for before, _ in node.next_functions)
    if num_inputs < 2 or not _KNOWS_SHAPES:
        return num_inputs == 1
    shape = _shape(node, result)
    return shape.numel() == 1 or (len(shape) == 1 and bool(_NUMBER_BY_NUMBER.fullmatch(kind)))


@torch.no_grad()
def _roots(loss: Tensor) -> Roots | None:
    """Finds what a loss depends on, ``None`` where that is all there is in its graph.

    Goes down from the loss with a mask of the numbers that it depends on, which stays on the CPU.
    """
    edges: dict[Edge, bool] = {}  # whether the derivative is 1
    leaves_out = False
    seen: dict[Edge, list[Tensor]] = {}
    to_visit = [(loss.grad_fn, loss.output_nr, _ones(loss.shape), True, False)]
    while to_visit:
        node, result, mask, is_part, is_beyond = to_visit.pop()
        if node is None or any(torch.equal(mask, other) for other in seen.get((node, result), ())):
            continue
        seen.setdefault((node, result), []).append(mask)
        kind = _kind(node)
        is_join = bool(_JOINS.fullmatch(kind))
        moves_numbers = is_join or bool(_PARTS.fullmatch(kind))
        if not moves_numbers and (is_beyond or not _goes_on(node, result, kind)):
            edges[node, result] = is_part and mask.numel() == 1 and mask.item() == 1
            continue
        inputs = node.next_functions
        masks = _passed_on(node, result, mask, kind, moves_numbers)
        leaves_out = leaves_out or len(masks) < len(inputs)
        for place, passed in masks.items():
            flags = is_part and moves_numbers, is_beyond or is_join
            to_visit.append((*inputs[place], passed, *flags))
    return Roots(list(edges), all(edges.values())) if leaves_out else None


def _roots_without_shapes(loss: Tensor) -> Roots | None:
    """Stands in for :func:`_roots` where torch does not tell shapes: takes a loss for a part of a
    tensor wherever an operation above a join takes a part."""
    node, takes_a_part = loss.grad_fn, False
    while node is not None and not _JOINS.fullmatch(kind := _kind(node)):
        takes_a_part = takes_a_part or bool(_TAKES_A_PART.fullmatch(kind))
        node = next(before for before, _ in node.next_functions if before is not None)
    return Roots([(node, 0)], False) if node is not None and takes_a_part else None


def _passed_on(
    node: Node, result: int, mask: Tensor, kind: str, moves_numbers: bool
) -> dict[int, Tensor]:
    """Masks of what an operation's result was made of, by the place of the input; none for an
    input that the mask leaves out."""
    if kind == "UnbindBackward" and mask.dim() == 0:
        before = _shape(*node.next_functions[0])  # type: ignore[arg-type]
        return {0: _ones(before).zero_().index_fill_(0, torch.tensor(result), 1) * mask}
    if kind == "StackBackward" and mask.dim() == 1:
        return {place: mask[place] for place in mask.nonzero().flatten().tolist()}
    if moves_numbers and mask.numel() <= _LARGEST:
        results: list[Tensor | None] = [None] * len(node._input_metadata)
        results[result] = mask.to(node._input_metadata[result].dtype)
        try:
            # The operation's own derivative moves the mask, wherever the operation itself has run.
            found = node(*results)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError):
            pass
        else:
            parts = dict(enumerate(found if isinstance(found, tuple) else (found,)))
            if kind == "torch::autograd::CopySlices":
                # All but the first were written into it. Masks on a device are not read.
                is_written = parts[0] is None or bool((parts[0] != mask).any())
                for place, part in parts.items():
                    if part is not None and part.device.type != "cpu":
                        parts[place] = _ones(part.shape) * (torch.nan if is_written else 0)
            return {place: part for place, part in parts.items() if part is not None and part.any()}
    shapes = [
        None if before is None else _shape(before, of_before)
        for before, of_before in node.next_functions
    ]
    same = not moves_numbers and _NUMBER_BY_NUMBER.fullmatch(kind)
    return {
        place: mask if same and shape == mask.shape else _ones(shape)
        for place, shape in enumerate(shapes)
    }


def _ones(shape: torch.Size | None) -> Tensor:
    return torch.ones(() if shape is None else shape, device="cpu")


def _kind(node: Node) -> str:
    return node.name().rstrip("0123456789")


def _shape(node: Node, result: int) -> torch.Size:
    return torch.Size(node._input_metadata[result].shape)
