"""One function per loss: a task's outputs and labels to a scalar."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(
    outputs: Tensor,  # [B, C] logits
    labels: Tensor,  # [B] classes
) -> Tensor:  # []
    """Mean cross-entropy of class logits.

    Example:
        >>> round(cross_entropy(torch.zeros(1, 5), torch.tensor([2])).item(), 4)
        1.6094
    """
    return F.cross_entropy(outputs, labels.to(torch.int64))


def binary_cross_entropy(
    outputs: Tensor,  # [B] logits
    labels: Tensor,  # [B] 0 or 1
) -> Tensor:  # []
    """Mean binary cross-entropy of one logit.

    Example:
        >>> round(binary_cross_entropy(torch.zeros(1), torch.ones(1)).item(), 4)
        0.6931
    """
    return F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype))


def mean_squared_error(
    outputs: Tensor,  # [B] scores
    labels: Tensor,  # [B] scores, 0 to 5
) -> Tensor:  # []
    """Mean squared error of a score.

    Example:
        >>> mean_squared_error(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])).item()
        2.5
    """
    return F.mse_loss(outputs, labels.to(outputs.dtype))


def cosine_regression(
    outputs: Tensor,  # [B] cosines
    labels: Tensor,  # [B] scores, 0 to 5
) -> Tensor:  # []
    """Mean squared error of a cosine, against the score brought to the range -1 to 1.

    Example:
        >>> cosine_regression(torch.tensor([1.0, 0.0]), torch.tensor([5.0, 5.0])).item()
        0.5
    """
    return F.mse_loss(outputs, labels.to(outputs.dtype) / 2.5 - 1)


def cosine_embedding(
    outputs: Tensor,  # [B] cosines
    labels: Tensor,  # [B] scores, 0 to 5
) -> Tensor:  # []
    """Draws pairs with a score above 2.5 together, and pushes the others to a cosine of at most 0.

    Example:
        >>> cosine_embedding(torch.tensor([0.5, 0.5, -0.5]), torch.tensor([4.0, 1.0, 0.0])).item()
        0.3333333432674408
    """
    return torch.where(labels > 2.5, 1 - outputs, outputs.clamp_min(0)).mean()


def multiple_negatives_ranking(
    u: Tensor,  # [B, D]
    v: Tensor,  # [B, D]
) -> Tensor:  # []
    """Each sentence must prefer its own partner, by dot product, to those of the others.

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(multiple_negatives_ranking(u, u).item(), 4)
        0.3133

    Source: Matthew Henderson et al., "Efficient Natural Language Response Suggestion for Smart
    Reply", 2017.
    """
    return F.cross_entropy(u @ v.T, torch.arange(len(u), device=u.device))


LOSSES: Mapping[str, Loss] = {
    "cross-entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "mse": mean_squared_error,
    "cosine-mse": cosine_regression,
    "cosine-embedding": cosine_embedding,
}
# Of the two vectors that a siamese task compares, instead of its outputs and labels.
PAIR_LOSSES: Mapping[str, Loss] = {"mnr": multiple_negatives_ranking}
