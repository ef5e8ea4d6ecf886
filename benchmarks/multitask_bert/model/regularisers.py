"""Terms that SMART adds to a task's loss: smoothness under small noise, closeness to the past."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.tasks import TASKS, Task

SMOOTHNESS = {
    "weight": 0.02,
    "noise_variance": 1e-5,
    "step_size": 1e-3,
    "epsilon": 1e-6,
    "num_steps": 1,
}
PROXIMITY = {"weight": 1.0, "momentum": 0.99}


def divergence(
    task: Task,
    found: Tensor,  # [B] or [B, C]
    expected: Tensor,  # [B] or [B, C]
) -> Tensor:  # []
    """How far two outputs for the same inputs are apart: the symmetrised Kullback-Leibler
    divergence of class distributions, the mean squared difference of scores.

    Example:
        >>> divergence(TASKS["sts"], torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """
    if task.kind == "score":
        return F.mse_loss(found, expected)
    p, q = (_log_distribution(task, outputs) for outputs in (found, expected))
    return F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(
        q, p, reduction="batchmean", log_target=True
    )


def smoothness(
    model: MultiTaskModel,
    batch: Batch,
    outputs: Tensor,  # [B] or [B, C]
    options: Mapping[str, float] = SMOOTHNESS,
) -> Tensor:  # []
    r"""How much the outputs change under the worst small noise on the embedded words.

    .. math:: R_s = \max_{\lVert \delta \rVert_\infty \le 1} D(f(x + \delta), f(x))

    approached by ``num_steps`` steps of gradient ascent from Gaussian noise.

    Args:
        model: in training mode, its dropout included.
        batch: of one task.
        outputs: the model's outputs for the batch.
        options: ``noise_variance`` of the start, ``step_size`` and ``num_steps`` of the ascent, and
            ``epsilon``, added to the largest entry of a word's noise, by which it is divided.

    Source: Haoming Jiang et al., "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural
    Language Models through Principled Regularized Optimization", 2020.
    """
    task = TASKS[batch.task]
    expected = outputs.detach()
    spread = options["noise_variance"] ** 0.5
    noise = torch.randn(model.noise_shape(batch), device=expected.device) * spread
    for _ in range(int(options["num_steps"])):
        noise.requires_grad_()
        distance = divergence(task, model(batch, noise=noise), expected)
        (ascent,) = torch.autograd.grad(distance, noise)
        noise = noise.detach() + options["step_size"] * ascent
        noise = noise / (noise.abs().amax(-1, keepdim=True) + options["epsilon"])
    return divergence(task, model(batch, noise=noise), outputs)


class Proximity:
    r"""Keeps the outputs close to those of the past model.

    .. math:: R_p = D(f(x; \theta), f(x; \tilde\theta)), \qquad
        \tilde\theta \leftarrow (1 - \beta)\, \theta + \beta\, \tilde\theta

    Args:
        model: whose past is followed.
        momentum: :math:`\beta`.

    Source: Haoming Jiang et al., 2020, Bregman proximal point optimisation.
    """

    def __init__(self, model: MultiTaskModel, momentum: float) -> None:
        self.past = copy.deepcopy(model).requires_grad_(False).eval()
        self.momentum = momentum

    def term(self, batch: Batch, outputs: Tensor) -> Tensor:  # []
        """The term of one batch."""
        with torch.no_grad():
            expected = self.past(batch)
        return divergence(TASKS[batch.task], outputs, expected)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Moves the past towards the model, after a step."""
        past: list[Tensor] = list(self.past.parameters())
        now: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(past, now, 1 - self.momentum)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The past weights, for an exact resume."""
        return self.past.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes them back."""
        self.past.load_state_dict(state)


def _log_distribution(task: Task, outputs: Tensor) -> Tensor:  # [B] or [B, C] -> [B, C]
    if task.kind == "binary":
        return torch.stack([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=-1)
    return outputs.log_softmax(-1)
