"""Steps on one joint batch, with the task as a part of the input, and the table's rows of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.func import functional_call, grad, vmap
from torchjd.aggregation import PCGrad as TorchJDPCGrad
from torchjd.aggregation import PCGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward as torchjd_backward
from torchjd.autojac import jac_to_grad

from benchmarks.speed.answers import checked
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import (
    Method,
    Orders,
    Ours,
    PlainLoop,
    PytorchOptimizer,
    pcgrad,
    torchjd_orders,
)
from benchmarks.speed.small import Size
from benchmarks.speed.targets import Experiment, Finding, Row, Settings, Target, not_measured
from benchmarks.speed.workloads import JointWorkload, Workload, make_joint_control


class _Joint(Method):
    """A way to make a step of a joint batch."""

    def __init__(self, workload: Workload) -> None:
        assert isinstance(workload, JointWorkload)
        super().__init__(workload)
        self.joint = workload


class JointSum(_Joint):
    """Torch alone: the sum of the losses of one pass."""

    def backwards(self) -> None:
        self.joint.joint_losses().sum().backward()


class Taken(Ours):
    """This library on the gradients that ``vmap(grad)`` makes of all tasks at once."""

    def __init__(self, workload: Workload) -> None:
        assert isinstance(workload, JointWorkload)
        super().__init__(workload, wrap=pcgrad)
        network = workload.trunk
        self.parameters = dict(network.named_parameters())
        self.inputs = workload.joint_inputs, workload.joint_targets

        def loss(values: Mapping[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:  # []
            outputs: Tensor = functional_call(network, dict(values), (inputs,))
            return (outputs - target).square().mean()

        self.per_task = vmap(grad(loss), in_dims=(None, 0, 0))

    def backwards(self) -> None:
        values = {name: parameter.detach() for name, parameter in self.parameters.items()}
        self.optimizer.take(self.per_task(values, *self.inputs), parameters=self.parameters)


class JointBlocks(Ours):
    """This library's ``backward(losses)`` on the losses of one pass."""

    def __init__(self, workload: Workload) -> None:
        assert isinstance(workload, JointWorkload)
        super().__init__(workload, wrap=pcgrad)
        self.joint = workload

    def backwards(self) -> None:
        self.optimizer.backward(self.joint.joint_losses())


class TorchJDJacobian(_Joint):
    """TorchJD 0.18: the Jacobian of all losses under vmap, and its aggregator."""

    def backwards(self) -> None:
        torchjd_backward(self.joint.joint_losses())

    def surgery(self) -> None:
        jac_to_grad(self.workload.shared(), TorchJDPCGrad())

    def orders(self) -> Orders:
        return torchjd_orders(self.workload.num_tasks)


class TorchJDGramian(_Joint):
    """TorchJD 0.18: the Gram matrix without a Jacobian, then a backward of the weighted losses."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        # The engine follows every pass through its modules, those of the check as well: it gets
        # modules of its own, around the same parameters.
        own = {id(parameter): parameter for parameter in workload.shared()}
        self.network = copy.deepcopy(workload.trunk, dict(own))
        self.engine = Engine(self.network, batch_dim=0)
        self.weighting = PCGradWeighting()

    def backwards(self) -> None:
        losses = self.joint.joint_losses(self.network)
        weights = self.weighting(self.engine.compute_gramian(losses))
        losses.backward(weights)

    def orders(self) -> Orders:
        return torchjd_orders(self.workload.num_tasks)


METHODS: Mapping[str, Callable[[Workload], Method]] = {
    "joint batch": JointSum,
    "plain loop": PlainLoop,
    "pcgrad of vmap(grad)": Taken,
    "pcgrad in blocks": partial(Ours, wrap=pcgrad),
    "pcgrad of backward(losses)": JointBlocks,
    "torchjd vmap": TorchJDJacobian,
    "torchjd autogram": TorchJDGramian,
    "pytorch_optimizer": PytorchOptimizer,
}
_TAKEN, _JOINT = "pcgrad of vmap(grad)", "joint batch"
SIZES = (Size(40, 64, 16, 2.5), Size(10, 400, 128, 1.3))


def _experiment(size: Size) -> Experiment:
    def experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
        chosen = Size(3, 8, 2, size.most) if settings.quick else size
        num_steps = 1 if settings.quick else size.num_steps

        def workload() -> Workload:
            return make_joint_control(
                chosen.num_tasks, chosen.width, chosen.batch_size, seed=settings.seed
            )

        right, refused = checked(METHODS, workload)
        if missing := [name for name in (_JOINT, _TAKEN) if name in refused]:
            return dict.fromkeys(keys, not_measured(f"{missing[0]}: {refused[missing[0]]}"))
        timings = interleaved(
            {name: Action(lambda method=method: [method() for _ in range(num_steps)])  # type: ignore[misc]
             for name, method in right.items()},
            rounds=settings.rounds,
        )  # fmt: skip
        key = f"take-{size.num_tasks}-{size.width}"
        notes = [
            f"{key}: step of {name} {timings.of(name).median * 1e3 / num_steps:.3f} ms, "
            f"{timings.ratio(name, to=_JOINT):.2f} × joint batch"
            for name in right
        ]
        notes += [f"{key}: step of {name} not timed, {why}" for name, why in refused.items()]
        ratio = timings.ratio(_TAKEN, to=_JOINT)
        return {key: Finding(f"{ratio:.2f}", ratio.median, tuple(notes)) for key in keys}

    return experiment


ROWS = [
    Row(
        f"take-{size.num_tasks}-{size.width}",
        f"PCGrad step on gradients from vmap(grad) / joint batch, T = {size.num_tasks}, width "
        f"{size.width}, {size.batch_size} a task",
        Target("≤", size.most),
        "cpu",
        _experiment(size),
    )
    for size in SIZES
]
