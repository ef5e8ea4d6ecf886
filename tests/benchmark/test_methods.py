"""The table of methods against what it names, and what is made of each row against that row."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import gradsurgery
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Stage
from benchmarks.multitask_bert.training.optimizers import make_optimizer


@pytest.mark.parametrize("name", METHODS)
def test_a_row_names_what_there_is(name):
    method = METHODS[name]
    assert method.optimizer in gradsurgery.__all__
    assert set(method.options) <= {field.name for field in fields(Stage)}


@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_of_a_row(name):
    base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    optimizer = make_optimizer(Stage(method=name), base, ("sst", "sts"), seed=3)
    assert type(optimizer).__name__ == METHODS[name].optimizer
    assert optimizer.param_groups is base.param_groups


def test_the_options_of_a_row_reach_its_class():
    updates = []
    for c in (0.7, 0.4):
        stage = Stage(method="cagrad", method_options={"c": c, "every": 3}, reduction="sum")
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = make_optimizer(stage, torch.optim.SGD([weight], lr=1), ("sst", "sts"), seed=3)
        assert optimizer.every == 3
        optimizer.backward([weight[0], 3 * weight[1] - weight[0]])
        updates.append(weight.grad.tolist())
        theirs = gradsurgery.CAGrad(torch.optim.SGD([weight], lr=1), c=c, scope="all")
        theirs.zero_grad()
        theirs.backward([weight[0], 3 * weight[1] - weight[0]])
        assert weight.grad.tolist() == updates[-1]
    assert updates[0] != updates[1]


def test_the_rows_that_committed_records_name_are_there():
    named = {"none": "none", "loss-sum": "loss sum", "pcgrad": "PCGrad"}
    assert named.items() <= {name: method.title for name, method in METHODS.items()}.items()


def test_every_method_of_the_library_has_a_row():
    optimizers = {
        name
        for name in gradsurgery.__all__
        if isinstance(getattr(gradsurgery, name), type)
        and issubclass(getattr(gradsurgery, name), gradsurgery.MultiTaskOptimizer)
    }
    rows = {method.optimizer for method in METHODS.values()}
    # The others need more than a base: weights, or another method.
    assert rows == optimizers - {"MultiTaskOptimizer", "WeightedSum", "CRMOGM"}
