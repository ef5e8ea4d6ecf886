"""Compiled and checkpointed models against the same without."""

import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from gradsurgery import PCGrad
from tests.guides.guide import (
    ThreeTasks,
    assert_close,
    assert_trained,
    make_loader,
    run,
)

GUIDE = "compile.md"
COMPILED = "Compiled models"
CHECKPOINTED = "Activation checkpointing"
EAGER = {"model.compile()\n": ""}
LOSS_SUM = {"import PCGrad": "import LossSum as PCGrad"}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def trained_eagerly(loader, edits=None, model=None):
    model = ThreeTasks() if model is None else model
    space = run(GUIDE, COMPILED, edits={**EAGER, **(edits or {})}, model=model, loader=loader)
    return model, space["optimizer"]


# Compiled.


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("edits", [{}, LOSS_SUM], ids=["PCGrad", "LossSum"])
def test_a_compiled_model(edits):
    """Bit for bit: this backend runs the same kernels as eager."""
    counter = CompileCounterWithBackend("aot_eager")
    model = ThreeTasks()
    compiled = {"model.compile()": "model.compile(backend=counter)", **edits}
    loader = make_loader(6)
    run(GUIDE, COMPILED, edits=compiled, model=model, loader=loader, counter=counter)
    assert counter.frame_count == 3  # a graph for each task
    plain, _ = trained_eagerly(loader, edits)
    assert_trained(model)
    assert_close(model, plain, 0.0)


class Trunk(nn.Module):
    """A module of one's own, since torch compiles none of its containers by itself."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("form", ["blocks", "sequence", "mapping", "generator", "one graph"])
def test_a_compiled_trunk_has_one_graph_for_all_tasks_and_forms(form):
    """Whatever form `backward` is given its losses in: they may keep the graph."""
    counter = CompileCounterWithBackend("aot_eager")
    models = []
    for compiled in (False, True):
        model = ThreeTasks()
        model.trunk = Trunk(model.trunk)
        if compiled:
            model.trunk.compile(backend=counter)
        optimizer = PCGrad(adamw(model), tasks=("a", "b", "c"))
        for batches in make_loader(4):
            optimizer.zero_grad()
            if form == "blocks":
                for name, batch in batches.items():
                    with optimizer.task(name):
                        model.loss(name, batch).backward()
            elif form == "one graph":
                features = model.trunk(batches["a"][0])
                optimizer.backward([h(features).square().mean() for h in model.heads.values()])
            else:
                losses = ((name, model.loss(name, batch)) for name, batch in batches.items())
                if form == "sequence":
                    losses = [loss for _, loss in losses]
                elif form == "mapping":
                    losses = dict(losses)
                optimizer.backward(losses)
            optimizer.step()
        models.append(model)
    assert counter.frame_count == 1
    assert_close(models[1], models[0], 0.0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_trunk_compiled_to_machine_code():
    """Inductor sums in another order."""
    counter = CompileCounterWithBackend("inductor")
    models = [ThreeTasks(), ThreeTasks()]
    for model in models:
        model.trunk = Trunk(model.trunk)
        compiled = {"model.compile()": "model.trunk.compile(backend=counter)"}
        edits = EAGER if model is models[0] else compiled
        run(GUIDE, COMPILED, edits=edits, model=model, loader=make_loader(6), counter=counter)
    assert counter.frame_count == 1
    assert_close(models[1], models[0], 1e-5)


# Activation checkpointing.


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(use_reentrant):
    """Bit for bit, and the forward of the trunk runs twice."""
    edits = {} if not use_reentrant else {"inputs, use": "inputs.requires_grad_(), use"}
    if use_reentrant:
        edits["use_reentrant=False"] = "use_reentrant=True"
    checkpointed = run(GUIDE, CHECKPOINTED, edits=edits)["Checkpointed"]
    inner = ThreeTasks()
    calls = []
    inner.trunk[0].register_forward_hook(lambda *_: calls.append(1))
    trained_eagerly(make_loader(6), model=checkpointed(inner))
    assert len(calls) == 2 * 3 * 6
    plain, _ = trained_eagerly(make_loader(6))
    assert_trained(inner)
    assert_close(inner, plain, 0.0)


def test_activation_checkpointing_draws_the_same_dropout():
    """Within a block as outside: the second forward has the random state of the first."""

    def train(use):
        torch.manual_seed(1)
        model = ThreeTasks()
        model.trunk.append(nn.Dropout(0.5))

        def loss(name, batch):
            inputs, targets = batch
            trunk = model.trunk
            features = checkpoint(trunk, inputs, use_reentrant=False) if use else trunk(inputs)
            return nn.functional.mse_loss(model.heads[name](features), targets)

        optimizer = PCGrad(adamw(model))
        for batches in make_loader(4):
            optimizer.zero_grad()
            optimizer.backward((name, loss(name, batch)) for name, batch in batches.items())
            optimizer.step()
        return model

    assert_close(train(True), train(False), 0.0)
