"""PCGrad in float64 loops over flat vectors: what every implementation here answers to.

Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]


def project(
    grads: ArrayLike,  # [T, P]
    task: int,
    order: Sequence[int],
) -> tuple[Vector, Vector]:  # [P], [T]
    """One task's projected gradient, and its coefficients in the original gradients."""
    rows = [np.array(row, dtype=np.float64) for row in np.asarray(grads, dtype=np.float64)]
    projected = rows[task].copy()
    coefficients = np.zeros(len(rows))
    coefficients[task] = 1.0
    for other in order:
        if other == task:
            continue
        # `other` stays as it was: the algorithm projects onto original gradients only.
        dot = 0.0
        squared_norm = 0.0
        for a, b in zip(projected, rows[other], strict=True):
            dot += a * b
            squared_norm += b * b
        if dot < 0.0:
            projected = projected - dot / squared_norm * rows[other]
            coefficients[other] -= dot / squared_norm
    return projected, coefficients


def pcgrad(
    grads: ArrayLike,  # [T, P]
    orders: Sequence[Sequence[int]],  # [T, T]
) -> tuple[Vector, Vector]:  # [P], [T]
    """The sum of all projected gradients, and its weights in the original gradients.

    Args:
        grads: per-task gradients, ``[T, P]``.
        orders: row i lists the tasks that task i visits; it may name i itself, which is skipped.
    """
    rows = np.asarray(grads, dtype=np.float64)
    update = np.zeros(rows.shape[1])
    weights = np.zeros(rows.shape[0])
    for task in range(rows.shape[0]):
        projected, coefficients = project(rows, task, [int(other) for other in orders[task]])
        update = update + projected
        weights = weights + coefficients
    return update, weights


def every_update(grads: ArrayLike) -> list[Vector]:
    """The updates that the orders can lead to: ``(T-1)!`` orders for each of T tasks."""
    num_tasks = np.asarray(grads).shape[0]
    choices = [
        list(permutations([other for other in range(num_tasks) if other != task]))
        for task in range(num_tasks)
    ]
    return [pcgrad(grads, orders)[0] for orders in product(*choices)]
