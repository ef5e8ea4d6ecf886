"""GradVac: PCGrad with a target for the cosine of every pair, which follows their usual cosine."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_TARGET = 1 - 1e-6


def gradvac_weights(
    gram: Tensor,  # [..., T, T]
    targets: Tensor,  # [..., T, T]
    order: Tensor,  # [T, T]
    beta: float = 0.5,
) -> tuple[Tensor, Tensor]:  # [..., T], [..., T, T]
    r"""Weights that lift every pair's cosine to its target, and the targets of the next step.

    Task :math:`i` visits the others in its order. With :math:`\phi` the cosine of its vector
    :math:`g_i^V` with the *original* :math:`g_j`, and :math:`\hat\phi` the pair's target:

    .. math::
        \phi < \hat\phi:\; g_i^V \leftarrow g_i^V + \frac{\lVert g_i^V \rVert
        (\hat\phi \sqrt{1 - \phi^2} - \phi \sqrt{1 - \hat\phi^2})}
        {\lVert g_j \rVert \sqrt{1 - \hat\phi^2}}\, g_j, \qquad
        \hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi

    Sum-like. With all targets 0 it is PCGrad with the same orders. A gradient that is zero is not
    visited, and its targets stay.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        targets: target cosines, row i those of task i's visits, 0 at first, ``[..., T, T]``.
        order: row i lists the tasks in the order in which task i visits them, ``[T, T]`` integers;
            a task's visit to itself is skipped.
        beta: how fast targets follow; 0.5 in the usual implementations.

    Returns:
        Weights ``[..., T]`` and new targets ``[..., T, T]``.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> order = torch.tensor([[1, 0], [0, 1]])
        >>> weights, _ = gradvac_weights(gram, torch.zeros_like(gram), order)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [2.2222, 1.5789]

    Source: Zirui Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models", 2021.
    """
    num_tasks = gram.shape[-1]
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    coefficients = torch.eye(num_tasks, dtype=gram.dtype, device=gram.device).repeat(
        *gram.shape[:-2], 1, 1
    )
    products = gram  # of task i's vector with every original gradient
    squared = lengths * lengths
    targets = targets.clone()
    me = torch.arange(num_tasks, device=gram.device)
    for visit in range(num_tasks):
        other = order[:, visit]
        length = lengths[..., other]
        places = other.unsqueeze(-1).expand(*gram.shape[:-1], 1)
        product = products.gather(-1, places).squeeze(-1)
        target = targets.gather(-1, places).squeeze(-1)
        own_length = squared.clamp_min(0).sqrt()
        met = (other != me) & (own_length * length > 0)
        cosine = product / own_length / length
        cosine = torch.where(met, cosine, 0).clamp(-1, 1)
        aim = target.clamp(max=_LARGEST_TARGET)
        beside = (1 - aim * aim).sqrt()
        step = own_length / length * (aim * (1 - cosine * cosine).sqrt() / beside - cosine)
        step = torch.where(met & (cosine < aim), step, 0)
        coefficients.scatter_add_(-1, places, step.unsqueeze(-1))
        products = torch.addcmul(products, step.unsqueeze(-1), gram[..., other, :])
        squared = squared + step * (2 * product + step * length * length)
        moved = torch.where(met, torch.lerp(target, cosine, beta), target)
        targets.scatter_(-1, places, moved.unsqueeze(-1))
    poison = 0 * gram.sum((-2, -1))
    return coefficients.sum(-2) + poison.unsqueeze(-1), targets
