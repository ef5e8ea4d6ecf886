"""The parts of a step: a shared trunk, a head for each task, and a batch for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert

_encoder = partial(EncoderConfig, hidden_dropout=0.0, attention_dropout=0.0)
MINILM = _encoder(30522, 384, 6, 12, 1536)  # 22.7 M parameters
BERT_BASE = _encoder(30522, 768, 12, 12, 3072)  # 109.5 M parameters
TINY = _encoder(64, 16, 2, 2, 32, max_positions=64)

_MLP_LAYERS = 4
_MLP_BATCH = 8
NUM_OBSERVATIONS = 39  # of a robot arm and what it handles, in Meta-World


class Workload:
    """One trunk, T heads, and one batch for each of the T tasks, the same in every step.

    The heads start equal and the tasks' targets lie around zero, so that tasks conflict: without a
    conflict every method would be the loss sum, and its check would prove nothing.

    Args:
        trunk: inputs to features ``[B, D]``.
        width: D.
        inputs: of each task.
        precision: makes the context in which the model runs.

    Raises:
        ValueError: fewer than two tasks.
    """

    def __init__(
        self,
        trunk: nn.Module,
        width: int,
        inputs: Sequence[Tensor],
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if len(inputs) < 2:
            raise ValueError(f"inputs: must be of at least 2 tasks, got {len(inputs)}")
        like = next(trunk.parameters())
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in inputs).to(like.device, like.dtype)
        for head in self.heads:
            head.load_state_dict(self.heads[0].state_dict())
        self.inputs = list(inputs)
        self.targets = [math.cos(2 * math.pi * t / len(inputs)) for t in range(len(inputs))]
        self.precision = precision
        self.encode: Callable[[Tensor], Tensor] = trunk

    @property
    def num_tasks(self) -> int:
        return len(self.inputs)

    @property
    def num_shared(self) -> int:
        """P, the number of shared scalars."""
        return sum(parameter.numel() for parameter in self.shared())

    @property
    def device(self) -> torch.device:
        return next(self.trunk.parameters()).device

    def shared(self) -> list[Tensor]:
        """Parameters of the trunk."""
        return list(self.trunk.parameters())

    def separate(self) -> list[Tensor]:
        """Parameters of the heads."""
        return list(self.heads.parameters())

    def features(self, task: int) -> Tensor:  # [B, D]
        """Features that the trunk gives for a task's batch."""
        with self.precision():
            return self.encode(self.inputs[task])

    def loss_of(self, task: int, features: Tensor) -> Tensor:  # []
        """Mean squared error of a task's head."""
        with self.precision():
            outputs: Tensor = self.heads[task](features)
        return (outputs.float() - self.targets[task]).square().mean()

    def loss(self, task: int) -> Tensor:  # []
        """The loss of a task's batch."""
        return self.loss_of(task, self.features(task))

    def compile(self, backend: str) -> None:
        """Puts the trunk through ``torch.compile``."""
        self.encode = torch.compile(self.trunk, backend=backend)


class JointWorkload(Workload):
    """One network for all tasks, which is told the task by its input: there are no heads.

    Args:
        network: inputs to outputs ``[..., 1]``.
        inputs: of each task, ``[T, B, N]``.
    """

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, 1, list(inputs))
        self.heads = nn.ModuleList()
        self.joint_inputs = inputs
        self.joint_targets = torch.tensor(self.targets)  # [T]

    def loss_of(self, task: int, features: Tensor) -> Tensor:  # []
        """Mean squared error of a task's outputs."""
        return (features - self.targets[task]).square().mean()

    def joint_losses(self, network: nn.Module | None = None) -> Tensor:  # [T]
        """The losses of all tasks, from one pass of all their examples."""
        outputs = (network or self.trunk)(self.joint_inputs)[..., 0]
        losses: Tensor = (outputs - self.joint_targets[:, None]).square().mean(1)
        return losses


class PooledEncoder(nn.Module):
    """minBERT to one vector a text."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = MinBert(config)

    def forward(self, ids: Tensor) -> Tensor:  # [B, L] -> [B, D]
        pooled: Tensor = self.encoder(ids).pooled
        return pooled


def make_bert(
    config: EncoderConfig,
    batch_size: int,
    length: int,
    *,
    num_tasks: int = 3,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    seed: int = 0,
) -> Workload:
    """An encoder with random weights, and batches of random tokens without padding.

    Args:
        config: its geometry.
        batch_size: B, of each task.
        length: L, of every text.
        num_tasks: T.
        device: where everything is.
        dtype: of the parameters.
        autocast: whether the model computes in bfloat16.
        seed: of weights and tokens.

    Example:
        >>> workload = make_bert(TINY, batch_size=2, length=5)
        >>> workload.features(0).shape
        torch.Size([2, 16])
    """
    config = replace(config, max_positions=max(config.max_positions, length))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = PooledEncoder(config).to(device, dtype)
        shape = (batch_size, length)
        inputs = [torch.randint(1, config.vocab_size, shape).to(device) for _ in range(num_tasks)]
        precision = _Autocast(torch.device(device).type) if autocast else nullcontext
        return Workload(trunk, config.hidden_size, inputs, precision)


def make_mlp(
    num_tasks: int,
    num_parameters: int,
    *,
    num_layers: int = _MLP_LAYERS,
    device: str = "cpu",
    seed: int = 0,
) -> Workload:
    """A multilayer perceptron of about so many parameters, for sweeps over T and P.

    Batches are small (8), so that next to the surgery there is little else: a hard case.

    Args:
        num_tasks: T.
        num_parameters: about P.
        num_layers: of two tensors each.
        device: where everything is.
        seed: of weights and inputs.

    Example:
        >>> make_mlp(num_tasks=2, num_parameters=100_000).num_shared
        99224
    """
    width = max(2, math.isqrt(num_parameters // num_layers) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Linear(width, width), nn.Tanh()]
        inputs = [torch.randn(_MLP_BATCH, width).to(device) for _ in range(num_tasks)]
        return Workload(nn.Sequential(*layers).to(device), width, inputs)


def make_control(
    num_tasks: int, width: int, batch_size: int, *, device: str = "cpu", seed: int = 0
) -> Workload:
    """A network as multi-task reinforcement learning has them: 39 observations, three layers.

    Args:
        num_tasks: T.
        width: of the layers; P is about twice its square.
        batch_size: B, of each task.
        device: where everything is.
        seed: of weights and inputs.

    Example:
        >>> make_control(num_tasks=3, width=128, batch_size=2).num_shared
        38144
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for num_inputs in (NUM_OBSERVATIONS, width, width):
            layers += [nn.Linear(num_inputs, width), nn.Tanh()]
        inputs = [torch.randn(batch_size, NUM_OBSERVATIONS).to(device) for _ in range(num_tasks)]
        return Workload(nn.Sequential(*layers).to(device), width, inputs)


def make_joint_control(
    num_tasks: int, width: int, batch_size: int, *, seed: int = 0
) -> JointWorkload:
    """Makes the network of :func:`make_control` with the task as one of T inputs that is 1, as
    multi-task reinforcement learning has it.

    Args:
        num_tasks: T.
        width: of the layers.
        batch_size: B, of each task.
        seed: of weights and inputs.

    Example:
        >>> make_joint_control(num_tasks=3, width=64, batch_size=2).num_shared
        11137
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for num_inputs in (NUM_OBSERVATIONS + num_tasks, width, width):
            layers += [nn.Linear(num_inputs, width), nn.Tanh()]
        observations = torch.randn(num_tasks, batch_size, NUM_OBSERVATIONS)
        tasks = torch.eye(num_tasks)[:, None].expand(-1, batch_size, -1)
        return JointWorkload(
            nn.Sequential(*layers, nn.Linear(width, 1)), torch.cat([observations, tasks], -1)
        )


class _Autocast:
    """Makes bfloat16 contexts for a kind of device."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def __call__(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device_type, torch.bfloat16)
