"""T losses of one batch: FLOPs, time and memory of telling their gradients apart.

Beside this library and TorchJD stand three ways in plain torch: a backward for each task, one
backward of batched cotangents, and Gram matrices layer by layer, which need no rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torchjd.aggregation as peers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchjd.autogram import Engine
from torchjd.autojac import backward, mtl_backward

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.answers import checked
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import Method, Orders, Ours, TorchJD, loss_sum, pcgrad
from benchmarks.speed.steps import step_peak_bytes
from benchmarks.speed.workloads import Workload, make_control
from gradsurgery import pcgrad_weights, projection_order

SIZES = ((3, 128, 32), (10, 400, 128), (40, 64, 16))  # T, width, B
QUICK = ((3, 8, 2),)
_WORK = 3e7  # of T · P · B in each timing: one step is too short for a clock
_MOST_STEPS = 20


def make_shared(num_tasks: int, width: int, batch_size: int) -> Workload:
    """Makes :func:`make_control`'s network with one batch for all tasks.

    Example:
        >>> workload = make_shared(num_tasks=3, width=8, batch_size=2)
        >>> workload.inputs[0] is workload.inputs[2]
        True
    """
    workload = make_control(num_tasks, width, batch_size)
    workload.inputs = [workload.inputs[0]] * num_tasks
    return workload


def losses_of(workload: Workload) -> tuple[Tensor, list[Tensor]]:  # [B, D], T times []
    """Runs the trunk once, and every task's head on its features."""
    features = workload.features(0)
    return features, [workload.loss_of(task, features) for task in range(workload.num_tasks)]


class PlainSum(Method):
    """Torch alone: the backward of the sum of the losses."""

    def backwards(self) -> None:
        _, losses = losses_of(self.workload)
        torch.stack(losses).sum().backward()


class OfLosses(Ours):
    """A wrapper of this library, given all losses together."""

    def backwards(self) -> None:
        _, losses = losses_of(self.workload)
        self.optimizer.backward(losses)


class Jacobian(TorchJD):
    """TorchJD's ``backward`` of the trunk; the heads' gradients are those of the sum."""

    def backwards(self) -> None:
        shared, separate = self.workload.shared(), self.workload.separate()
        _, losses = losses_of(self.workload)
        torch.autograd.backward(losses, inputs=separate, retain_graph=True)
        backward(losses, inputs=shared, parallel_chunk_size=self.parallel_chunk_size)


class MtlBackward(TorchJD):
    """TorchJD's ``mtl_backward``."""

    def backwards(self) -> None:
        features, losses = losses_of(self.workload)
        mtl_backward(losses, features, parallel_chunk_size=self.parallel_chunk_size)


class Autogram(TorchJD):
    """TorchJD's ``autogram``: the Gram matrix, then a backward of the weighted losses."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload, parallel_chunk_size=None, optimize_gramian_computation=True)
        # The engine counts the forwards of its modules, and checks of answers must not count.
        memo = {id(parameter): parameter for parameter in workload.shared()}
        self.trunk = copy.deepcopy(workload.trunk, memo)
        self.engine = Engine(self.trunk, batch_dim=None)
        self.weighting = peers.PCGradWeighting()

    def backwards(self) -> None:
        workload = self.workload
        features = self.trunk(workload.inputs[0])
        losses = torch.stack([workload.loss_of(t, features) for t in range(workload.num_tasks)])
        weights = self.weighting(self.engine.compute_gramian(losses))
        torch.autograd.backward(losses.sum(), inputs=workload.separate(), retain_graph=True)
        torch.autograd.backward(losses, weights, inputs=workload.shared())

    def surgery(self) -> None:
        """Does nothing: the weights were on the losses."""


class _ByHand(Method):
    """PCGrad in plain torch, with the weights that this library finds from a Gram matrix."""

    def orders(self) -> Orders:
        found: Orders = self._order().tolist()
        return found

    def weights_of(self, gram: Tensor) -> Tensor:  # [T, T] -> [T]
        return pcgrad_weights(gram, self._order())

    def _order(self) -> Tensor:  # [T, T - 1]
        return projection_order(self.workload.num_tasks, 0, self.num_steps)


class Rows(_ByHand):
    """Rows of all tasks' gradients, and their Gram matrix.

    Args:
        workload: its own.
        batched: whether one backward of batched cotangents makes them, instead of T backwards.
    """

    def __init__(self, workload: Workload, *, batched: bool) -> None:
        super().__init__(workload)
        self.batched = batched
        self.rows = torch.empty(0)

    def backwards(self) -> None:
        workload = self.workload
        shared, separate = workload.shared(), workload.separate()
        features, losses = losses_of(workload)
        torch.autograd.backward(losses, inputs=separate, retain_graph=True)
        if self.batched:
            # The heads one by one, so that a head has no zeros of other tasks to work on.
            seeds = torch.stack([_grad(loss, features) for loss in losses])
            grads = torch.autograd.grad(features, shared, seeds, is_grads_batched=True)
            self.rows = torch.cat([grad.flatten(1) for grad in grads], 1)
        else:
            self.rows = torch.empty(len(losses), workload.num_shared, dtype=features.dtype)
            for row, loss in zip(self.rows, losses, strict=True):
                grads = torch.autograd.grad(loss, shared, retain_graph=True)
                torch.cat([grad.flatten() for grad in grads], out=row)

    def surgery(self) -> None:
        (update,) = self.weights_of(self.rows @ self.rows.T)[None] @ self.rows
        shared = self.workload.shared()
        parts = update.split([parameter.numel() for parameter in shared])
        for parameter, part in zip(shared, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self.rows = torch.empty(0)


class LayerByLayer(_ByHand):
    r"""Gram matrices of linear layers without their rows, for a batch that all tasks share.

    Task t's gradient of a layer with inputs ``X`` is ``Δ_tᵀ X``, where ``Δ_t`` is the gradient of
    its outputs, so that inner products are ``tr(Δ_tᵀ X Xᵀ Δ_u)``. With biases ``X Xᵀ + 1`` takes
    the place of ``X Xᵀ``. The update is ``(Σ_t w_t Δ_t)ᵀ X``. No pass makes weights' gradients for
    each task, and what is kept is ``Δ``: T numbers for each output of a layer and example.

    Raises:
        ValueError: the trunk has a layer with parameters that is not linear, or without a bias.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.gram = torch.empty(0)  # [T, T]
        self.layers: list[nn.Linear] = []
        for name, module in workload.trunk.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                self.layers.append(module)
            elif list(module.parameters(recurse=False)):
                raise ValueError(f"trunk: must have linear layers with biases alone, got {name!r}")

    def backwards(self) -> None:
        workload = self.workload
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen[layer] = inputs[0].detach(), output

        hooks = [layer.register_forward_hook(note) for layer in self.layers]
        _, losses = losses_of(workload)
        for hook in hooks:
            hook.remove()
        torch.autograd.backward(losses, inputs=workload.separate(), retain_graph=True)
        outputs = [seen[layer][1] for layer in self.layers]
        parts = [
            (layer, seen[layer][0], output.new_empty(len(losses), *output.shape))
            for layer, output in zip(self.layers, outputs, strict=True)
        ]
        for task, loss in enumerate(losses):
            grads = torch.autograd.grad(loss, outputs, retain_graph=True)
            for (_, _, deltas), grad in zip(parts, grads, strict=True):
                deltas[task] = grad
        self.gram = torch.stack([_gram(inputs, deltas) for _, inputs, deltas in parts]).sum(0)
        weights = self.weights_of(self.gram)
        for layer, inputs, deltas in parts:
            delta = (weights[None] @ deltas.flatten(1)).view_as(deltas[0])
            layer.weight.grad = delta.T @ inputs
            layer.bias.grad = delta.sum(0)


WAYS: Mapping[str, Callable[[Workload], Method]] = {
    "plain sum": PlainSum,
    "`LossSum`, `backward(losses)`": partial(OfLosses, wrap=loss_sum),
    "`PCGrad`, `backward(losses)`": partial(OfLosses, wrap=pcgrad),
    "rows by hand, T backwards": partial(Rows, batched=False),
    "rows by hand, batched cotangents": partial(Rows, batched=True),
    "no rows, layer by layer, by hand": LayerByLayer,
    **{
        f"TorchJD `{name}`, chunk={chunk}": partial(
            way, parallel_chunk_size=chunk, optimize_gramian_computation=True
        )
        for name, way in (("backward", Jacobian), ("mtl_backward", MtlBackward))
        for chunk in (None, 1)
    },
    "TorchJD `autogram`": Autogram,
}


def count_flops(method: Method) -> int:
    """Counts the FLOPs of a step's products of matrices: forward, backwards and surgery."""
    aten = torch.ops.aten
    in_place = dict.fromkeys((aten.addmm_, aten.baddbmm_), _product_flops)  # unknown to torch's
    method.zero_grad()
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        method.backwards()
        method.surgery()
    method.zero_grad()
    return int(counter.get_total_flops())


def compare(sizes: Sequence[tuple[int, int, int]] = SIZES, *, rounds: int) -> list[str]:
    """Lines of a table: every way's FLOPs, time and peak memory beside those of the plain sum.

    Args:
        sizes: T, width and B of each network.
        rounds: how often every step is timed.
    """
    cells = []
    for size in sizes:
        make = partial(make_shared, *size)
        ways, refused = checked(WAYS, make)
        workload = make()
        num_tasks, num_shared = workload.num_tasks, workload.num_shared
        num_steps = min(_MOST_STEPS, 1 + int(_WORK / (num_tasks * num_shared * size[2])))
        timings = interleaved(
            {name: Action(partial(_repeat, way, num_steps)) for name, way in ways.items()},
            rounds=rounds,
        )
        flops = {name: count_flops(way) for name, way in ways.items()}
        peaks = {name: step_peak_bytes(WAYS[name], make()) for name in ways}
        unit = num_tasks * num_shared * workload.shared()[0].element_size()
        base = "plain sum"
        at = f"{num_tasks}, {num_shared / 1e3:.3g} k, {size[2]}"
        cells += [
            [
                at,
                name,
                f"{flops[name] / flops[base]:.2f}",
                f"{timings.of(name).scaled(1e3 / num_steps).median:.2f} ms",
                f"{timings.ratio(name, to=base):.2f}",
                f"{peaks[name] / 1e6:.2f} MB",
                f"{(peaks[name] - peaks[base]) / unit:+.2f}",
            ]
            for name in ways
        ]
        cells += [[at, name, why, "", "", "", ""] for name, why in refused.items()]
    header = ["T, P, B", "a step of", "FLOPs / plain sum's", "time", "time / plain sum's",
              "peak memory", "above plain sum, in T·P·itemsize"]  # fmt: skip
    return table(header, cells)


def _repeat(method: Method, times: int) -> None:
    for _ in range(times):
        method()


def _product_flops(
    _: torch.Size, first: torch.Size, second: torch.Size, **__: object
) -> int:  # [..., N, K], [..., K, M]
    return 2 * first.numel() * second[-1]


def _grad(loss: Tensor, features: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, features, retain_graph=True)
    return grad


def _gram(inputs: Tensor, deltas: Tensor) -> Tensor:  # [B, in], [T, B, out] -> [T, T]
    kernel = inputs @ inputs.T + 1
    return deltas.flatten(1) @ (kernel @ deltas).flatten(1).T
