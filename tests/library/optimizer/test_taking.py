"""Gradients given to `take`, in each form, against the same gradients made in blocks."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap
from torchjd.autojac import backward as torchjd_backward

import gradsurgery
from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad
from tests.library.methods.table import (
    GRAM_METHODS,
    LOSS_METHODS,
    SEEING_METHODS,
    SUMS,
    TASKS,
    WRAPPERS,
)

STEPS = 4
NOISE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of sums in another order


class Net(nn.Module):
    """Two layers, the task in the input as one of three numbers that are 1."""

    def __init__(self, dtype=torch.float64, device="cpu"):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(7, 5), nn.Linear(5, 2)
        self.to(device, dtype)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


def batch(step, num_tasks=3, like=None):
    """Inputs [T, B, 7] and targets [T, B, 2] that pull three ways."""
    generator = torch.Generator().manual_seed(step)
    observed = torch.randn(num_tasks, 6, 4, generator=generator, dtype=torch.float64)
    one_hot = torch.eye(3, dtype=torch.float64)[:num_tasks, None].expand(num_tasks, 6, 3)
    turns = torch.arange(num_tasks, dtype=torch.float64) * 2.1
    targets = torch.stack([turns.cos(), turns.sin()], -1)[:, None].expand(num_tasks, 6, 2)
    both = torch.cat([observed, one_hot], -1), targets + observed[..., :2]
    return tuple(part.to(like) for part in both) if like is not None else both


def loss_of(model, inputs, targets):
    return (model(inputs) - targets).square().mean()


def functional_loss(model):
    def loss(values, inputs, targets):
        return (functional_call(model, values, (inputs,)) - targets).square().mean()

    return loss


def values_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def by_tuples(model, inputs, targets):
    """Each task's gradients, as autograd.grad gives them."""
    return [
        torch.autograd.grad(loss_of(model, *parts), list(model.parameters()))
        for parts in zip(inputs, targets, strict=True)
    ]


def stacked(model, inputs, targets):
    """The same numbers, [T, *shape] by parameter."""
    of_tasks = by_tuples(model, inputs, targets)
    parameters = list(model.parameters())
    return {
        p: torch.stack(parts)
        for p, parts in zip(parameters, zip(*of_tasks, strict=True), strict=True)
    }


def by_vmap(model, inputs, targets):
    per_task = vmap(grad(functional_loss(model)), in_dims=(None, 0, 0))
    return per_task(values_of(model), inputs, targets)


def by_jacrev(model, inputs, targets):
    def losses(values):
        return vmap(functional_loss(model), in_dims=(None, 0, 0))(values, inputs, targets)

    return jacrev(losses)(values_of(model))


def by_batched_grad(model, inputs, targets):
    losses = torch.stack([loss_of(model, *parts) for parts in zip(inputs, targets, strict=True)])
    each = torch.eye(len(losses), dtype=losses.dtype)
    return torch.autograd.grad(losses, list(model.parameters()), each, is_grads_batched=True)


def by_torchjd(model, inputs, targets):
    torchjd_backward([loss_of(model, *parts) for parts in zip(inputs, targets, strict=True)])
    grads = {parameter: parameter.jac for parameter in model.parameters()}
    for parameter in model.parameters():
        del parameter.jac
    return grads


def by_dicts(model, inputs, targets):
    names = [name for name, _ in model.named_parameters()]
    of_tasks = by_tuples(model, inputs, targets)
    return [dict(zip(names, grads, strict=True)) for grads in of_tasks]


# Forms whose numbers are those of blocks to the last bit; of the others, those of autograd.
EXACT = {
    "tuples": by_tuples,
    "dicts": by_dicts,
    "generator": lambda *parts: iter(by_tuples(*parts)),
    "pairs": lambda *parts: zip(TASKS, by_tuples(*parts), strict=True),
    "by-task": lambda *parts: dict(zip(TASKS, by_tuples(*parts), strict=True)),
}
STACKED = {
    "stacked": stacked,
    "names": lambda model, *parts: dict(
        zip(dict(model.named_parameters()), stacked(model, *parts).values(), strict=True)
    ),
    "in-order": lambda *parts: tuple(stacked(*parts).values()),
    "vmap": by_vmap,
    "jacrev": by_jacrev,
    "batched-grad": by_batched_grad,
    "torchjd": by_torchjd,
}


def make(method, model, **options):
    base = torch.optim.Adam(model.parameters(), lr=0.01)
    return method(base, tasks=TASKS, **options)


def step_in_blocks(model, optimizer, inputs, targets, names=TASKS):
    optimizer.zero_grad()
    for name, *parts in zip(names, inputs, targets, strict=True):
        with optimizer.task(name) as block:
            block.backward(loss_of(model, *parts))
    optimizer.step()


def seen_losses(model, inputs, targets):
    return [loss_of(model, *parts).detach() for parts in zip(inputs, targets, strict=True)]


def step_by_taking(model, optimizer, form, inputs, targets):
    optimizer.zero_grad()
    losses = seen_losses(model, inputs, targets)
    optimizer.take(form(model, inputs, targets), losses=losses, parameters=model)
    optimizer.step()


def assert_same(model, other, tolerance=0.0):
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        difference = (found - expected).abs().max()
        assert difference <= tolerance * expected.abs().max(), f"{name}: {difference}"


def trained(method, form, num_steps=STEPS, dtype=torch.float64, **options):
    """Two models after the same steps, one by `take` and one in blocks, and their optimizers."""
    taking, blocks = Net(dtype), Net(dtype)
    by_taking, in_blocks = make(method, taking, **options), make(method, blocks, **options)
    for step in range(num_steps):
        inputs, targets = batch(step, like=dtype)
        step_by_taking(taking, by_taking, form, inputs, targets)
        step_in_blocks(blocks, in_blocks, inputs, targets)
    for parameter, start in zip(taking.parameters(), Net(dtype).parameters(), strict=True):
        assert not torch.equal(parameter, start)
    return taking, blocks, by_taking, in_blocks


METHODS = GRAM_METHODS | SEEING_METHODS | SUMS | LOSS_METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", NOISE)
def test_tuples_of_each_task_are_what_blocks_make_to_the_last_bit(method, dtype):
    taking, blocks, by_taking, in_blocks = trained(METHODS[method], by_tuples, dtype=dtype)
    assert_same(taking, blocks)
    assert by_taking.diagnostics.num_surgeries == in_blocks.diagnostics.num_surgeries


@pytest.mark.parametrize("method", METHODS)
def test_a_first_step_of_stacked_gradients_is_that_of_blocks_to_the_last_bit(method):
    """Blocks, too, then look at one parameter after the other."""
    taking, blocks, _, _ = trained(METHODS[method], stacked, num_steps=1, dtype=torch.float32)
    assert_same(taking, blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", NOISE)
def test_stacked_gradients_are_what_blocks_make_but_for_the_order_of_sums(method, dtype):
    taking, blocks, by_taking, in_blocks = trained(METHODS[method], stacked, dtype=dtype)
    assert_same(taking, blocks, 0.0 if method == "loss-sum" else NOISE[dtype])
    assert by_taking.diagnostics.num_surgeries == in_blocks.diagnostics.num_surgeries


@pytest.mark.parametrize("form", EXACT)
def test_forms_of_each_task(form):
    taking, blocks, _, _ = trained(GRAM_METHODS["pcgrad"], EXACT[form])
    assert_same(taking, blocks)


@pytest.mark.parametrize("form", STACKED)
def test_forms_of_stacks(form):
    taking, blocks, by_taking, _ = trained(GRAM_METHODS["pcgrad"], STACKED[form])
    assert_same(taking, blocks, 1e-10)
    assert by_taking.tasks == TASKS


@pytest.mark.parametrize(
    "options",
    [
        {"every": 2},
        {"every": 2, "start_step": 1},
        {"reduction": "mean"},
        {"scope": "all"},
        {"granularity": "tensor"},
        {"granularity": "group"},
        {"on_nonfinite": "skip_task"},
        {"on_nonfinite": "raise"},
        {"on_nonfinite": "skip_step"},
        {"buffer_dtype": torch.bfloat16},
        {"monitor": True},
        {"fused": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["stacked", "tuples"])
def test_options(options, form):
    taking, blocks, by_taking, in_blocks = trained(
        GRAM_METHODS["pcgrad"], {**EXACT, **STACKED}[form], **options
    )
    assert_same(taking, blocks, 0.0 if form == "tuples" else 1e-12)
    assert torch.allclose(by_taking.diagnostics.weights, in_blocks.diagnostics.weights)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("form", ["stacked", "tuples"])
def test_every_wrapper_takes_what_blocks_make(wrapper, form):
    taking, blocks = Net(), Net()
    by_taking, in_blocks = (
        WRAPPERS[wrapper](torch.optim.SGD(model.parameters(), lr=0.1)) for model in (taking, blocks)
    )
    for step in range(5):
        inputs, targets = batch(step)
        losses = dict(zip(TASKS, seen_losses(taking, inputs, targets), strict=True))
        grads = {**EXACT, **STACKED}[form](taking, inputs, targets)
        by_taking.zero_grad()
        by_taking.take(grads, TASKS, losses=losses, parameters=taking)
        by_taking.step()
        step_in_blocks(blocks, in_blocks, inputs, targets)
    assert_same(taking, blocks, 0.0 if form == "tuples" else 1e-11)


@pytest.mark.parametrize("form", ["stacked", "tuples"])
def test_a_task_may_be_absent(form):
    taking, blocks = Net(), Net()
    by_taking, in_blocks = make(PCGrad, taking), make(PCGrad, blocks)
    for step, names in enumerate([("a", "b", "c"), ("c", "a"), ("b", "c"), ("a", "b", "c")]):
        inputs, targets = batch(step, len(names))
        by_taking.zero_grad()
        grads = {"stacked": stacked, "tuples": by_tuples}[form](taking, inputs, targets)
        by_taking.take(grads, names)
        by_taking.step()
        step_in_blocks(blocks, in_blocks, inputs, targets, names)
        assert by_taking.diagnostics.tasks == in_blocks.diagnostics.tasks
    assert_same(taking, blocks, 1e-12)


class Heads(nn.Module):
    """A trunk, and a head for each task."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.trunk = nn.Linear(7, 5)
            self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in TASKS)
        self.double()

    def loss(self, task, inputs, targets):
        return (self.heads[task](torch.tanh(self.trunk(inputs))) - targets).square().mean()


def test_heads_keep_their_plain_gradient():
    """As None of the other tasks, and as zeros where the trunk is declared to be what is shared."""
    inputs, targets = batch(0)
    found = {}
    for form in ("blocks", "none", "zeros"):
        model = Heads()
        shared = {"shared": model.trunk} if form == "zeros" else {}
        optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1), **shared)
        parameters = list(model.parameters())
        losses = [model.loss(t, inputs[t], targets[t]) for t in range(3)]
        if form == "blocks":
            for task, loss in enumerate(losses):
                with optimizer.task(task):
                    loss.backward()
        else:
            of_tasks = [
                torch.autograd.grad(
                    loss, parameters, allow_unused=True, materialize_grads=form == "zeros"
                )
                for loss in losses
            ]
            stacks = [] if form == "none" else list(zip(*of_tasks, strict=True))
            optimizer.take([torch.stack(parts) for parts in stacks] or of_tasks)
        optimizer.surgery()
        found[form] = [parameter.grad for parameter in parameters]
    for form in ("none", "zeros"):
        for got, expected in zip(found[form], found["blocks"], strict=True):
            assert torch.allclose(got, expected, rtol=1e-12)


def test_what_two_takes_and_blocks_leave_adds_up():
    """Micro-batches, in every order of stacked, of each task, and in blocks; `.grad` from before
    counts as well."""
    kinds = ("stacked", "tuples", "block")
    expected = None
    for first in kinds:
        for second in kinds:
            model = Net()
            optimizer = make(PCGrad, model)
            outside = torch.ones_like(model.first.bias)
            model.first.bias.grad = outside.clone()
            for step, kind in enumerate((first, second)):
                inputs, targets = batch(step)
                if kind == "block":
                    for name, *parts in zip(TASKS, inputs, targets, strict=True):
                        with optimizer.task(name):
                            loss_of(model, *parts).backward()
                else:
                    form = stacked if kind == "stacked" else by_tuples
                    optimizer.take(form(model, inputs, targets))
            optimizer.surgery()
            found = [parameter.grad for parameter in model.parameters()]
            expected = expected or found
            for got, right in zip(found, expected, strict=True):
                assert torch.allclose(got, right, rtol=1e-12), (first, second)


def test_losses_that_come_after_a_stack_add_up_with_it():
    found = []
    for kind in ("take", "backward"):
        model = Net()
        optimizer = make(PCGrad, model)
        optimizer.take(stacked(model, *batch(0)))
        if kind == "take":
            optimizer.take(stacked(model, *batch(1)))
            optimizer.surgery()
        else:
            optimizer.backward([loss_of(model, *parts) for parts in zip(*batch(1), strict=True)])
        found.append([parameter.grad for parameter in model.parameters()])
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["stacked", "tuples"])
def test_reading_a_gradient_performs_surgery(form):
    found = []
    for reads in (False, True):
        model = Net()
        optimizer = make(PCGrad, model)
        optimizer.take({"stacked": stacked, "tuples": by_tuples}[form](model, *batch(0)))
        if not reads:
            optimizer.surgery()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        found.append([parameter.grad for parameter in model.parameters()])
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("form", ["stacked", "tuples"])
def test_a_gradient_that_is_set_to_none_is_forgotten(form):
    model = Net()
    optimizer = make(PCGrad, model)
    grads = stacked(model, *batch(0))
    optimizer.take(grads if form == "stacked" else by_tuples(model, *batch(0)))
    model.first.weight.grad = None
    optimizer.surgery()
    other = Net()
    expected = make(PCGrad, other)
    without = dict(zip(other.parameters(), [None, *list(grads.values())[1:]], strict=True))
    expected.take(without)
    expected.surgery()
    for parameter, right in zip(model.parameters(), other.parameters(), strict=True):
        if right.grad is None:
            assert parameter.grad is None
        else:
            assert torch.allclose(parameter.grad, right.grad, rtol=1e-12)


def test_stacks_for_different_parameters_stay_apart_in_one_step():
    model = Net()
    optimizer = make(PCGrad, model)
    inputs, targets = batch(0)
    grads = stacked(model, inputs, targets)
    for parameter, stack in grads.items():
        optimizer.take({parameter: stack})
    optimizer.surgery()
    found = [parameter.grad for parameter in model.parameters()]
    other = make(PCGrad, model)
    other.zero_grad()
    other.take(grads)
    other.surgery()
    for got, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(got, parameter.grad)


def test_a_step_of_blocks_between_two_of_stacks():
    taking, blocks = Net(), Net()
    by_taking, in_blocks = make(PCGrad, taking), make(PCGrad, blocks)
    for step in range(6):
        inputs, targets = batch(step)
        if step in (2, 3):
            step_in_blocks(taking, by_taking, inputs, targets)
        else:
            step_by_taking(taking, by_taking, stacked, inputs, targets)
        step_in_blocks(blocks, in_blocks, inputs, targets)
    assert_same(taking, blocks, 1e-12)


@pytest.mark.parametrize("method", [PCGrad, LossSum])
@pytest.mark.parametrize("form", ["stacked", "tuples"])
@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip_task"])
def test_nothing_is_written_to_what_is_given(method, form, on_nonfinite):
    """Nor is a combined gradient that somebody holds overwritten by later steps."""
    model = Net()
    optimizer = make(method, model, on_nonfinite=on_nonfinite)
    held = []
    for step in range(3):
        grads = {"stacked": stacked, "tuples": by_tuples}[form](model, *batch(step))
        parts = list(grads.values()) if form == "stacked" else [g for of in grads for g in of]
        if on_nonfinite == "skip_task":
            parts[0].view(-1)[0] = torch.inf
        before = [part.clone() for part in parts]
        optimizer.zero_grad()
        optimizer.take(grads)
        optimizer.step()
        held += [(p.grad, p.grad.clone()) for p in model.parameters()]
        held += list(zip(parts, before, strict=True))
    for kept, copy in held:
        assert torch.equal(kept, copy)


def test_stacked_gradients_are_not_copied_and_not_kept_beyond_surgery():
    model = Net()
    optimizer = make(PCGrad, model)
    gc.collect()
    for step in range(3):
        optimizer.zero_grad()
        grads = stacked(model, *batch(step))
        storages = [weakref.ref(stack.untyped_storage()) for stack in grads.values()]
        optimizer.take(grads)
        assert optimizer._step.buffer.num_bytes == 0
        optimizer.step()
        del grads
        assert not any(storage() for storage in storages)


def test_a_stack_that_is_written_to_before_surgery_is_refused():
    model = Net()
    optimizer = make(PCGrad, model)
    grads = stacked(model, *batch(0))
    optimizer.take(grads)
    grads[model.first.weight].zero_()
    with pytest.raises(ValueError, match=r"grads: must not be written to .* \(3, 5, 7\) were"):
        optimizer.step()
    with pytest.raises(ValueError, match="grads: must not be written to"):
        optimizer.take(grads)
    optimizer.zero_grad()
    optimizer.take(grads)
    optimizer.step()


@pytest.mark.parametrize("order", ["transposed", "strided", "expanded", "inference"])
def test_any_memory_order_of_a_stack(order):
    found = []
    for reorder in (False, True):
        model = Net()
        optimizer = make(PCGrad, model)
        grads = stacked(model, *batch(0))
        if order == "expanded":
            grads = {p: stack[:1].expand_as(stack) for p, stack in grads.items()}
        for parameter, stack in grads.items() if reorder else ():
            if order == "transposed" and stack.dim() == 3:
                grads[parameter] = stack.mT.contiguous().mT
            elif order == "strided":
                grads[parameter] = torch.stack([stack, stack], -1)[..., 0]
            elif order == "inference":
                with torch.inference_mode():
                    grads[parameter] = stack.clone()
            elif order == "expanded":
                grads[parameter] = stack.contiguous()
        optimizer.take(grads)
        optimizer.surgery()
        for parameter in model.parameters():
            assert parameter.grad.stride() == parameter.stride()
        found.append([parameter.grad for parameter in model.parameters()])
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12)


def test_complex_parameters():
    found = []
    for form in ("blocks", "stacked"):
        parameter = nn.Parameter(torch.tensor([1 + 2j, -1j], dtype=torch.complex128))
        optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.1))
        targets = torch.tensor([[1j, 1.0], [1.0, -3j]], dtype=torch.complex128)
        losses = [(parameter - target).abs().square().sum() for target in targets]
        if form == "blocks":
            optimizer.backward(losses)
        else:
            grads = [torch.autograd.grad(loss, parameter)[0] for loss in losses]
            optimizer.take({parameter: torch.stack(grads)})
            optimizer.surgery()
        found.append(parameter.grad)
    assert torch.equal(*found)


def test_a_task_that_is_not_finite_is_dropped():
    found = []
    for form in (None, stacked, by_tuples):
        model = Net()
        optimizer = make(PCGrad, model, on_nonfinite="skip_task")
        inputs, targets = batch(0)
        targets[1, 0, 0] = torch.inf
        if form is None:
            step_in_blocks(model, optimizer, inputs, targets)
        else:
            step_by_taking(model, optimizer, form, inputs, targets)
        found.append(model)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_raise_leaves_everything_as_it_was():
    model = Net()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1), on_nonfinite="raise")
    inputs, targets = batch(0)
    targets[1, 0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="task 1: gradients must be finite"):
        optimizer.take(stacked(model, inputs, targets))
    assert optimizer.tasks == ()
    assert not optimizer._step.buffer.slots
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_that_the_base_optimizer_was_given():
    model = Net()
    if torch.__version__ < "2.6":
        pytest.skip("this torch gives optimizers no names")
    optimizer = PCGrad(torch.optim.SGD(model.named_parameters(), lr=0.1))
    optimizer.take(by_vmap(model, *batch(0)))
    optimizer.step()
    assert optimizer.diagnostics.num_surgeries == 1


def test_losses_come_with_the_gradients():
    model = Net()
    per_task = vmap(grad_and_value(functional_loss(model)), in_dims=(None, 0, 0))
    grads, losses = per_task(values_of(model), *batch(0))
    optimizer = make(gradsurgery.DBMTL, model)
    optimizer.take(grads, losses=losses, parameters=model)
    optimizer.step()
    blocks = Net()
    step_in_blocks(blocks, make(gradsurgery.DBMTL, blocks), *batch(0))
    assert_same(model, blocks, 1e-10)


def test_two_optimizers_of_one_model_each_take_their_own():
    model = Net()
    names = [name for name, _ in model.named_parameters()]
    optimizers = [
        PCGrad(torch.optim.SGD(part.parameters(), lr=0.1)) for part in (model.first, model.second)
    ]
    grads = dict(zip(names, stacked(model, *batch(0)).values(), strict=True))
    with pytest.raises(ValueError, match="grads: must be of parameters of this optimizer"):
        optimizers[0].take(grads, parameters=model)
    for optimizer, part in zip(optimizers, ("first", "second"), strict=True):
        own = {name: grad for name, grad in grads.items() if name.startswith(part)}
        optimizer.take(own, parameters=model)
        optimizer.step()
        assert optimizer.diagnostics.num_surgeries == 1


def test_frozen_parameters_and_none_are_passed_over():
    model = Net()
    optimizer = make(PCGrad, model)
    grads = stacked(model, *batch(0))
    model.first.bias.requires_grad_(False)
    grads[model.second.bias] = None
    optimizer.take(grads)
    optimizer.surgery()
    has_grad = [p.grad is not None for p in (model.first.bias, model.second.bias)]
    assert has_grad == [False, False]
    assert model.first.weight.grad is not None


def of(model, step=0):
    return stacked(model, *batch(step))


REFUSED = {
    "no collection": (lambda m: {"grads": of(m)[m.first.weight]}, TypeError, "a list, a tuple"),
    "nothing": (lambda m: {"grads": {}}, ValueError, "at least one gradient"),
    "mixed": (lambda m: {"grads": [torch.ones(3), (None,)]}, TypeError, "a tensor each"),
    "number": (lambda m: {"grads": [3.0, 2.0]}, TypeError, "got float"),
    "a name without names": (lambda m: {"grads": {"w": torch.ones(3)}}, ValueError, "parameters="),
    "an unknown name": (
        lambda m: {"grads": {"w": torch.ones(3)}, "parameters": m}, ValueError, "none of first.we",
    ),
    "a key": (lambda m: {"grads": {3: torch.ones(3)}}, TypeError, "by its name, got int"),
    "another's": (
        lambda m: {"grads": {nn.Parameter(torch.ones(1)): torch.ones(3, 1)}},
        ValueError, "that it has not",
    ),
    "copies": (
        lambda m: {"grads": {p.detach().requires_grad_(): s for p, s in of(m).items()}},
        ValueError, "that it has not",
    ),
    "too few tasks": (
        lambda m: {"grads": {p: s[:2] for p, s in of(m).items()}}, ValueError, r"\(3, 5, 7\) for 3",
    ),
    "other names": (lambda m: {"grads": of(m), "tasks": ["a", "b", "z"]}, ValueError, "got 'z'"),
    "a name twice": (lambda m: {"grads": of(m), "tasks": ["a", "b", "a"]}, ValueError, "once"),
    "a str": (lambda m: {"grads": of(m), "tasks": "abc"}, TypeError, "the str 'abc'"),
    "type": (
        lambda m: {"grads": {p: s.float() for p, s in of(m).items()}}, ValueError, "torch.float64",
    ),
    "sparse": (
        lambda m: {"grads": {p: s.to_sparse() for p, s in of(m).items()}}, ValueError, "dense",
    ),
    "device": (
        lambda m: {"grads": {p: s.to("meta") for p, s in of(m).items()}}, ValueError, "device, cpu",
    ),
    "too many gradients": (lambda m: {"grads": list(of(m).values())[:3]}, ValueError, "of 4 param"),
    "too few in a list": (
        lambda m: {"grads": by_tuples(m, *batch(0))[:2]}, ValueError, "3 tasks .* got 2",
    ),
    "too many in a list": (
        lambda m: {"grads": by_tuples(m, *batch(0)) * 2}, ValueError, "3 tasks .* got more",
    ),
    "tasks twice over": (
        lambda m: {"grads": dict(zip(TASKS, by_tuples(m, *batch(0)), strict=True)), "tasks": TASKS},
        ValueError, "must be left out",
    ),
    "two losses": (lambda m: {"grads": of(m), "losses": torch.ones(2)}, ValueError, "got 2"),
    "no losses": (lambda m: {"grads": of(m), "losses": "abc"}, TypeError, "got str"),
    "vectors": (
        lambda m: {"grads": of(m), "losses": torch.ones(3, 2)}, ValueError, r"got shape .3, 2",
    ),
    "a scalar": (lambda m: {"grads": of(m), "losses": torch.ones(())}, ValueError, "tensor .T."),
    "vectors in a list": (
        lambda m: {"grads": of(m), "losses": [torch.ones(2)] * 3}, ValueError, "be scalars",
    ),
    "parameters": (lambda m: {"grads": of(m), "parameters": ["first"]}, TypeError, "got str"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_everything_as_it_was(case):
    model = Net()
    optimizer = make(PCGrad, model)
    arguments, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as error:
        optimizer.take(**arguments(model))
    assert "\n" not in str(error.value)
    assert not optimizer._step.buffer.slots
    assert optimizer._step.handling is None
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer.step()


def test_a_generator_that_ends_early_leaves_everything_as_it_was():
    model = Net()
    optimizer = make(PCGrad, model)
    with pytest.raises(ValueError, match=r"3 tasks .* got 2"):
        optimizer.take(iter(by_tuples(model, *batch(0))[:2]))
    assert not optimizer._step.buffer.slots


def test_one_task_stands_in_no_stack_without_rows():
    model = Net()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"stacked over the tasks, \[T, \*shape\], got shape \(0"):
        optimizer.take({p: s[:0] for p, s in of(model).items()})


def test_a_method_that_asks_for_losses_says_so_at_once():
    model = Net()
    optimizer = make(gradsurgery.DBMTL, model)
    with pytest.raises(ValueError, match="losses: must be given to take"):
        optimizer.take(of(model))


def test_inside_a_block_it_is_refused():
    model = Net()
    optimizer = make(PCGrad, model)
    with optimizer.task("a"), pytest.raises(ValueError, match=r"take\(\): must not be called in"):
        optimizer.take(of(model))


def test_a_closure_may_take():
    """L-BFGS calls it again and again."""
    taking, blocks = Net(), Net()
    inputs, targets = batch(0)
    for model in (taking, blocks):
        base = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        optimizer = MultiTaskOptimizer(base, gradsurgery.UPGrad(base).weighting, tasks=TASKS)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            losses = [loss_of(model, *parts) for parts in zip(inputs, targets, strict=True)]
            if model is taking:
                optimizer.take(stacked(model, inputs, targets))
            else:
                optimizer.backward(losses)
            return torch.stack(losses).sum()

        optimizer.step(closure)
    assert_same(taking, blocks, 1e-10)
