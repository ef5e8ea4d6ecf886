"""Methods on sketches against the same on rows, and against a plain loop where weights are late."""

import copy
import io

import pytest
import torch
from torch import nn

from benchmarks.speed.memory import peak_bytes
from gradsurgery import (
    DBMTL,
    GradNorm,
    LossSum,
    MultiTaskOptimizer,
    PCGrad,
    Sketch,
    UncertaintyWeighting,
    WeightedSum,
    pcgrad_weights,
    projection_order,
)
from tests.library.methods.table import GRAM_METHODS, SEEING_METHODS, TASKS

METHODS = GRAM_METHODS | SEEING_METHODS


class Model(nn.Module):
    """A trunk for all tasks, a head for each, a scale that "a" and "b" reach, one for nobody."""

    def __init__(self, width=6):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 5))
            self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.scale = nn.Parameter(torch.ones(5))
        self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def losses(self, step, tasks=TASKS, same_inputs=True):
        found = {}
        for task in tasks:
            number = TASKS.index(task)
            generator = torch.Generator().manual_seed(10 * step + (0 if same_inputs else number))
            inputs = torch.randn(8, 4, generator=generator).double()
            features = self.trunk(inputs) * (1 if task == "c" else self.scale)
            targets = inputs.sum(1, keepdim=True) * (-1.0) ** number + 0.5 * number
            found[task] = (self.heads[task](features) - targets).square().mean()
        return found


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def numbers(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(make, num_steps=5, **options):
    model = Model()
    optimizer = make(sgd(model), tasks=TASKS, **options)
    for step in range(num_steps):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        optimizer.step()
    assert model.unused.grad is None
    return numbers(model), optimizer


@pytest.mark.parametrize("method", METHODS)
def test_backward_is_exact_where_the_sketch_loses_nothing(method):
    rows, _ = trained(METHODS[method])
    found, optimizer = trained(METHODS[method], memory="sketch")
    torch.testing.assert_close(found, rows, rtol=1e-9, atol=1e-9)
    assert optimizer.diagnostics.num_surgeries == 5


@pytest.mark.parametrize(
    "options",
    [{"reduction": "mean"}, {"scope": "all"}, {"scope": "all", "reduction": "mean"},
     {"every": 2}, {"start_step": 2}, {"seed": 7}, {"on_nonfinite": "skip_step"}],
    ids=str,
)  # fmt: skip
def test_options_mean_what_they_mean_on_rows(options):
    rows, _ = trained(PCGrad, **options)
    found, _ = trained(PCGrad, memory="sketch", **options)
    torch.testing.assert_close(found, rows, rtol=1e-12, atol=1e-12)


def test_declared_parameters_alone_are_weighed():
    found = []
    for memory in ("rows", "sketch"):
        model = Model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, shared=model.trunk, memory=memory)
        for step in range(3):
            optimizer.zero_grad()
            optimizer.backward(model.losses(step))
            optimizer.step()
        found.append(numbers(model))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_backwards_of_one_step_add_up():
    found = []
    for memory in ("rows", "sketch"):
        model = Model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, memory=memory)
        for step in range(4):
            optimizer.zero_grad()
            for part in range(2):
                optimizer.backward(model.losses(10 * step + part))
            optimizer.step()
        found.append(numbers(model))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def by_plain_loops(plan, momentum=0.0, reduction="sum"):
    """Blocks by hand: the weights of a step are made of the averaged gradients before it."""
    model, seen = Model(), {}
    base = sgd(model)
    weights = {}
    for step, tasks in enumerate(plan):
        shared = [*model.trunk.parameters(), model.scale]
        grads = {}
        for task, loss in model.losses(step, tasks, same_inputs=False).items():
            got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            grads[task] = dict(zip(model.parameters(), got, strict=True))
        base.zero_grad()
        for task, of_task in grads.items():
            for parameter, grad in of_task.items():
                if grad is None:
                    continue
                weight = weights.get(task, 1.0) if any(parameter is p for p in shared) else 1.0
                if reduction == "mean" and weights and any(parameter is p for p in shared):
                    weight = weight / len(weights) if task in weights else weight
                new = weight * grad
                parameter.grad = new if parameter.grad is None else parameter.grad + new
        base.step()
        for task in tasks:
            flat = torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in grads[task].items()
                    if any(p is each for each in shared)
                ]
            )
            old = seen.get(task)
            seen[task] = flat if old is None else momentum * old + (1 - momentum) * flat
        rows = torch.stack([seen[task] for task in TASKS if task in tasks])
        order = projection_order(len(tasks), 0, step)
        made = pcgrad_weights(rows @ rows.T, order)
        weights = dict(zip([t for t in TASKS if t in tasks], made, strict=True))
    return numbers(model)


PLANS = {
    "all": (TASKS,) * 5,
    "one-absent": (TASKS, TASKS, ("c", "a"), ("b", "a"), TASKS, ("a", "b", "c")),
}


def in_blocks(plan, **options):
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, **options)
    for step, tasks in enumerate(plan):
        optimizer.zero_grad()
        for task, loss in model.losses(step, tasks, same_inputs=False).items():
            with optimizer.task(task):
                loss.backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_in_blocks_the_weights_are_those_of_the_steps_before(plan, momentum, reduction):
    options = {"memory": Sketch(momentum=momentum), "reduction": reduction}
    model, optimizer = in_blocks(PLANS[plan], **options)
    expected = by_plain_loops(PLANS[plan], momentum, reduction)
    torch.testing.assert_close(numbers(model), expected, rtol=1e-10, atol=1e-10)
    assert optimizer.diagnostics.num_surgeries == len(PLANS[plan])


def test_a_generator_of_losses_is_one_of_blocks():
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, memory="sketch")
    for step in range(5):
        optimizer.zero_grad()
        losses = model.losses(step, same_inputs=False)
        optimizer.backward((name, losses.pop(name)) for name in TASKS)
        optimizer.step()
    in_order, _ = in_blocks(PLANS["all"], memory="sketch")
    assert torch.equal(numbers(model), numbers(in_order))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_training_goes_on_bit_for_bit(momentum):
    options = {"memory": Sketch(momentum=momentum), "seed": 3}
    model, optimizer = in_blocks(PLANS["one-absent"], **options)
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    saved.seek(0)
    of_model, of_optimizer = torch.load(saved, weights_only=True)
    again = Model()
    again.load_state_dict(of_model)
    resumed = PCGrad(sgd(again), tasks=TASKS, **options)
    resumed.load_state_dict(of_optimizer)
    copied, its_optimizer = copy.deepcopy((model, optimizer))
    for each, of_each in ((model, optimizer), (again, resumed), (copied, its_optimizer)):
        for step in range(6, 9):
            of_each.zero_grad()
            for task, loss in each.losses(step, same_inputs=False).items():
                with of_each.task(task):
                    loss.backward()
            of_each.step()
        assert torch.equal(numbers(each), numbers(model))
        assert repr(of_each.state_dict()["gradsurgery"]) == repr(
            optimizer.state_dict()["gradsurgery"]
        )


@pytest.mark.parametrize("spoilt", [{9: torch.ones(2)}, {0: torch.ones(2, 2)}, {0: "a"}], ids=str)
def test_a_state_that_none_can_have_is_refused(spoilt):
    _, optimizer = in_blocks(PLANS["all"], memory="sketch")
    state = optimizer.state_dict()
    state["gradsurgery"]["sketches"] = [spoilt]
    with pytest.raises((TypeError, ValueError), match=r"^state_dict: sketches:? must be"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_step_that_is_not_finite_leaves_the_weights_of_the_next_alone(bad_step):
    """As the first steps of `GradScaler` are, which the base optimizer then leaves out."""
    updates = []
    for spoils in (False, True):
        model = Model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, memory=Sketch(momentum=0.5))
        for step in range(bad_step + 2):
            if step == bad_step and not spoils:
                optimizer._surgery.clock.tick()
                continue
            optimizer.zero_grad()
            for task, loss in model.losses(step, same_inputs=False).items():
                with optimizer.task(task):
                    factor = float("inf") if step == bad_step and task != "b" else 1.0
                    (loss * factor).backward()
            optimizer.surgery()
            if step == bad_step:
                optimizer.zero_grad()
            optimizer.step()
            if step == bad_step:
                optimizer._surgery.clock.tick()
        updates.append(model.trunk[0].weight.grad)
    assert updates[1].isfinite().all()
    if bad_step == 0:
        assert torch.equal(*updates)


@pytest.mark.parametrize("make", [
    lambda base, **o: LossSum(base, **o),
    lambda base, **o: WeightedSum(base, {"a": 1.0, "b": 0.5, "c": 2.0}, **o),
])  # fmt: skip
@pytest.mark.parametrize("by_blocks", [False, True])
def test_a_monitor_on_sketches_tells_what_one_on_rows_tells(make, by_blocks):
    found = []
    for monitor in (True, "sketch", False):
        model = Model()
        optimizer = make(sgd(model), monitor=monitor)
        for step in range(3):
            optimizer.zero_grad()
            losses = model.losses(step)
            if by_blocks:
                for task in TASKS:
                    with optimizer.task(task):
                        losses[task].backward(retain_graph=True)
            else:
                optimizer.backward(losses)
            optimizer.step()
        told = {} if monitor is False else optimizer.diagnostics.summary()
        found.append((told, numbers(model)))
    (rows, by_rows), (sketch, by_sketch), (_, plain) = found
    assert sketch.keys() == rows.keys()
    assert list(sketch.values()) == pytest.approx(list(rows.values()), rel=1e-9)
    assert torch.equal(by_sketch, by_rows)
    torch.testing.assert_close(by_sketch, plain, rtol=1e-12, atol=1e-12)


def wide_losses(model):
    inputs = torch.linspace(-1, 1, 8).expand(2, 8)
    return [(model(inputs) * factor).square().sum() for factor in (1.0, -2.0, 3.0)]


def peak_of(make, by_blocks):
    """What the second step takes above the parameters and what is kept between steps."""
    model = nn.Sequential(nn.Linear(8, 200_000), nn.Linear(200_000, 8))
    optimizer = make(torch.optim.SGD(model.parameters(), lr=1e-9))

    def step():
        if by_blocks:
            for number in range(3):
                with optimizer.task(number):
                    wide_losses(model)[number].backward()
        else:
            optimizer.backward(wide_losses(model))
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    return peak_bytes(step), sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("by_blocks", [False, True])
def test_memory_is_that_of_the_loss_sum(by_blocks):
    """And of a block's own gradient, where it is added to those before only once it is complete."""
    plain, size = peak_of(LossSum, by_blocks)
    for number, make in enumerate(
        (
            lambda base: PCGrad(base, memory=Sketch(1 << 10)),
            lambda base: LossSum(base, monitor=Sketch(1 << 10)),
        )
    ):
        peak, _ = peak_of(make, by_blocks)
        assert peak <= plain + (size if by_blocks or number else 1 << 14), (peak, plain, size)


def test_the_first_step_keeps_no_rows_either():
    model = nn.Sequential(nn.Linear(8, 200_000), nn.Linear(200_000, 8))
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=1e-9), memory=Sketch(1 << 10))
    for number in range(3):
        with optimizer.task(number):
            wide_losses(model)[number].backward()
        assert optimizer._step.buffer.num_bytes <= (number + 5) * 4 * (1 << 10)


def test_methods_that_look_at_no_gradients_are_what_they_were():
    rows, _ = trained(UncertaintyWeighting)
    found, _ = trained(UncertaintyWeighting, memory="sketch")
    assert torch.equal(found, rows)


def test_estimates_are_near_where_much_is_lost():
    """2,400 parameters in 512 numbers: cosines within four standard deviations."""
    cosines = []
    for monitor in (True, Sketch(512)):
        model = Model(width=240)
        optimizer = LossSum(sgd(model), monitor=monitor)
        optimizer.backward(model.losses(0))
        cosines.append(optimizer.diagnostics.cosines)
    exact, estimated = cosines
    assert ((exact - estimated).abs() <= 4 * (1 - exact**2 + 1e-9) / 512**0.5).all()
    assert not torch.equal(exact, estimated)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (PCGrad, {"memory": "rowz"}, 'memory: must be \'rows\', "sketch" or a Sketch, got'),
        (PCGrad, {"memory": True}, "memory: must be"),
        (LossSum, {"monitor": "rows"}, "monitor: must be False"),
        (LossSum, {"memory": "sketch"}, "memory: must be left out of LossSum"),
        (PCGrad, {"memory": "sketch", "granularity": "tensor"}, "granularity: must be \"model\""),
        (PCGrad, {"memory": "sketch", "on_nonfinite": "skip_task"}, "on_nonfinite: must not be"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, options, said):
    with pytest.raises((TypeError, ValueError), match=f"^{said}"):
        make(sgd(Model()), **options)


def test_watched_groups_are_refused():
    model = Model()
    optimizer = PCGrad(sgd(model), memory="sketch")
    with pytest.raises(ValueError, match=r"^watch\(\): must be left out where gradients are"):
        optimizer.watch({"trunk": model.trunk.parameters()})


@pytest.mark.parametrize("make", [GradNorm, DBMTL])
def test_losses_must_be_shown_in_blocks(make):
    model = Model()
    optimizer = make(sgd(model), memory="sketch")
    for task, loss in model.losses(0, same_inputs=False).items():
        with optimizer.task(task):
            loss.backward()
    with pytest.raises(ValueError, match="losses: must be known to this method"):
        optimizer.step()


def test_a_failed_backward_changes_nothing():
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, memory="sketch")
    optimizer.backward(model.losses(0))
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    losses = model.losses(1)
    losses["c"] = losses["c"] * torch.ones((), requires_grad=True)
    losses["c"].register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.backward(losses)
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    optimizer.step()


def test_a_callable_makes_weights_of_sketches_too():
    model = Model()
    optimizer = MultiTaskOptimizer(sgd(model), lambda gram: gram.diagonal(), memory="sketch")
    optimizer.backward(model.losses(0))
    assert (optimizer.diagnostics.weights == optimizer.diagnostics.gram.diagonal()).all()
