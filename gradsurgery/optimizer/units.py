"""Which parameters a method looks at together, and the order of what it is shown of them."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.places import picked
from gradsurgery.gradients.rows import Units
from gradsurgery.optimizer.settings import Settings


def units_of(
    buffer: GradientBuffer, base: Optimizer, settings: Settings, *, needs_gram: bool
) -> Units:
    """Tells which parameters the method looks at together.

    Args:
        buffer: the tasks' gradients.
        base: whose parameter groups may be units.
        settings: the granularity and the scope.
        needs_gram: whether the method looks at gradients; weights of losses are alike for all.
    """
    if not needs_gram:
        return Units()
    if settings.granularity == "group":
        return Units(group["params"] for group in base.param_groups)
    if settings.granularity == "tensor":
        kept = set(buffer.touched() if settings.scope == "all" else buffer.shared())
        if kept:
            parameters = (p for group in base.param_groups for p in group["params"])
            placed = [(place, p) for place, p in enumerate(parameters) if p in kept]
            return Units(([p] for _, p in placed), [place for place, _ in placed])
    return Units()


def by_task(grams: Tensor, buffer: GradientBuffer) -> Tensor:  # [S, T, T]
    """Gram matrices of a buffer's slots as those of its tasks, in their order."""
    slots = [slot for _, slot in sorted(buffer.slots.items())]
    if slots == list(range(len(slots))):
        return grams
    return picked(picked(grams.permute(1, 2, 0), slots).transpose(0, 1), slots).permute(2, 1, 0)
