"""GradNorm: weights that learn to give every task the same pace of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.method import Method, Seen
from gradsurgery.methods.by_task import ByTask
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import poisoned

if TYPE_CHECKING:
    from typing_extensions import Unpack


def gradnorm_weights(
    gram: Tensor,  # [..., T, T]
    ratios: Tensor,  # [T]
    weights: Tensor,  # [..., T]
    *,
    alpha: float = 1.5,
    lr: float = 0.025,
) -> Tensor:  # [..., T]
    r"""Weights of the next step, from those of this one.

    .. math::
        \tilde w_i = \max\Bigl(0,\; w_i - \eta\,
        \mathrm{sign}\bigl(w_i \lVert g_i \rVert - \bar G\, r_i^\alpha\bigr)\Bigr), \qquad
        w_i \leftarrow \tilde w_i\, \frac{\sum_j w_j}{\sum_j \tilde w_j}

    with :math:`\bar G` the mean of all :math:`w_i \lVert g_i \rVert`, and :math:`r_i` the ratio of
    task i over the mean of all ratios. The sign is that of the derivative of the paper's
    :math:`\sum_i \lvert w_i \lVert g_i \rVert - \bar G r_i^\alpha \rvert`, whose second backward
    lengths of gradients make unnecessary. The paper takes steps of Adam, which are about as long
    and keep averages; these do not depend on the scale of the gradients.

    A task whose gradient is zero, or whose ratio is not a number of at least 0, is left out and
    keeps its weight. Where an inner product is not finite all weights stay.

    Args:
        gram: inner products of the tasks' gradients, of which only the lengths count,
            ``[..., T, T]``.
        ratios: of each loss to its first value, ``[T]``.
        weights: of this step, ``[..., T]``.
        alpha: how strongly tasks that learn slowly are favoured; 0 makes all gradients equally
            long. The paper tunes it, 1.5 in most of its runs and 0.12 in one; SamsungLabs has 2.
        lr: :math:`\eta`, how far a weight moves in a step; 0.025 in the paper, with Adam.

    Returns:
        Weights ``[..., T]`` with the sum of those given.

    Example:
        >>> gram = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> ones = torch.ones(2)
        >>> [round(weight, 3) for weight in gradnorm_weights(gram, ones, ones).tolist()]
        [0.975, 1.025]

    Source: Zhao Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", 2018.
    """
    squared = gram.diagonal(dim1=-2, dim2=-1)
    ratios = ratios.to(gram).expand(squared.shape)
    counts = (squared > 0) & (ratios >= 0) & ratios.isfinite()
    lengths = weights * squared.sqrt()
    mean = _mean_of(lengths, counts)
    pace = torch.where(counts, ratios / _mean_of(ratios, counts), 1)
    step = torch.sign(lengths - mean * pace**alpha)
    moved = torch.where(counts, (weights - lr * step).clamp_min(0), 0)
    total = torch.where(counts, weights, 0).sum(-1, keepdim=True)
    moved = torch.where(counts, moved * (total / moved.sum(-1, keepdim=True)), weights)
    is_finite = (moved + 0 * gram.sum(-1)).isfinite().all(-1, keepdim=True)
    return torch.where(is_finite, moved, weights)


def _mean_of(values: Tensor, counts: Tensor) -> Tensor:  # [..., T] -> [..., 1]
    return torch.where(counts, values, 0).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True)


class GradNormMethod(Method):
    """Weighs by what :func:`gradnorm_weights` has made of the steps before."""

    needs_losses = True

    def __init__(self, alpha: float, lr: float) -> None:
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha: must be at least 0, got {alpha}; 0 makes lengths equal")
        if not 0 < lr < 1:
            raise ValueError(f"lr: must be above 0 and below 1, got {lr}; it is that of weights")
        self.alpha = alpha
        self.lr = lr
        self._weights = ByTask(start=1.0)
        self._first = ByTask(start=0.0)  # losses; 0 where there was none

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        assert seen.losses is not None
        losses = seen.losses.to(seen.gram)[None]
        whole = replace(seen, units=(0,))  # a loss is one of all units
        first = self._first.get(whole, like=losses)
        # Nothing is learned in a step that `GradScaler` takes back, nor is its loss the first one.
        is_clean = seen.gram.sum().isfinite()
        is_first = (first == 0) & (losses > 0) & losses.isfinite() & is_clean
        first = torch.where(is_first, losses, first)
        self._first.set(whole, first)
        ratios = torch.where(first > 0, losses / first, torch.nan)[0]
        weights = self._weights.get(seen, like=seen.gram[..., 0])
        used = poisoned(weights, seen.gram)
        moved = gradnorm_weights(seen.gram, ratios, weights, alpha=self.alpha, lr=self.lr)
        self._weights.set(seen, torch.where(is_clean, moved, weights))
        return used

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights.saved(), "first_losses": self._first.saved()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights.restore(state["weights"])
        self._first.restore(state["first_losses"])


class GradNorm(MultiTaskOptimizer):
    r"""Learns weights that give every task the same pace of training.

    .. math::
        u = \sum_i w_i\, g_i, \qquad \lVert w_i\, g_i \rVert \to \bar G
        \left(\frac{\ell_i / \ell_i^{(0)}}{\mathrm{mean}_j\, \ell_j / \ell_j^{(0)}}\right)^\alpha

    with :math:`\bar G` the mean length of the weighted gradients. Weights are 1 at first, move by
    ``lr`` in each step and add up to T. Sum-like. Costs no second backward, but the tasks'
    gradients are kept apart. A task that is absent keeps its weight and its first loss
    :math:`\ell_i^{(0)}`, which is the first above 0; so does one whose gradient is zero. In blocks
    the losses must be shown: ``block.backward(loss)``.

    Lengths are those of all shared parameters, where the paper takes those of the last shared layer
    to save time. Task-specific parameters keep their plain gradients, where the paper weighs the
    losses.

    Args:
        base: the optimizer that takes the step.
        alpha: how strongly tasks that learn slowly are favoured, at least 0; the paper tunes it.
        lr: how far a weight moves in a step; 0.025 in the paper, with Adam.
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, ``alpha`` or ``lr`` is out of its
            range, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = GradNorm(torch.optim.SGD([weight], lr=0.0), lr=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     optimizer.backward([weight[0], 4 * weight[1]])
        ...     optimizer.step()
        >>> [round(number, 2) for number in weight.grad.tolist()]
        [1.2, 3.2]

    Source: Zhao Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", 2018.
    """

    def __init__(
        self, base: Optimizer, *, alpha: float = 1.5, lr: float = 0.025, **options: Unpack[Options]
    ) -> None:
        super().__init__(base, GradNormMethod(alpha, lr), **options)
