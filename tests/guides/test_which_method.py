"""What the page on methods says against torch's own loop and the mathematics."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import gradsurgery
from gradsurgery import LossSum, PCGrad, pcgrad_coefficients, pcgrad_weights, projection_order
from tests.guides.guide import (
    GUIDES,
    TASKS,
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    blocks,
    make_loader,
    run,
)

PAGE = "../which-method.md"
LOOK = "Do the gradients conflict at all?"
DROWNED = "One task drowns the others"


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, optimizer, loader):
    for batches in loader:
        optimizer.zero_grad()
        for name, batch in batches.items():
            with optimizer.task(name):
                model.loss(name, batch).backward()
        optimizer.step()


def train_plainly(model, loader):
    base = adamw(model)
    for batches in loader:
        base.zero_grad()
        for name, batch in batches.items():
            model.loss(name, batch).backward()
        base.step()


def test_all_code_is_run():
    assert list(blocks(PAGE)) == [LOOK, DROWNED]


def test_looking_changes_nothing():
    """The weights are those of the base alone, and the rates are there for each pair."""
    model, plain = ThreeTasks(), ThreeTasks()
    space = run(PAGE, LOOK, model=model, loader=make_loader())
    train_plainly(plain, make_loader())
    assert_close(model, plain, 1e-6)
    assert list(space["conflicts"]) == [f"conflict_rate/{pair}" for pair in ("a~b", "a~c", "b~c")]
    assert list(space["cosines"]) == [f"cosine/{pair}" for pair in ("a~b", "a~c", "b~c")]
    assert min(space["conflicts"].values()) > 0.3


def test_every_gradient_is_brought_to_the_length_of_the_shortest():
    model = ThreeTasks()
    found = run(PAGE, DROWNED, model=model, loader=make_loader())["optimizer"].diagnostics
    assert_trained(model)
    assert found.norms.max() > 1.1 * found.norms.min()
    torch.testing.assert_close((found.weights * found.norms), found.norms.min().expand(3))


# When does PCGrad do nothing?


def test_no_pair_conflicts():
    """Three tasks with the same batch and the same head: all weights are 1."""
    loader = [dict.fromkeys(TASKS, batch_of("a", step)) for step in range(4)]
    model, summed = ThreeTasks(), ThreeTasks()
    optimizer = PCGrad(adamw(model))
    train(model, optimizer, loader)
    train(summed, LossSum(adamw(summed)), loader)
    assert_close(model, summed, 1e-6)
    assert optimizer.diagnostics.weights.tolist() == [1.0, 1.0, 1.0]


def test_one_task_in_a_step():
    loader = [{name: batch} for batches in make_loader(3) for name, batch in batches.items()]
    model, plain = ThreeTasks(), ThreeTasks()
    with pytest.warns(UserWarning, match="the step had one task only, 'a'"):
        train(model, PCGrad(adamw(model)), loader)
    train_plainly(plain, loader)
    assert_close(model, plain, 0.0)


def test_nothing_is_shared():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.models = nn.ModuleDict({name: ThreeTasks() for name in TASKS})

        def loss(self, name, batch):
            return self.models[name].loss(name, batch)

    model, plain = Apart(), Apart()
    train(model, PCGrad(adamw(model)), make_loader(4))
    train_plainly(plain, make_loader(4))
    assert_close(model, plain, 0.0)


@pytest.mark.parametrize("cosine", [-0.9, -0.1, 0.1])
def test_two_gradients_of_the_same_norm(cosine):
    gram = 9 * torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    first, second = pcgrad_weights(gram, projection_order(2, 0, 0)).tolist()
    assert first == pytest.approx(second, rel=1e-12)
    assert first == pytest.approx(1 + max(0, -cosine), rel=1e-12)


def test_a_projection_takes_the_cosine_times_the_norm():
    grads = torch.tensor([[3.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    gram = grads @ grads.T
    projected = pcgrad_coefficients(gram, projection_order(2, 0, 0)) @ grads
    cosine = gram[0, 1] / gram.diagonal().prod().sqrt()
    taken = (grads - projected).norm(dim=1)
    torch.testing.assert_close(taken, cosine.abs() * grads.norm(dim=1))


# Does the loss weight still matter?


def test_a_weight_scales_what_is_left_of_its_own_gradient_alone():
    generator = torch.Generator().manual_seed(0)
    factors = torch.tensor([[1.0], [7.0], [0.1], [1.0]], dtype=torch.float64)
    num_changed = 0
    for step in range(50):
        grads = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        order = projection_order(4, 0, step)
        plain, scaled = (
            pcgrad_coefficients(rows @ rows.T, order) @ rows for rows in (grads, factors * grads)
        )
        torch.testing.assert_close(scaled, factors * plain, rtol=1e-9, atol=1e-12)
        num_changed += not torch.allclose(plain, grads)
    assert num_changed > 25


# The table.


def test_the_calls_are_calls():
    text = re.sub(r"^```.*?^```", "", (GUIDES / PAGE).read_text(), flags=re.M | re.S)
    code = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", text)]
    calls = [each for each in code if re.match(r"[A-Z]\w+\(base", each)]
    assert len(calls) > 6
    names = {name: getattr(gradsurgery, name) for name in gradsurgery.__all__}
    for call in calls:
        base = adamw(ThreeTasks())
        optimizer = eval(call, {**names, "base": base, "weighting": torch.diagonal})
        assert optimizer.base is base, call
    for option in re.findall(r"`(\w+=[\w.]+)`", text):
        eval(f"PCGrad(base, {option})", {"PCGrad": PCGrad, "torch": torch, "base": base})
