"""Rows of one parameter that somebody else made and keeps: read where they lie, never written."""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.gradients.memory import copied, is_dense, strides_of
from gradsurgery.gradients.rows import Rows


class GivenRows(Rows):
    """Stacked gradients ``[T, *shape]`` of a parameter, as rows ``[T, P]`` in their own memory.

    Any order of the elements within a row will do, as long as it is the same in all rows: inner
    products and sums do not depend on it. What is not dense is copied.

    Args:
        parameter: whose gradients they are.
        stack: one for each task, ``[T, *shape]``.

    Example:
        >>> parameter, stack = torch.zeros(2, 3), torch.arange(12.0).view(2, 3, 2).mT
        >>> GivenRows(parameter, stack).matrix.data_ptr() == stack.data_ptr()
        True
    """

    def __init__(self, parameter: Tensor, stack: Tensor) -> None:
        super().__init__(stack.device, stack.dtype, None, [parameter])
        self._given = stack
        self._version = _version(stack)
        first = stack[0]
        if not is_dense(first):
            stack = stack.contiguous()
            first = stack[0]
        self._stack = stack
        self._shape_of_row = first.shape, first.stride()
        self.matrix = stack.as_strided((len(stack), self.num_columns), (stack.stride(0), 1))
        self._out: Tensor | None = None

    def view(self, parameter: Tensor, slot: int) -> Tensor:
        """A task's gradient, to be read."""
        return self._stack[slot]

    def out(self, used: Tensor) -> Tensor:  # [P]
        """Memory for the combined gradient, since none of the rows is ours."""
        self._out = torch.empty_like(used[0])
        return self._out

    def lend(self, parameter: Tensor, slot: int) -> Tensor:
        """The combined gradient, in the memory order that autograd promises for the parameter."""
        assert self._out is not None
        shape, strides = self._shape_of_row
        combined = self._out.as_strided(shape, strides)
        return combined if strides == strides_of(parameter) else copied(parameter, combined)

    def check_unchanged(self) -> None:
        """Refuses gradients that were written to since they were given.

        Raises:
            ValueError: with their shape.
        """
        if _version(self._given) != self._version:
            raise ValueError(
                "grads: must not be written to between take() and surgery() or step(), those of "
                f"shape {tuple(self._given.shape)} were; give take() a clone of them"
            )


def _version(stack: Tensor) -> int | None:
    """Counts the writes to a tensor, where torch does."""
    return None if stack.is_inference() else stack._version
