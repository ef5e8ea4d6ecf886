"""Surgery on shared features against the oracle on their gradients, and against the loss sum."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradsurgery import LossSum, PCGrad, WeightedSum, kernels, projection_order
from gradsurgery.kernels import reference
from tests.oracle import pcgrad

pytestmark = pytest.mark.usefixtures("poisoned_empty")

TASKS = ("a", "b", "c")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.common = nn.Linear(5, 5)  # beyond the features, and of all tasks

    def losses(self, inputs):
        features = self.trunk(inputs)
        beyond = torch.tanh(self.common(features))
        return features, {
            task: ((self.heads[task](beyond) - i) ** 2).mean() for i, task in enumerate(TASKS)
        }


def inputs(step):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def optimizer_of(model, make=PCGrad, **options):
    return make(torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS, **options)


def grads_of(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("order", [TASKS, TASKS[::-1]])
def test_the_trunk_gets_the_oracles_gradient_of_the_features(reduction, order):
    model, by_hand = Model(), Model()
    optimizer = optimizer_of(model, reduction=reduction, seed=4)
    num_conflicting = 0
    for step in range(3):
        features, losses = by_hand.losses(inputs(step))
        rows = [torch.autograd.grad(losses[t], features, retain_graph=True)[0] for t in TASKS]
        orders = projection_order(3, seed=4, step=step).tolist()
        update, weights = pcgrad(torch.stack(rows).flatten(1), orders)
        num_conflicting += bool((weights > 1).any())
        update = torch.tensor(update / (3 if reduction == "mean" else 1)).float()
        by_hand.zero_grad()
        sum(losses.values()).backward(retain_graph=True)
        of_heads = grads_of(by_hand.heads), grads_of(by_hand.common)
        by_hand.trunk.zero_grad()
        features.backward(update.view_as(features))

        optimizer.zero_grad()
        features, losses = model.losses(inputs(step))
        optimizer.feature_backward({task: losses[task] for task in order}, features)
        torch.testing.assert_close(grads_of(model.trunk), grads_of(by_hand.trunk))
        torch.testing.assert_close(grads_of(model.heads), of_heads[0])
        torch.testing.assert_close(grads_of(model.common), of_heads[1])
        np.testing.assert_allclose(optimizer.diagnostics.weights, weights, rtol=1e-5)
        optimizer.step()
        torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
    assert num_conflicting > 0


def test_it_is_another_method_than_surgery_on_the_parameters():
    grads = []
    for name in ("feature_backward", "backward"):
        model = Model()
        optimizer = optimizer_of(model)
        features, losses = model.losses(inputs(0))
        if name == "backward":
            optimizer.backward(losses)
        else:
            optimizer.feature_backward(losses, features)
        grads.append(grads_of(model.trunk))
    assert (grads[0] - grads[1]).norm() > 1e-3 * grads[1].norm()


@pytest.mark.parametrize("method", ["plain", "monitored", "weighted", "start_step"])
def test_sums_are_what_they_are_without_features(method):
    make, options = {
        "plain": (LossSum, {}),
        "monitored": (LossSum, {"monitor": True}),
        "weighted": (lambda base, **o: WeightedSum(base, [1.0, 0.5, 2.0], **o), {}),
        "start_step": (PCGrad, {"start_step": 1}),
    }[method]
    grads = []
    for with_features in (True, False):
        model = Model()
        optimizer = optimizer_of(model, make, **options)
        features, losses = model.losses(inputs(0))
        if with_features:
            optimizer.feature_backward(losses, features)
        else:
            optimizer.backward(losses)
        grads.append(grads_of(model.trunk))
    torch.testing.assert_close(grads[0], grads[1])


def test_the_flops_of_the_loss_sum():
    flops = {}
    for name in ("sum", "features", "parameters"):
        model = Model()
        model.common = nn.Identity()  # else each task goes through it, and the sum once
        optimizer = optimizer_of(model)
        with FlopCounterMode(display=False) as counter:
            features, losses = model.losses(inputs(0))
            if name == "sum":
                sum(losses.values()).backward()
            elif name == "features":
                optimizer.feature_backward(losses, features)
            else:
                optimizer.backward(losses)
        flops[name] = counter.get_total_flops()
    combine = 2 * 3 * 16 * 5  # of the features' gradients, where it is a product
    assert flops["sum"] <= flops["features"] <= flops["sum"] + combine + 2 * 9 * 16 * 5
    assert flops["parameters"] > 1.5 * flops["features"]


def test_several_features_and_a_task_that_needs_one_of_them():
    first, second = nn.Linear(3, 2), nn.Linear(3, 4)
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
    u, v = first(torch.ones(2, 3)), second(torch.ones(2, 3))
    optimizer.feature_backward({"one": u.sum(), "both": -u.sum() + v.sum()}, [u, v])
    # Gradients of (u, v): (1, 0) and (-1, 1), of squared norms 4 and 12, with a dot of -4.
    expected = {"u": 2 / 3 + 0, "v": 1 / 3 + 1}
    assert first.bias.grad.tolist() == pytest.approx([2 * expected["u"]] * 2)
    assert second.bias.grad.tolist() == pytest.approx([2 * expected["v"]] * 4)


def test_the_kernels_are_those_of_the_features_device(monkeypatch):
    asked = []

    def choose(fused, *devices):
        asked.append(devices)
        return reference

    model = Model()
    optimizer = optimizer_of(model)
    monkeypatch.setattr(kernels, "choose", choose)
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    assert set(asked) == {(torch.device("cpu"),)}


def test_gradients_that_were_there_are_added_to():
    model = Model()
    optimizer = optimizer_of(model)
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    once = grads_of(model)
    optimizer.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()  # a regulariser of all tasks
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    torch.testing.assert_close(grads_of(model), once + 1)


def test_gradients_of_the_heads_have_memory_of_their_own():
    """As those that autograd leaves in .grad, so that clipping can work in place."""
    trunk, first, second = nn.Linear(4, 3), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    head = nn.Parameter(torch.ones(2, 3).T)
    optimizer = PCGrad(torch.optim.SGD([*trunk.parameters(), first, second, head], lr=0.1))
    features = trunk(torch.ones(4))
    losses = {"x": (features + first + second).sum(), "y": (features @ head).sum()}
    optimizer.feature_backward(losses, features)
    assert len({p.grad.untyped_storage().data_ptr() for p in (first, second, head)}) == 3
    assert [p.grad.stride() for p in (first, second, head)] == [(1,), (1,), head.stride()]
    first.grad.mul_(2)
    assert (first.grad.tolist(), second.grad.tolist()) == ([2.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("features", "error", "rule"),
    [
        (lambda f: f.detach(), ValueError, "must need a gradient"),
        (lambda f: [], ValueError, "at least one tensor"),
        (lambda f: [f, 3], TypeError, "must be tensors, got int"),
    ],
)
def test_what_is_no_representation_is_refused_and_changes_nothing(features, error, rule):
    model = Model()
    optimizer = optimizer_of(model)
    made, losses = model.losses(inputs(0))
    with pytest.raises(error, match=rule):
        optimizer.feature_backward(losses, features(made))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="one for each of the 3 tasks"):
        optimizer.feature_backward(list(losses.values())[:2], made)
