"""Aligned-MTL: gradients turned until they are orthogonal and equally long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_choice
from gradsurgery.method import Method, Seen
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options
from gradsurgery.solvers.cosines import poisoned, times
from gradsurgery.solvers.spectrum import spectrum

if TYPE_CHECKING:
    from typing_extensions import Unpack

RANK_THRESHOLD = 1e-6  # of the largest eigenvalue


def aligned_mtl_weights(
    gram: Tensor,  # [..., T, T]
    scale: Literal["min", "median", "rmse"] = "min",
    *,
    preference: Tensor | None = None,  # [T]
    fixed: bool | None = None,
    fused: bool = False,
) -> Tensor:  # [..., T]
    r"""Weights that make all principal components of the gradients equally strong.

    .. math::
        w = \sigma\, V_r \Lambda_r^{-1/2} V_r^\top p, \qquad G = V \Lambda V^\top

    over the r eigenvalues above :math:`10^{-6}` of the largest. The rank decision is on lengths as
    well: a task whose gradient is a thousand times shorter than another's drops out, and as an
    eigenvalue crosses the threshold the update jumps. Sum-like, with :math:`p_i = 1`. Weights may
    be negative. A Gram matrix that is zero gives the preference.

    Args:
        gram: inner products of the tasks' gradients, ``[..., T, T]``.
        scale: what :math:`\sigma^2` is: the least of the r eigenvalues, as in the paper, their
            median (the lower one), or their mean.
        preference: p, ``[T]``; by default 1.
        fixed: whether to do a fixed amount of work; by default away from the CPU.
        fused: whether that work is one launch of a fused kernel, for up to 16 tasks.

    Returns:
        Weights ``[..., T]``.

    Raises:
        ValueError: ``scale`` is none of these.

    Example:
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]], dtype=torch.float64)
        >>> [round(weight / 2, 4) for weight in aligned_mtl_weights(gram).tolist()]
        [0.5591, 0.4083]

    Source: Dmitry Senushkin et al., "Independent Component Alignment for Multi-Task Learning",
    2023.
    """
    values, vectors = spectrum(gram, fixed=fixed, fused=fused)
    kept = values > RANK_THRESHOLD * values.amax(-1, keepdim=True)
    kept = kept & (values > 0)
    num_kept = kept.sum(-1, keepdim=True).clamp_min(1)
    if scale == "min":
        squared = torch.where(kept, values, torch.inf).amin(-1, keepdim=True)
    elif scale == "rmse":
        squared = torch.where(kept, values, 0).sum(-1, keepdim=True) / num_kept
    elif scale == "median":
        ordered = torch.where(kept, values, torch.inf).sort(-1).values
        squared = ordered.gather(-1, (num_kept - 1) // 2)
    else:
        raise ValueError(f"scale: must be one of min, median, rmse, got {scale!r}")
    stretch = torch.where(kept, (squared / torch.where(kept, values, 1)).sqrt(), 0)
    preferred = torch.ones_like(values) if preference is None else preference.to(values)
    preferred = preferred.expand_as(values)
    aligned = times(vectors, stretch * times(vectors.mT, preferred))
    return poisoned(torch.where(kept.any(-1, keepdim=True), aligned, preferred), gram)


class AlignedMTLMethod(Method):
    """Weighs by :func:`aligned_mtl_weights`."""

    def __init__(self, scale: Literal["min", "median", "rmse"]) -> None:
        check_choice("scale", scale, ("min", "median", "rmse"))
        self.scale = scale

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return aligned_mtl_weights(seen.gram, self.scale, fused=seen.fused)


class AlignedMTL(MultiTaskOptimizer):
    r"""Turns the tasks' gradients until they are orthogonal and equally long, and adds them up.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \sigma\, V_r \Lambda_r^{-1/2} V_r^\top \mathbf 1

    Sum-like. A task whose gradient is a thousand times shorter than another's drops out:
    eigenvalues below :math:`10^{-6}` of the largest count as zero.

    Args:
        base: the optimizer that takes the step.
        scale: what :math:`\sigma^2` is: the least kept eigenvalue (``"min"``, as in the paper), the
            ``"median"``, or the mean (``"rmse"``).
        options: those of :class:`MultiTaskOptimizer`.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or ``scale`` is none of these.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = AlignedMTL(torch.optim.SGD([weight], lr=1.0))
        >>> optimizer.backward([weight[0], 3 * weight[1]])
        >>> [round(number, 4) for number in weight.grad.tolist()]
        [1.0, 1.0]

    Source: Dmitry Senushkin et al., "Independent Component Alignment for Multi-Task Learning",
    2023.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        scale: Literal["min", "median", "rmse"] = "min",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, AlignedMTLMethod(scale), **options)
