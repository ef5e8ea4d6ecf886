"""SMART's terms against values worked out by hand and against their own definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from benchmarks.multitask_bert.batches.tokens import Batch, Tokens
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.model.regularisers import (
    SMOOTHNESS,
    Proximity,
    divergence,
    smoothness,
)
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.tasks import TASKS


def make_model() -> MultiTaskModel:
    torch.manual_seed(0)
    recipe, _ = override(find("smet-walker/v1-dropout-0.3"), ["head_dropout=0.0"])
    config = EncoderConfig(20, 16, 2, 2, 32, hidden_dropout=0.0, attention_dropout=0.0)
    return MultiTaskModel(MinBert(config), recipe)


def make_batch(task: str) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(1, 20, (4, 6))
    other = Tokens(torch.randint(1, 20, (4, 9)), torch.ones(4, 9, dtype=torch.bool))
    second = other if task == "sts" else None
    labels = torch.zeros(4)
    return Batch(task, Tokens(ids, ids > 0), second, labels, torch.arange(4))


def test_divergence_of_scores_is_the_squared_difference():
    found = divergence(TASKS["sts"], torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    assert found.item() == 2.5


def test_divergence_of_classes_is_symmetrised():
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    by_hand = sum(
        a * math.log(a / b) + b * math.log(b / a)
        for a, b in zip(p[0].tolist(), q[0].tolist(), strict=True)
    )
    assert divergence(TASKS["cfimdb"], p.log(), q.log()).item() == pytest.approx(by_hand, rel=1e-6)
    assert divergence(TASKS["cfimdb"], q.log(), p.log()).item() == pytest.approx(by_hand, rel=1e-6)
    logit = torch.tensor([math.log(3.0)])  # a probability of 0.75
    found = divergence(TASKS["quora"], logit, torch.zeros(1)).item()
    assert found == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("task", ["sst", "quora", "sts"])
def test_equal_outputs_do_not_diverge(task):
    outputs = make_model()(make_batch(task))
    assert divergence(TASKS[task], outputs, outputs).item() == 0


@pytest.mark.parametrize("task", ["sst", "quora", "sts"])
def test_no_noise_changes_nothing(task):
    model, batch = make_model(), make_batch(task)
    noise = torch.zeros(model.noise_shape(batch))
    assert torch.equal(model(batch), model(batch, noise=noise))


@pytest.mark.parametrize("task", ["sst", "quora", "sts"])
def test_smoothness_is_the_divergence_under_an_ascended_noise(task):
    """One step by hand, from the same random draw."""
    model, batch = make_model(), make_batch(task)
    outputs = model(batch)
    torch.manual_seed(5)
    found = smoothness(model, batch, outputs)
    torch.manual_seed(5)
    noise = torch.randn(model.noise_shape(batch)) * math.sqrt(1e-5)
    noise.requires_grad_()
    divergence(TASKS[task], model(batch, noise=noise), outputs.detach()).backward()
    moved = noise.detach() + 1e-3 * noise.grad
    moved = moved / (moved.abs().amax(-1, keepdim=True) + 1e-6)
    assert moved.abs().max().item() == pytest.approx(1, abs=1e-2)
    expected = divergence(TASKS[task], model(batch, noise=moved), outputs)
    torch.testing.assert_close(found, expected)
    assert found.item() > 0


def test_smoothness_leaves_no_gradient_but_that_of_its_value():
    model, batch = make_model(), make_batch("sst")
    torch.manual_seed(5)
    term = smoothness(model, batch, model(batch), {**SMOOTHNESS, "num_steps": 3})
    assert all(parameter.grad is None for parameter in model.parameters())
    term.backward()
    assert model.heads["sst"][1].weight.grad.abs().sum() > 0


def test_proximity_follows_the_model():
    model, batch = make_model(), make_batch("sst")
    model.eval()
    proximity = Proximity(model, momentum=0.75)
    before = copy.deepcopy(model.state_dict())
    outputs = model(batch)
    assert proximity.term(batch, outputs).item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert proximity.term(batch, model(batch)).item() > 1e-6
    proximity.follow(model)
    for name, past in proximity.state_dict().items():
        torch.testing.assert_close(past, before[name] + 0.025)
    assert all(not parameter.requires_grad for parameter in proximity.past.parameters())
