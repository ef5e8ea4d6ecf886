"""Both sides of each change on the page against each other, with two tasks, where the order of
the visits is no matter."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from pytorch_optimizer import PCGrad as OlderPCGrad
from torch.nn import functional as F

from gradsurgery import PCGrad
from tests.guides.guide import (
    GUIDES,
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    blocks,
    losses_of,
    make_loader,
    run,
    train_by_hand,
)

PAGE = "../coming-from.md"
TEXT = (GUIDES / PAGE).read_text(encoding="utf-8")
CHANGES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```", TEXT, re.M | re.S))


def run_side(heading, sign, **names):
    """The code before (``-``) or after (``+``) a change."""
    lines = [line for line in CHANGES[heading].splitlines() if line[:1] in ("", " ", sign)]
    code = "\n".join(line[1:] for line in lines)
    space = {"torch": torch, "F": F, **names}
    exec(compile(code, f"{PAGE} {heading} {sign}", "exec"), space)
    return space["optimizer"]


def two_tasks():
    """Two conflicting tasks on a trunk, in float64."""
    model = ThreeTasks().double()
    del model.heads["c"]
    loader = [
        {name: batches[name] for name in "ab"} for batches in make_loader(12, dtype=torch.float64)
    ]
    return model, loader


def test_all_code_is_run():
    assert list(CHANGES) == ["Pytorch-PCGrad", "pytorch_optimizer", "TorchJD"]
    assert list(blocks(PAGE)) == ["TorchJD's other methods"]


def test_from_pytorch_pcgrad():
    """Algorithm 1 by hand, with three tasks."""
    loader = make_loader(dtype=torch.float64)
    model, by_hand = ThreeTasks().double(), ThreeTasks().double()
    optimizer = run_side("Pytorch-PCGrad", "+", model=model, loader=loader)
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    train_by_hand(by_hand, base, losses_of(by_hand, loader))
    assert_close(model, by_hand, 1e-10)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer.base, torch.optim.AdamW)


def test_from_pytorch_optimizer():
    (old, loader), (new, _) = two_tasks(), two_tasks()
    run_side("pytorch_optimizer", "-", model=old, loader=loader)
    optimizer = run_side("pytorch_optimizer", "+", model=new, loader=loader)
    assert optimizer.diagnostics.conflict_rate[0, 1] > 0.3
    assert_close(new, old, 1e-8)


def test_its_state_is_taken():
    """Training that moves over in the middle goes on as the other one does."""
    (old, loader), (new, _) = two_tasks(), two_tasks()
    older = run_side("pytorch_optimizer", "-", model=old, loader=loader)
    optimizer = run_side("pytorch_optimizer", "+", model=new, loader=[])
    new.load_state_dict(old.state_dict())
    optimizer.load_state_dict(copy.deepcopy(older.state_dict()))
    for batches in loader:
        for model, wrapper in ((old, older), (new, optimizer)):
            wrapper.zero_grad()
            wrapper.pc_backward([model.loss(name, batch) for name, batch in batches.items()])
            wrapper.step()
    assert_close(new, old, 1e-8)


@pytest.mark.parametrize(
    ("wrap", "call", "factor"),
    [(OlderPCGrad, "pc_backward", 1), (PCGrad, "pc_backward", 1), (PCGrad, "backward", 2)],
)
def test_gradients_add_up_with_backward_alone(wrap, call, factor):
    model = ThreeTasks()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    backward = getattr(optimizer, call)
    grads = []
    for _ in range(2):
        backward([model.loss("a", batch_of("a", 0)), model.loss("a", batch_of("a", 1))])
        grads.append(model.trunk[0].weight.grad.clone())
    torch.testing.assert_close(grads[1], factor * grads[0])


def test_from_torchjd():
    """Two tasks of the same inputs, in conflict."""
    (old, _), (new, _) = two_tasks(), two_tasks()
    loader = []
    for step in range(12):
        inputs, targets = batch_of("a", step, dtype=torch.float64)
        loader.append((inputs, {"a": targets, "b": 0.5 - targets}))
    run_side("TorchJD", "-", model=old, loader=loader)
    optimizer = run_side("TorchJD", "+", model=new, loader=loader)
    assert optimizer.diagnostics.conflict_rate[0, 1] > 0.3
    assert_close(new, old, 1e-8)


def test_other_methods_of_torchjd():
    """MGDA's weights are those of a convex combination."""
    model = ThreeTasks()
    loader = make_loader()
    optimizer = run(PAGE, "TorchJD's other methods", model=model, loader=loader)["optimizer"]
    weights = optimizer.diagnostics.weights
    assert_trained(model)
    assert optimizer.diagnostics.num_surgeries == len(loader)
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert weights.min() >= 0
