"""Tied, frozen and new parameters against PCGrad by hand; the loss sum against the base alone."""

import pytest
import torch
from torch import nn

from gradsurgery import LossSum, PCGrad
from tests.guides.guide import (
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    losses_of,
    make_loader,
    run,
    train_by_hand,
)

GUIDE = "parameters.md"
LOSS_SUM = {"import PCGrad": "import LossSum as PCGrad"}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


# Tied weights.


class Tied(nn.Module):
    """An embedding that is the output layer as well, and tasks that mask tokens differently."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(7, 4)
            self.trunk = nn.Linear(4, 4)
            self.output = nn.Linear(4, 7, bias=False)

    def loss(self, name, batch):
        tokens, targets = batch
        logits = self.output(self.trunk(self.embedding(tokens)).tanh())
        return nn.functional.cross_entropy(logits, targets)


def token_batches(num_steps=6):
    generator = torch.Generator().manual_seed(0)
    return [
        {name: tuple(torch.randint(7, (2, 9), generator=generator)) for name in "abc"}
        for _ in range(num_steps)
    ]


def test_tied_weights_count_once():
    """PCGrad by hand over each parameter once; and not what two parameters would do."""
    loader = token_batches()
    model = Tied().double()
    run(GUIDE, "Tied weights", model=model, loader=loader)
    assert model.output.weight is model.embedding.weight
    by_hand = Tied().double()
    by_hand.output.weight = by_hand.embedding.weight
    train_by_hand(by_hand, adamw(by_hand), losses_of(by_hand, loader))
    assert_close(model, by_hand, 1e-10)
    assert not torch.equal(model.embedding.weight, Tied().double().embedding.weight)


def test_tied_weights_in_the_loss_sum_are_those_of_the_base_alone():
    loader = token_batches()
    model = Tied()
    run(GUIDE, "Tied weights", edits=LOSS_SUM, model=model, loader=loader)
    plain = Tied()
    plain.output.weight = plain.embedding.weight
    base = adamw(plain)
    for batches in loader:
        base.zero_grad()
        for name, batch in batches.items():
            plain.loss(name, batch).backward()
        base.step()
    assert_close(model, plain, 0.0)


# Freezing.

FROZEN = {
    "trunk": "model.trunk",
    "a layer": "model.trunk[0]",
    "a head": "model.heads['b']",
    "all but a head": "nn.ModuleList([model.trunk, model.heads['a'], model.heads['c']])",
}


def steps_with_freezing(model, loader, frozen):
    for step, losses in enumerate(losses_of(model, loader)):
        eval(frozen, {"model": model, "nn": nn}).requires_grad_(step < 2 or step >= 4)
        yield {
            name: loss
            for name, loss in losses.items()
            if any(p.requires_grad for p in model.trunk.parameters())
            or model.heads[name].weight.requires_grad
        }


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("method", ["PCGrad", "LossSum"])
def test_freezing_and_thawing(frozen, method):
    """By hand in float64, or bit for bit as the base alone; what is frozen stays where it was."""
    code = FROZEN[frozen]
    loader = make_loader(7, dtype=torch.float64)
    edits = {"model.trunk.requires_grad_": f"{code}.requires_grad_"}
    if frozen == "all but a head":  # the losses of the others then need no gradient at all
        edits["            model.loss(name, batch).backward()\n"] = (
            "            loss = model.loss(name, batch)\n"
            "            if loss.requires_grad:\n                loss.backward()\n"
        )
    if method == "LossSum":
        edits |= LOSS_SUM
    model = ThreeTasks().double()
    places = []
    model.register_forward_hook(lambda *_: places.append(copied(code, model)))
    run(GUIDE, "Freezing", edits=edits, model=model, loader=loader, nn=nn)
    # Steps 2 and 3 leave it alone: three forwards a step see the same until that of step 4.
    assert all(torch.equal(place, places[6]) for place in places[6:13])
    assert not torch.equal(places[0], places[6])
    assert not torch.equal(places[12], places[-1])

    other = ThreeTasks().double()
    base = adamw(other)
    steps = steps_with_freezing(other, loader, code)
    if method == "PCGrad":
        train_by_hand(other, base, steps)
        assert_close(model, other, 1e-10)
    else:
        for losses in steps:
            base.zero_grad()
            for loss in losses.values():
                loss().backward()
            base.step()
        assert_close(model, other, 0.0)


def copied(code, model):
    part = eval(code, {"model": model, "nn": nn})
    return torch.cat([parameter.detach().flatten() for parameter in part.parameters()]).clone()


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize(
    "optimize", [PCGrad, LossSum, lambda base: base], ids=["pc", "sum", "base"]
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_zero_gradient_moves_frozen_parameters(optimize, set_to_none):
    """As it does without the library."""
    model = ThreeTasks()
    optimizer = optimize(adamw(model))
    model.loss("a", batch_of("a", 0)).backward()
    optimizer.step()
    model.trunk.requires_grad_(False)
    before = copied("model.trunk", model)
    optimizer.zero_grad(set_to_none=set_to_none)
    model.loss("a", batch_of("a", 1)).backward()
    optimizer.step()
    assert torch.equal(copied("model.trunk", model), before) == set_to_none


# New parameters.

GROWING = [("a",), ("a", "b"), ("a", "b"), ("a", "b", "c"), ("b", "c"), ("a", "b", "c")]


def growing_loader(dtype=torch.float64):
    return [
        {name: batch_of(name, step, dtype=dtype) for name in names}
        for step, names in enumerate(GROWING)
    ]


def grown_from_the_start(model):
    """All parameters in the optimizer at once, in the groups and at the rates of the guide."""
    heads = [{"params": head.parameters(), "lr": 1e-2} for head in model.heads.values()]
    return torch.optim.AdamW([{"params": model.trunk.parameters()}, *heads], lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
def test_new_parameters_and_new_tasks():
    """The same as with all of them there from the start, bit for bit, and as by hand."""
    loader = growing_loader()
    model = ThreeTasks().double()
    grown = run(GUIDE, "New parameters", model=model, loader=loader)["optimizer"]
    assert [len(group["params"]) for group in grown.param_groups] == [6, 2, 2, 2]
    assert grown.tasks == ("a", "b", "c")

    other = ThreeTasks().double()
    optimizer = PCGrad(grown_from_the_start(other))
    for batches in loader:
        optimizer.zero_grad()
        for name, batch in batches.items():
            with optimizer.task(name):
                other.loss(name, batch).backward()
        optimizer.step()
    assert_trained(model)
    assert_close(model, other, 0.0)

    by_hand = ThreeTasks().double()
    train_by_hand(by_hand, grown_from_the_start(by_hand), losses_of(by_hand, loader))
    assert_close(model, by_hand, 1e-10)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
def test_new_parameters_resume_bit_for_bit():
    loader = growing_loader(torch.float32)
    whole = ThreeTasks()
    run(GUIDE, "New parameters", model=whole, loader=loader)
    first = ThreeTasks()
    optimizer = run(GUIDE, "New parameters", model=first, loader=loader[:3])["optimizer"]

    model = ThreeTasks()
    model.load_state_dict(first.state_dict())
    edits = {
        "known = set()\n": (
            "known = {'a', 'b'}\n"
            "for name in sorted(known):\n"
            "    new = model.heads[name].parameters()\n"
            "    optimizer.add_param_group({'params': new, 'lr': 1e-2})\n"
            "optimizer.load_state_dict(state)\n"
        )
    }
    state = optimizer.state_dict()
    run(GUIDE, "New parameters", edits=edits, model=model, loader=loader[3:], state=state)
    assert_close(model, whole, 0.0)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
def test_a_parameter_of_no_group_accumulates():
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.trunk.parameters(), lr=0.1))
    head = model.heads["a"].weight
    norms, start = [], head.clone()
    for batches in make_loader(2):
        optimizer.zero_grad()
        with optimizer.task("a"):
            model.loss("a", batches["a"]).backward()
        optimizer.step()
        norms.append(head.grad.clone())
    assert torch.equal(head, start)
    assert not torch.equal(norms[0], norms[1])
