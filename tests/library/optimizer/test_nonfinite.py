"""Gradients that are not finite against the same training without the task or step they are in."""

import copy
import math

import pytest
import torch
from torch import nn

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum
from gradsurgery.optimizer.nonfinite import is_finite
from tests.library.methods.table import GRAM_METHODS, LOSS_METHODS, back_propagate

pytestmark = pytest.mark.usefixtures("poisoned_empty")

WRAPPERS = {
    **GRAM_METHODS,
    **LOSS_METHODS,
    "pcgrad between refreshes": lambda base, **o: PCGrad(base, every=2, **o),
    "pcgrad before its start": lambda base, **o: PCGrad(base, start_step=5, **o),
    "loss-sum": LossSum,
    "monitored": lambda base, **o: LossSum(base, monitor=True, **o),
    "weighted-sum": lambda base, **o: WeightedSum(base, {"a": 1.0, "b": 0.5, "c": 2.0}, **o),
    "custom": lambda base, **o: MultiTaskOptimizer(base, lambda gram: gram.diagonal() * 0 + 2, **o),
}
# These have no weights for a loss of zero; `test_losses.py` says what they do instead.
OF_ALL_LOSSES = ("gls", "stch", "stch-warmed-up", "famo", "scale-invariant")
BAD = [float("nan"), float("inf"), float("-inf")]


def make_model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1), "c": nn.Linear(4, 1)}
    )


def loss_of(model, task, step):
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
    return (model[task](torch.tanh(model["trunk"](inputs))) - ord(task)).pow(2).mean()


def block(model, optimizer, task, step, factor=1.0):
    with optimizer.task(task) as shown:
        back_propagate(optimizer, shown, factor * loss_of(model, task, step))


def trained(wrapper, steps, **options):
    """The weights after steps, each a list of tasks with the factor of its loss."""
    model = make_model()
    optimizer = WRAPPERS[wrapper](torch.optim.SGD(model.parameters(), lr=0.01), **options)
    for step, tasks in enumerate(steps):
        optimizer.zero_grad()
        for task, factor in tasks:
            block(model, optimizer, task, step, factor)
        if tasks:
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer


ALL = [("a", 1.0), ("b", 1.0), ("c", 1.0)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in OF_ALL_LOSSES])
def test_a_skipped_task_is_as_one_whose_loss_is_zero(wrapper, bad):
    found, optimizer = trained(
        wrapper, [ALL, ALL, [("a", 1.0), ("b", bad), ("c", 1.0)]], on_nonfinite="skip_task"
    )
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 1, 0]
    model = make_model()
    plain = WRAPPERS[wrapper](torch.optim.SGD(model.parameters(), lr=0.01))
    for step in range(2):
        plain.zero_grad()
        for task in "abc":
            block(model, plain, task, step)
        plain.step()
    plain.zero_grad()
    for task in "abc":
        block(model, plain, task, 2, 0.0 if task == "b" else 1.0)
    plain.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_skipped_step_changes_nothing(wrapper, bad):
    steps = [ALL, [("a", 1.0), ("b", bad), ("c", 1.0)]]
    found, optimizer = trained(wrapper, steps, on_nonfinite="skip_step")
    expected, _ = trained(wrapper, [ALL])
    assert torch.equal(found, expected)
    assert optimizer.diagnostics.num_skipped_steps == 1
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 1, 0]
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_goes_on_after_a_skipped_step(wrapper):
    steps = [ALL, [("a", float("nan")), ("b", 1.0)], ALL]
    found, _ = trained(wrapper, steps, on_nonfinite="skip_step")
    assert found.isfinite().all()
    skipped, _ = trained(wrapper, [ALL, []])
    assert not torch.equal(found, skipped)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_error_names_the_task_and_leaves_the_block_out(wrapper):
    model = make_model()
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = WRAPPERS[wrapper](base, on_nonfinite="raise")
    block(model, optimizer, "a", 0)
    block(model, optimizer, "c", 0)
    with pytest.raises(FloatingPointError, match="task 'b': gradients must be finite") as refusal:
        block(model, optimizer, "b", 0, float("inf"))
    assert "\n" not in str(refusal.value)
    optimizer.step()  # of the two others
    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected, _ = trained(wrapper, [[("a", 1.0), ("c", 1.0)]])
    assert found.isfinite().all()
    if wrapper not in ("custom", "rlw"):  # whose weights tell how many tasks were named
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_by_default_the_update_is_not_finite_either(wrapper):
    found, optimizer = trained(wrapper, [ALL, [("a", 1.0), ("b", float("nan")), ("c", 1.0)]])
    assert not found[:16].isfinite().any()  # the trunk
    with pytest.raises(ValueError, match="choose an on_nonfinite"):
        _ = optimizer.diagnostics.num_nonfinite


@pytest.mark.parametrize("mode", ["raise", "skip_task", "skip_step"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nothing_changes_while_all_is_finite(wrapper, mode):
    found, optimizer = trained(wrapper, [ALL, ALL, ALL], on_nonfinite=mode)
    expected, _ = trained(wrapper, [ALL, ALL, ALL])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 0, 0]


@pytest.mark.parametrize("call", ["backward", "feature_backward"])
def test_losses_of_one_call(call):
    """A loss that is not finite goes alone, whichever way the losses come."""
    results = []
    for factor in (float("nan"), 0.0):
        model = make_model()
        optimizer = PCGrad(
            torch.optim.SGD(model.parameters(), lr=0.1),
            on_nonfinite="skip_task" if factor else "propagate",
        )
        features = torch.tanh(model["trunk"](torch.ones(2, 3)))
        losses = {t: (model[t](features) - ord(t)).pow(2).mean() for t in "abc"}
        losses["b"] = factor * losses["b"]
        if call == "backward":
            optimizer.backward(losses)
        else:
            optimizer.feature_backward(losses, features)
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_the_head_alone_is_enough():
    """A gradient that is finite in the trunk and not in the head is not finite."""
    model = make_model()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1), on_nonfinite="skip_task")
    for task in "ab":
        with optimizer.task(task):
            loss = loss_of(model, task, 0)
            if task == "b":
                loss = loss + model["b"].bias.sum() * float("nan")
            loss.backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 1]


# A gradient of zero stops MGDA, by its definition.
@pytest.mark.parametrize("choice", ["raise", "skip_task", "skip_step"])
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "mgda"])
def test_a_gradient_without_elements_is_finite(wrapper, choice):
    weight, empty = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.empty(0, 3))
    base = torch.optim.SGD([weight, empty], lr=0.1)
    optimizer = WRAPPERS[wrapper](base, on_nonfinite=choice)
    for _ in range(3):
        optimizer.zero_grad()
        losses = {"a": 2 * weight + empty.sum(), "b": empty.sum(), "c": weight * 0}
        optimizer.backward({name: loss + 4 for name, loss in losses.items()})  # some need them > 0
        optimizer.step()
    assert weight.isfinite()
    assert weight < 0.5
    assert empty.grad.shape == (0, 3)
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 0, 0]


def test_a_gradient_without_elements_is_looked_at_where_it_lies():
    assert is_finite([torch.empty(0, device="meta")]).is_meta


def test_counts_are_resumed():
    steps = [ALL, [("a", float("nan")), ("b", 1.0), ("c", 1.0)]]
    _, optimizer = trained("pcgrad", steps, on_nonfinite="skip_step")
    model = make_model()
    again = PCGrad(torch.optim.SGD(model.parameters(), lr=0.01), on_nonfinite="skip_step")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.diagnostics.num_nonfinite.tolist() == [1, 0, 0]
    assert again.diagnostics.num_skipped_steps == 1


def test_a_closure_cannot_be_skipped():
    model = make_model()
    optimizer = PCGrad(torch.optim.LBFGS(model.parameters()), on_nonfinite="skip_step")
    with pytest.raises(ValueError, match=r"step\(\): must be called without a closure"):
        optimizer.step(lambda: 0.0)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite: must be one of propagate, raise"):
        PCGrad(torch.optim.SGD(make_model().parameters(), lr=0.1), on_nonfinite="ignore")


@pytest.mark.parametrize("bad", [complex("nan"), complex(0, math.inf), complex(-math.inf, 1)])
def test_either_part_of_a_complex_number_may_be_bad(bad):
    assert not is_finite([torch.ones(3), torch.tensor([1 + 1j, bad])])


def test_large_complex_numbers_are_finite():
    assert is_finite([torch.tensor([complex(3e38, 3e38)])])  # their absolute values are not
