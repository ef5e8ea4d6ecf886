"""The right answers of methods: Algorithm 1 in float64, on the same batches.

A method is timed only after its answer is checked. The algorithm is written out on whole vectors,
as the paper has it, and shares no code with the library. Methods with a solver are checked against
their own weights of the float64 Gram matrix, which the library's tests hold against 60 digits.

Source: Tianhe Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from benchmarks.speed.methods import Method, Orders
from benchmarks.speed.workloads import Workload

TOLERANCE = 1e-4  # of the norm of an error, relative to that of the answer
# Of a method: peers that add up millions of products in float32 are off by up to 5e-4 where
# gradients all but cancel, which is their precision and not another algorithm.
METHOD_TOLERANCE = 5e-3
_METHOD_TOLERANCE_BF16 = 5e-2


class WrongAnswerError(ValueError):
    """A combined gradient that is not what the method promises."""


def expected_update(
    rows: Tensor,  # [T, P] float64
    orders: Orders,
    *,
    onto_itself: bool,
) -> tuple[Tensor, int]:  # [P], number of projections
    """The sum of all projected gradients.

    Example:
        >>> rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
        >>> update, num_projections = expected_update(rows, [[1], [0]], onto_itself=False)
        >>> update.mul(1e4).round().div(1e4).tolist(), num_projections
        ([0.5848, 3.8012, 3.8012], 2)
    """
    update = torch.zeros_like(rows[0])
    num_projections = 0
    for task, order in enumerate(orders):
        projected = rows[task].clone()
        for other in order:
            if other == task and not onto_itself:
                continue
            dot = projected @ rows[other]
            if dot < 0:
                projected -= dot / (rows[other] @ rows[other]) * rows[other]
                num_projections += 1
        update += projected
    return update, num_projections


def task_rows(workload: Workload, parameters: list[Tensor]) -> Tensor:  # [T, P]
    """Each task's gradient by autograd alone, in float64."""
    return torch.stack(
        [
            _flat(
                torch.autograd.grad(
                    workload.loss(task), parameters, allow_unused=True, materialize_grads=True
                )
            )
            for task in range(workload.num_tasks)
        ]
    )


def check(method: Method) -> float:
    """Compares a method's combined gradient with the algorithm, in the state that is timed.

    Two whole steps come first, because a method may treat its first steps differently.

    Returns:
        The relative error, which the method keeps as well.

    Raises:
        WrongAnswerError: it is above the tolerance, or not a number.
        ValueError: no task conflicts with another, so that nothing would be checked.
    """
    workload = method.workload
    for _ in range(2):
        method()
    shared, separate = workload.shared(), workload.separate()
    rows = task_rows(workload, [*shared, *separate])
    if not bool(rows.isfinite().all()):
        raise WrongAnswerError("gradients: must be finite after two steps, found some that are not")
    orders = method.orders()
    method.zero_grad()
    method.backwards()
    method.surgery()
    found = _flat(
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in (*shared, *separate)
    )
    method.zero_grad()
    expected = rows.sum(0)
    reach = rows.shape[1] if method.scope == "all" else workload.num_shared
    weights = method.weights(rows[:, :reach] @ rows[:, :reach].T)
    if weights is not None:
        expected[:reach] = weights @ rows[:, :reach]
    elif orders is not None:
        expected[:reach], num_projections = expected_update(
            rows[:, :reach], orders, onto_itself=method.projects_onto_itself
        )
        if not num_projections:
            raise ValueError("workload: must have a conflict between tasks, found none")
    error = float((found - expected).norm() / expected.norm())
    uses_bf16 = shared[0].dtype == torch.bfloat16 or workload.features(0).dtype == torch.bfloat16
    tolerance = _METHOD_TOLERANCE_BF16 if uses_bf16 else METHOD_TOLERANCE
    if not error <= tolerance:
        raise WrongAnswerError(
            f"combined gradient: must be that of the algorithm to {tolerance:g}, "
            f"found a relative error of {error:.3g}"
        )
    method.error = error
    return error


def checked(
    makers: Mapping[str, Callable[[Workload], Method]], make_workload: Callable[[], Workload]
) -> tuple[dict[str, Method], dict[str, str]]:
    """Methods whose answer is right, each on its own workload; why the others are not timed."""
    right: dict[str, Method] = {}
    refused: dict[str, str] = {}
    for name, make in makers.items():
        method = make(make_workload())
        try:
            check(method)
        except WrongAnswerError as error:
            refused[name] = f"wrong answer ({error})"
        except (RuntimeError, NotImplementedError) as error:
            refused[name] = f"failed ({' '.join(str(error).split())[:200]})"
        else:
            right[name] = method
    return right, refused


def _flat(tensors: Iterable[Tensor]) -> Tensor:  # [P]
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
