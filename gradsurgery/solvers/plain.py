"""The usual case in Python's own numbers: for few tasks on a CPU, where every operation on tensors
costs more than the arithmetic of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import mul, truediv

import torch
from torch import Tensor

Matrix = list[list[float]]  # T of T

_MOST_MATRICES, _MOST_NUMBERS = 4, 100  # beyond, operations on tensors are as fast
_MOST_ROUNDS = 5  # of pivoting
_TOLERANCE = 1e-13


def on_host(
    gram: Tensor,  # [..., T, T]
    of_one: Callable[[Matrix], list[float] | Matrix | None],
    *,
    fixed: bool | None = None,
) -> Tensor | None:  # [..., T] or [..., T, T]
    """Solves small problems one by one in Python's own numbers, if they are few and usual.

    Each method with such a way has a general one too, which it takes where this gives ``None``: on
    a device, for many or large matrices, and for what is unusual (a gradient that is zero or not
    finite, nearly dependent gradients, signs that do not come right). So nothing here has to treat
    those.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        of_one: finds the numbers for one matrix, or ``None`` where that is unusual.
        fixed: whether to do a fixed amount of work, which is another way.

    Example:
        >>> gram = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
        >>> on_host(gram, lambda rows: [row[0] for row in rows]).tolist()
        [4.0, 1.0]
        >>> on_host(gram, lambda rows: None)
    """
    if fixed or gram.device.type != "cpu" or not 0 < gram.numel() <= _MOST_NUMBERS:
        return None
    batch = gram.shape[:-2]
    if batch.numel() > _MOST_MATRICES:
        return None
    found = []
    for matrix in gram.flatten(0, -3).tolist() if batch else [gram.tolist()]:
        of_this = of_one(matrix)
        if of_this is None:
            return None
        found.append(of_this)
    made = torch.tensor(found, dtype=gram.dtype)
    return made.view(*batch, *made.shape[1:])


def lengths_of(gram: Matrix) -> list[float] | None:
    """Finds the gradients' lengths; ``None`` where one is zero or not finite.

    Example:
        >>> lengths_of([[4.0, 3.0], [3.0, 9.0]])
        [2.0, 3.0]
    """
    squared = [row[i] for i, row in enumerate(gram)]
    if not (min(squared) > 0 and math.isfinite(sum(map(sum, gram)))):
        return None
    return [math.sqrt(number) for number in squared]


def cosines_of(gram: Matrix, lengths: list[float], diagonal: float) -> Matrix:
    """Divides by the lengths, and sets the diagonal.

    Example:
        >>> cosines_of([[4.0, 3.0], [3.0, 9.0]], [2.0, 3.0], 1.0)
        [[1.0, 0.5], [0.5, 1.0]]
    """
    matrix = [
        [number / length / other for number, other in zip(row, lengths, strict=True)]
        for row, length in zip(gram, lengths, strict=True)
    ]
    for i, row in enumerate(matrix):
        row[i] = diagonal
    return matrix


def solved(matrix: Matrix, right: list[float]) -> tuple[list[float], float] | None:
    """Solves a positive definite system, which is the product L D L' of a triangle and a diagonal.

    Returns:
        The solution, and the determinant in units of the diagonal's product; ``None`` where
        rounding leaves a pivot that is not above zero.

    Example:
        >>> solved([[4.0, 2.0], [2.0, 4.0]], [2.0, 4.0])
        ([0.0, 1.0], 0.75)
    """
    lower: Matrix = []  # rows of L, left of its diagonal of ones
    pivots: list[float] = []  # D
    halfway: list[float] = []  # the solution of L y = right
    determinant = 1.0
    for i, row in enumerate(matrix):
        scaled: list[float] = []  # row i of L D
        for number, above in zip(row, lower, strict=False):
            scaled.append(number - sum(map(mul, scaled, above)))
        beside = list(map(truediv, scaled, pivots))
        pivot = row[i] - sum(map(mul, scaled, beside))
        if not pivot > 0:
            return None
        halfway.append(right[i] - sum(map(mul, beside, halfway)))
        lower.append(beside)
        pivots.append(pivot)
        determinant *= pivot / row[i]
    found = list(map(truediv, halfway, pivots))
    for i in range(len(found) - 1, 0, -1):
        for j, number in enumerate(lower[i]):
            found[j] -= number * found[i]
    return found, determinant


def nonneg_of(matrix: Matrix, linear: list[float]) -> list[float] | None:
    """Solves one program of :func:`gradsurgery.solvers.nonneg.nonneg` in a few rounds of pivoting.

    Returns:
        ``None`` where signs are still wrong then.

    Example:
        >>> nonneg_of([[1.0, -0.5], [-0.5, 1.0]], [1.0, -0.5])
        [0.0, 0.5]
    """
    support = [number < 0 for number in linear]
    for _ in range(_MOST_ROUNDS):
        on = [i for i, is_on in enumerate(support) if is_on]
        part = solved([[matrix[i][j] for j in on] for i in on], [-linear[i] for i in on])
        if part is None:
            return None
        x = [0.0] * len(linear)
        for i, number in zip(on, part[0], strict=True):
            x[i] = number
        largest = max(map(abs, x))
        wrong = [
            i
            for i, number in enumerate(linear)
            if (
                x[i] < -_TOLERANCE * largest
                if support[i]
                else sum(map(mul, matrix[i], x)) + number < -_TOLERANCE * (abs(number) + largest)
            )
        ]
        if not wrong:
            return [max(number, 0.0) for number in x]
        for i in wrong:
            support[i] = not support[i]
    return None
