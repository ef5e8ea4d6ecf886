"""Losses made into one number whose derivatives are the weights: GLS, STCH, scale-invariant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import check_integer
from gradsurgery.method import Method, Seen
from gradsurgery.methods.by_task import ByTask
from gradsurgery.methods.learned import check_given, check_number, given_by_name, losses_of, zeros
from gradsurgery.optimizer.multitask import MultiTaskOptimizer
from gradsurgery.optimizer.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def gls_weights(losses: Tensor) -> Tensor:  # [..., T] -> [..., T]
    r"""Derivatives of the geometric mean of the losses.

    .. math:: w_i = \frac{1}{T \ell_i} \Bigl(\prod_j \ell_j\Bigr)^{1/T}

    Computed from logarithms, so that no product overflows. Weights are NaN where a loss is not
    above 0: the derivative is not finite at 0, and there is no mean below.

    Args:
        losses: above 0, ``[..., T]``.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> gls_weights(torch.tensor([1.0, 4.0])).tolist()
        [1.0, 0.25]

    Source: Sumanth Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric
    Loss Strategy for Multi-Task Learning", 2019.
    """
    logs = losses.log()
    return torch.exp(logs.mean(-1, keepdim=True) - logs) / losses.shape[-1]


def scale_invariant_weights(losses: Tensor) -> Tensor:  # [..., T] -> [..., T]
    r"""Derivatives of the sum of the logarithms of the losses.

    .. math:: w_i = 1 / \ell_i

    Args:
        losses: above 0, ``[..., T]``; the weight of one at 0 is infinite, of one below NaN.

    Returns:
        Weights ``[..., T]``.

    Example:
        >>> scale_invariant_weights(torch.tensor([1.0, 4.0])).tolist()
        [1.0, 0.25]

    Source: a baseline of Aviv Navon et al., "Multi-Task Learning as a Bargaining Game", 2022.
    """
    return torch.exp(-losses.log())


def stch_weights(
    losses: Tensor,  # [..., T]
    mu: float = 1.0,
    preference: Tensor | None = None,  # [..., T]
) -> Tensor:  # [..., T]
    r"""Derivatives of a smooth maximum of the losses.

    .. math:: w_i = \lambda_i\, \mathrm{softmax}(\lambda \ell / \mu)_i, \qquad
        \text{those of } \mu \log \sum_i e^{\lambda_i \ell_i / \mu}

    Args:
        losses: above their ideal values, ``[..., T]``.
        mu: above 0; the smaller, the nearer the maximum.
        preference: :math:`\lambda`, at least 0; 1/T by default, ``[..., T]``.

    Returns:
        Weights ``[..., T]``, whose sum is between the least and the largest preference.

    Example:
        >>> weights = stch_weights(torch.tensor([1.0, 3.0]), mu=0.5)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.0596, 0.4404]

    Source: Xi Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
    2024.
    """
    if preference is None:
        preference = torch.full_like(losses, 1 / losses.shape[-1])
    return preference * torch.softmax(preference * losses / mu, -1)


class GLSMethod(Method):
    """Weighs by :func:`gls_weights`."""

    needs_gram = False
    needs_losses = True

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        return gls_weights(losses_of(seen))


class ScaleInvariantMethod(Method):
    """Weighs by :func:`scale_invariant_weights`."""

    needs_gram = False
    needs_losses = True

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        return scale_invariant_weights(losses_of(seen))


class STCHMethod(Method):
    """Weighs by :func:`stch_weights`, of the losses or of their logarithms over a warm-up's mean.

    Args:
        mu: smoothness.
        preference: of the tasks, by name.
        ideal: losses that are taken off, by name of the task.
        warmup_steps: steps with a task whose mean its losses are divided by; 0 for none.
    """

    needs_gram = False
    needs_losses = True

    def __init__(
        self,
        mu: float,
        preference: Mapping[Any, float] | None,
        ideal: Mapping[Any, float] | None,
        warmup_steps: int,
    ) -> None:
        self.mu = check_number("mu", mu)
        if not self.mu > 0:
            raise ValueError(f"mu: must be above 0, got {mu}")
        self.preference = check_given("preference", preference)
        for name, value in (self.preference or {}).items():
            check_number(f"preference: {name!r}", value, at_least=0)
        self.ideal = check_given("ideal", ideal)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, at_least=0)
        if self.warmup_steps and self.ideal is not None:
            raise ValueError(
                "ideal: must be left out where there are warmup_steps, after which losses are seen "
                "by their logarithms; choose one of the two"
            )
        self._nadir = ByTask(0.0)
        self._num_steps = ByTask(0.0)

    def weights(self, seen: Seen) -> Tensor:  # [1, T]
        losses = losses_of(seen)
        preference = None
        if self.preference is not None:
            preference = given_by_name("preference", self.preference, seen)
        if self.warmup_steps:
            return self._warmed_up(seen, losses, preference)
        if self.ideal is not None:
            losses = losses - given_by_name("ideal", self.ideal, seen)
        return stch_weights(losses, self.mu, preference)

    def learn(self, seen: Seen) -> None:
        if not self.warmup_steps:
            return
        losses = losses_of(seen)
        num = self._num_steps.get(seen, zeros(seen))
        nadir = self._nadir.get(seen, zeros(seen))
        counts = losses.isfinite() & (num < self.warmup_steps)
        self._nadir.set(seen, torch.where(counts, nadir + (losses - nadir) / (num + 1), nadir))
        self._num_steps.set(seen, num + counts)

    def numbers(self) -> dict[str, Tensor]:  # [N]
        return {} if self._nadir.all is None else {"nadir": self._nadir.all[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"nadir": self._nadir.saved(), "num_steps": self._num_steps.saved()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._nadir.restore(state["nadir"])
        self._num_steps.restore(state["num_steps"])

    def _warmed_up(self, seen: Seen, losses: Tensor, preference: Tensor | None) -> Tensor:
        """Weighs logarithms alike until every task of the step has its nadir, then by the smooth
        maximum of how far they are below it, times T."""
        if preference is None:
            preference = torch.ones_like(losses)
        nadir = self._nadir.get(seen, zeros(seen))
        num = self._num_steps.get(seen, zeros(seen))
        is_over = (num >= self.warmup_steps).all(-1, keepdim=True)
        distance = torch.where(is_over, losses.log() - nadir.log(), 0)
        of_logs = stch_weights(distance, self.mu, preference) * len(seen.tasks)
        return torch.where(is_over, of_logs, 1) * scale_invariant_weights(losses)


class GLS(MultiTaskOptimizer):
    r"""Geometric Loss Strategy: descends on the geometric mean of the losses.

    .. math:: u = \nabla \Bigl(\prod_i \ell_i\Bigr)^{1/T} = \sum_i w_i\, g_i, \qquad
        w_i = \frac{1}{T \ell_i} \Bigl(\prod_j \ell_j\Bigr)^{1/T}

    Mean-like: the mean of the gradients where all losses are equal. Larger losses get smaller
    weights. Costs the plain sum with :meth:`backward`; in blocks, which must show the loss
    (``block.backward(loss)``), gradients are kept apart, because every weight depends on all
    losses. Weights go on the losses, and so reach task-specific parameters. The mean is over the
    tasks of the step. Losses must be above 0; one that is 0 or below makes the update NaN, where
    LibMTL's product hides it and TorchJD waits for the device to refuse a negative one.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`, but ``every``.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = GLS(torch.optim.SGD([weight], lr=0.1))
        >>> optimizer.backward([weight[0], 4 * weight[1]])
        >>> weight.grad.tolist()
        [1.0, 1.0]

    Source: Sumanth Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric
    Loss Strategy for Multi-Task Learning", 2019.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, GLSMethod(), **options)


class ScaleInvariant(MultiTaskOptimizer):
    r"""Descends on the sum of the logarithms of the losses.

    .. math:: u = \sum_i \nabla \log \ell_i = \sum_i \frac{g_i}{\ell_i}

    No loss's units matter. The update has a length of its own, which does not shrink with the
    losses. Costs the plain sum with :meth:`backward`; in blocks, which must show the loss
    (``block.backward(loss)``), gradients are kept apart, because the parts of a task's loss that
    several blocks bring go into one logarithm. Weights go on the losses, and so reach task-specific
    parameters. Losses must be above 0; one that is 0 or below makes the update not finite.

    Args:
        base: the optimizer that takes the step.
        options: those of :class:`MultiTaskOptimizer`, but ``every``.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = ScaleInvariant(torch.optim.SGD([weight], lr=0.1))
        >>> optimizer.backward([weight[0], 4 * weight[1]])
        >>> weight.grad.tolist()
        [1.0, 1.0]

    Source: a baseline of Aviv Navon et al., "Multi-Task Learning as a Bargaining Game", 2022.
    """

    def __init__(self, base: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(base, ScaleInvariantMethod(), **options)


class STCH(MultiTaskOptimizer):
    r"""Smooth Tchebycheff: descends on a smooth maximum of the losses.

    .. math:: u = \nabla\, \mu \log \sum_i e^{\lambda_i (\ell_i - z_i) / \mu} =
        \sum_i w_i\, g_i, \qquad w = \lambda \odot \mathrm{softmax}(\lambda (\ell - z) / \mu)

    As the paper and TorchJD have it, with preferences of 1/T: weights add up to 1/T, so that the
    update is T times shorter than one of the mean's length, and the largest loss leads. With
    ``warmup_steps`` it is LibMTL's form, which losses of different units need:

    .. math:: T \mu \log \sum_i \Bigl(\frac{\ell_i}{\ell_i^{\text{nadir}}}\Bigr)^{\lambda_i / \mu}

    with preferences of 1 and :math:`\ell_i^{\text{nadir}}` the mean loss of the task's first
    steps, in which it descends on :math:`\sum_i \log \ell_i`. LibMTL takes an epoch for them.

    Costs the plain sum with :meth:`backward`; in blocks, which must show the loss
    (``block.backward(loss)``), gradients are kept apart, because every weight depends on all
    losses. Weights go on the losses, and so reach task-specific parameters. Losses may have any
    sign, and with ``warmup_steps`` must be above 0: one that is 0 or below makes the update not
    finite. An absent task keeps its nadir, and the maximum is over the tasks of the step.
    ``diagnostics.numbers`` has ``nadir``.

    Args:
        base: the optimizer that takes the step.
        mu: :math:`\mu`, above 0; the smaller, the nearer the maximum. The paper tries 0.01 to 1;
            1 in LibMTL, given by the user in TorchJD.
        preference: :math:`\lambda_i`, at least 0, by names of the tasks.
        ideal: :math:`z_i`, by names of the tasks; 0 by default.
        warmup_steps: how many steps with a task make its nadir; 0 for the form without.
        options: those of :class:`MultiTaskOptimizer`, but ``every``.

    Raises:
        TypeError, ValueError: as :class:`MultiTaskOptimizer`, a number is out of its range or there
            is none for a task, or a loss was not shown.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = STCH(torch.optim.SGD([weight], lr=0.1), mu=0.5)
        >>> optimizer.backward([weight[0], 3 * weight[1]])
        >>> [round(number, 4) for number in optimizer.diagnostics.weights.tolist()]
        [0.0596, 0.4404]

    Source: Xi Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
    2024.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        mu: float = 1.0,
        preference: Mapping[Any, float] | None = None,
        ideal: Mapping[Any, float] | None = None,
        warmup_steps: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(base, STCHMethod(mu, preference, ideal, warmup_steps), **options)
