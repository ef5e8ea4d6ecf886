"""Surgery in each parameter group or tensor against the oracle on that part of the gradients."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum, projection_order
from tests.oracle import pcgrad

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SIZES = {"a": (2, 3), "b": (64,), "c": (5,), "d": (64, 2), "e": (7,)}
GROUPS = [["a", "d"], ["b", "c"], ["e"]]
TASKS = ["x", "y", "z"]
UNITS = {
    "model": [list(SIZES)],
    "group": GROUPS,
    "tensor": [[n] for names in GROUPS for n in names],
}


def make_model():
    return nn.ParameterDict({name: torch.zeros(size) for name, size in SIZES.items()})


def make_base(model):
    return torch.optim.SGD([{"params": [model[n] for n in names]} for names in GROUPS], lr=0.1)


def make_grads(step, tasks=TASKS):
    generator = torch.Generator().manual_seed(step)
    return {
        task: {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}
        for task in tasks
    }


def train(model, optimizer, grads):
    optimizer.zero_grad()
    for task, of_task in grads.items():
        with optimizer.task(task):
            sum((model[name] * grad).sum() for name, grad in of_task.items()).backward()
    optimizer.step()
    return {name: parameter.grad.clone() for name, parameter in model.items()}


def rows_of(grads, names):
    return np.array([np.concatenate([g[n].numpy().ravel() for n in names]) for g in grads.values()])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("granularity", UNITS)
def test_pcgrad_is_the_oracle_in_every_unit(granularity, reduction):
    model = make_model()
    optimizer = PCGrad(make_base(model), granularity=granularity, reduction=reduction, seed=5)
    num_conflicting = 0
    for step in range(3):  # kept loose in the first step, in rows after it
        grads = make_grads(step)
        found = train(model, optimizer, grads)
        orders = projection_order(3, seed=5, step=step).tolist()
        for names in UNITS[granularity]:
            update, weights = pcgrad(rows_of(grads, names), orders)
            num_conflicting += bool((weights > 1).any())
            whole = np.concatenate([found[name].numpy().ravel() for name in names])
            expected = update / 3 if reduction == "mean" else update
            np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    assert num_conflicting > 0


def test_units_make_a_difference():
    updates = []
    for granularity in UNITS:
        model = make_model()
        found = train(model, PCGrad(make_base(model), granularity=granularity), make_grads(0))
        updates.append(torch.cat([grad.flatten() for grad in found.values()]))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (updates[i] - updates[j]).norm() > 1e-2


@pytest.mark.parametrize("granularity", UNITS)
@pytest.mark.parametrize(
    "wrapper",
    [
        lambda base, **options: MultiTaskOptimizer(
            base, lambda gram: 1 / gram.diagonal().sqrt(), **options
        ),
    ],
)
def test_any_weighting_sees_each_unit(wrapper, granularity):
    model = make_model()
    optimizer = wrapper(make_base(model), granularity=granularity)
    for step in range(2):
        grads = make_grads(step)
        found = train(model, optimizer, grads)
        for names in UNITS[granularity]:
            rows = rows_of(grads, names)
            expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)
            whole = np.concatenate([found[name].numpy().ravel() for name in names])
            np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", ["group", "tensor"])
def test_tasks_that_reach_some_parameters_alone(granularity):
    """A unit of what several tasks reached; what one task alone reached keeps its gradient."""
    model = make_model()
    optimizer = PCGrad(make_base(model), granularity=granularity, seed=1)
    for step in range(3):
        grads = make_grads(step)
        for name in ("c", "e"):
            for task in ("x", "y"):
                del grads[task][name]
        del grads["x"]["a"]
        found = train(model, optimizer, grads)
        for name in ("c", "e"):
            assert torch.equal(found[name], grads["z"][name])
        orders = projection_order(3, seed=1, step=step).tolist()
        grads["x"]["a"] = torch.zeros(SIZES["a"])
        for names in (["a", "d"], ["b"]) if granularity == "group" else (["a"], ["d"], ["b"]):
            update, _ = pcgrad(rows_of(grads, names), orders)
            whole = np.concatenate([found[name].numpy().ravel() for name in names])
            np.testing.assert_allclose(whole, update, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("granularity", UNITS)
def test_last_weights_are_used_again_in_their_units_and_resume(granularity, scope):
    model = make_model()
    options = {"granularity": granularity, "scope": scope, "every": 3, "seed": 2}
    optimizer = PCGrad(make_base(model), **options)
    train(model, optimizer, make_grads(0))
    weights = optimizer.diagnostics.weights.reshape(-1, 3)
    again = make_model()
    resumed = PCGrad(make_base(again), **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    grads = make_grads(1)
    found, after_resume = train(model, optimizer, grads), train(again, resumed, grads)
    for names, of_unit in zip(UNITS[granularity], weights.tolist(), strict=True):
        for name in names:
            expected = sum(w * grads[task][name] for w, task in zip(of_unit, TASKS, strict=True))
            torch.testing.assert_close(found[name], expected)
            assert torch.equal(found[name], after_resume[name])


def test_diagnostics_are_of_the_whole_gradients():
    model = make_model()
    optimizer = PCGrad(make_base(model), granularity="tensor")
    grads = make_grads(0)
    found = train(model, optimizer, grads)
    rows = rows_of(grads, list(SIZES))
    seen = optimizer.diagnostics
    np.testing.assert_allclose(seen.gram, rows @ rows.T, rtol=1e-5, atol=1e-4)
    assert seen.weights.shape == (5, 3)
    update = np.concatenate([found[name].numpy().ravel() for name in SIZES])
    np.testing.assert_allclose(seen.norm_after, np.linalg.norm(update), rtol=1e-5)
    assert seen.summary()["weight/x"] == pytest.approx(seen.weights[:, 0].mean().item())


def test_a_sum_is_the_same_in_any_units():
    for make in (LossSum, lambda base, **o: WeightedSum(base, dict.fromkeys(TASKS, 2.0), **o)):
        found = []
        for _ in range(2):
            model = make_model()
            found.append(train(model, make(make_base(model), monitor=True), make_grads(0)))
        for name in SIZES:
            assert torch.equal(found[0][name], found[1][name])


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="granularity: must be one of model, group, tensor"):
        PCGrad(make_base(make_model()), granularity="layer")


def test_a_step_without_a_shared_parameter_is_plain_after_one_that_had_some():
    model = make_model()
    optimizer = PCGrad(make_base(model), tasks=TASKS, granularity="tensor", warn=False)
    train(model, optimizer, make_grads(0))
    alone = make_grads(1, TASKS[:1])
    for name, grad in train(model, optimizer, alone).items():
        torch.testing.assert_close(grad, alone["x"][name], rtol=0, atol=0)
