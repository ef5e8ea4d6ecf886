"""One table of contracts: every wrapper around every base optimizer, against that base alone.

The contracts are those of a `torch.optim.Optimizer` that owns nothing: schedulers, hooks, copies,
checkpoints and refusals. What the update itself must be is `test_multitask.py`'s.
"""

import copy
import io
import math
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum
from gradsurgery.optimizer.awaited import Awaited
from tests.library.methods.table import (
    ALONE,
    DECLARED,
    OWN_LENGTH,
    TASKS,
    WRAPPERS,
    back_propagate,
    equal_norms,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw-foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3, history_size=4),
}
# torch's own LBFGS cannot be copied or pickled: it loses the list of parameters that it works on.
COPIED_BASES = [name for name in BASES if name != "lbfgs"]

# For tests that look at `.grad` before surgery, and for those that take steps without one.
without_surgery = pytest.mark.filterwarnings("ignore:.*a step without surgery")

every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)
every_scaled_wrapper = pytest.mark.parametrize(
    "wrapper", [name for name in WRAPPERS if name not in OWN_LENGTH]
)
every_base = pytest.mark.parametrize("base", BASES)
every_copied_base = pytest.mark.parametrize("base", COPIED_BASES)


class Model(nn.Module):
    """A trunk for all tasks, a head for each, and a parameter that nobody ever reaches."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
            self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.unused = nn.Parameter(torch.ones(3))

    def loss(self, task, step):
        """The task's mean squared error on the examples of one step."""
        inputs, targets = examples(task, step)
        inputs, targets = inputs.to(self.unused.dtype), targets.to(self.unused.dtype)
        return (self.heads[task](self.trunk(inputs)) - targets).square().mean()


def examples(task, step):
    """Eight inputs, and targets on which the tasks disagree."""
    place = TASKS.index(task)
    generator = torch.Generator().manual_seed(100 * step + place)
    inputs = torch.randn(8, 4, generator=generator)
    return inputs, inputs.sum(1, keepdim=True) * (-1.0) ** place + 0.5 * place


def build(wrapper, base="sgd", dtype=torch.float32):
    model = Model().to(dtype)
    return model, WRAPPERS[wrapper](BASES[base](model.parameters()))


def run_blocks(model, optimizer, step, tasks=TASKS):
    total = 0.0
    for task in tasks:
        with optimizer.task(task) as block:
            loss = model.loss(task, step)
            back_propagate(optimizer, block, loss)
        total += loss.item()
    return total


def train_step(model, optimizer, step, tasks=TASKS):
    if isinstance(getattr(optimizer, "base", optimizer), torch.optim.LBFGS):

        def closure():
            optimizer.zero_grad()
            return run_blocks(model, optimizer, step, tasks)

        optimizer.step(closure)
    else:
        optimizer.zero_grad()
        run_blocks(model, optimizer, step, tasks)
        optimizer.step()


def train(model, optimizer, steps):
    for step in steps:
        train_step(model, optimizer, step)


class PlainLoop:
    """The base optimizer alone, in the same loop: blocks that do nothing."""

    def __init__(self, base):
        self.base = base
        self.zero_grad = base.zero_grad
        self.step = base.step

    class task:  # noqa: N801, a stand-in for the method
        def __init__(self, name):
            pass

        def __enter__(self):
            return self

        def backward(self, loss):
            loss.backward()

        def __exit__(self, *exception):
            pass


def flattened(value, path=()):
    """Leaves of nested dictionaries and lists with their places, tensors copied."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from flattened(below, (*path, key))
    elif isinstance(value, (list, tuple)):
        for key, below in enumerate(value):
            yield from flattened(below, (*path, key))
    else:
        yield path, value.detach().clone() if isinstance(value, torch.Tensor) else value


def assert_identical(found, expected):
    """Equal to the last bit, NaN included; None equals None only."""
    found, expected = dict(flattened(found)), dict(flattened(expected))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert isinstance(found[path], torch.Tensor), path
            torch.testing.assert_close(found[path], value, rtol=0, atol=0, equal_nan=True)
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(found[path]), path
        else:
            assert type(found[path]) is type(value), path
            assert found[path] == value, path


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients_of(model):
    """Copies of `.grad`; of what lies beneath, where one awaits surgery: reading performs it."""
    grads = {
        name: p.grad.beneath if isinstance(p.grad, Awaited) else p.grad
        for name, p in model.named_parameters()
    }
    return {name: None if grad is None else grad.detach().clone() for name, grad in grads.items()}


def snapshot(model, optimizer):
    """Everything of the caller's that a refused call must leave alone."""
    return copy.deepcopy(
        {
            "parameters": parameters_of(model),
            "grads": gradients_of(model),
            "base": optimizer.base.state_dict(),
            "defaults": dict(optimizer.base.defaults),
            "param_groups": [
                {**group, "params": [id(p) for p in group["params"]]}
                for group in optimizer.base.param_groups
            ],
        }
    )


def message(refusal):
    """The text of an error, which must be one line."""
    text = str(refusal.value)
    assert text
    assert "\n" not in text
    return text


# A real optimizer that owns nothing


@every_wrapper
@every_base
def test_is_an_optimizer_that_owns_nothing(wrapper, base):
    model, optimizer = build(wrapper, base)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for attempt in ("fresh", "trained", "loaded", "loaded below"):
        if attempt == "trained":
            train(model, optimizer, range(4))
        elif attempt == "loaded":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif attempt == "loaded below":
            optimizer.base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
        assert optimizer.param_groups is optimizer.base.param_groups, attempt
        assert optimizer.state is optimizer.base.state, attempt
        assert optimizer.defaults is optimizer.base.defaults, attempt


@every_wrapper
@every_base
def test_the_state_is_what_the_base_would_have(wrapper, base):
    model, optimizer = build(wrapper, base)
    alone = Model()
    bare = BASES[base](alone.parameters())
    train(model, optimizer, range(3))
    train(alone, PlainLoop(bare), range(3))
    found, expected = optimizer.base.state_dict(), bare.state_dict()
    assert found.keys() == expected.keys()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for place, state in expected["state"].items():
        assert found["state"][place].keys() == state.keys()


@pytest.mark.parametrize("wrapper", ["loss-sum", "loss-sum-monitor"])
@every_base
def test_loss_sum_trains_exactly_as_the_base_alone(wrapper, base):
    model, optimizer = build(wrapper, base)
    alone = Model()
    bare = BASES[base](alone.parameters())
    for step in range(10):
        train_step(model, optimizer, step)
        train_step(alone, PlainLoop(bare), step)
        assert_identical(gradients_of(model), gradients_of(alone))
        assert_identical(parameters_of(model), parameters_of(alone))
    assert_identical(optimizer.base.state_dict(), bare.state_dict())


@without_surgery
@every_wrapper
@every_base
def test_without_any_block_it_is_the_base(wrapper, base):
    model, optimizer = build(wrapper, base)
    alone = Model()
    bare = BASES[base](alone.parameters())
    for step in range(4):
        for network, stepper in ((model, optimizer), (alone, bare)):

            def closure(network=network, stepper=stepper, step=step):
                stepper.zero_grad()
                loss = sum(network.loss(task, step) for task in TASKS)
                loss.backward()
                return loss

            if base == "lbfgs":
                stepper.step(closure)
            else:
                closure()
                stepper.step()
    assert_identical(parameters_of(model), parameters_of(alone))


@every_wrapper
def test_repr_names_the_wrapper_and_the_base(wrapper):
    _, optimizer = build(wrapper, "adagrad")
    assert type(optimizer).__name__ in repr(optimizer)
    assert "Adagrad" in repr(optimizer)


@every_wrapper
def test_add_param_group_adds_to_the_base(wrapper):
    model, optimizer = build(wrapper)
    later = Model()
    grown = WRAPPERS[wrapper](BASES["sgd"](later.trunk.parameters()))
    grown.add_param_group({"params": list(later.heads.parameters()), "lr": 0.05})
    assert len(grown.base.param_groups) == len(grown.param_groups) == 2
    train(model, optimizer, range(6))
    train(later, grown, range(6))
    assert_identical(parameters_of(later), parameters_of(model))


# Whoever holds a tensor keeps it, and may do with .grad and with parameters what torch allows


@every_wrapper
@every_copied_base
def test_a_gradient_that_is_kept_stays_what_it_was(wrapper, base):
    model, optimizer = build(wrapper, base)
    twin, twin_optimizer = build(wrapper, base)
    kept = []  # tensors, arrays, views, and what they were
    holds = (lambda grad: grad, lambda grad: grad.numpy(), lambda grad: grad.view(-1)[:1])
    for step in range(7):
        optimizer.zero_grad()
        run_blocks(model, optimizer, step)
        optimizer.surgery()
        for parameter in model.parameters():
            if parameter.grad is not None:
                held = holds[step % 3](parameter.grad)
                kept.append((held, torch.as_tensor(held).clone()))
        optimizer.step()
        train_step(twin, twin_optimizer, step)
        assert all(torch.equal(torch.as_tensor(held), was) for held, was in kept)
        assert_identical(parameters_of(model), parameters_of(twin))


@every_wrapper
def test_a_gradient_that_is_kept_inside_a_block_stays_what_it_was(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    kept = []
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: kept.append((grad.detach(), grad.clone())))
    is_plain = wrapper == "loss-sum" or wrapper == "pcgrad-every-3"  # autograd adds in place
    for step in range(5):
        optimizer.zero_grad()
        for task in TASKS:
            with optimizer.task(task) as block:
                back_propagate(optimizer, block, model.loss(task, step))
                if not is_plain:
                    grads = [p.grad for p in model.parameters() if p.grad is not None]
                    kept += [(grad, grad.clone()) for grad in grads]
        optimizer.step()
        train_step(twin, twin_optimizer, step)
        if not is_plain:
            assert all(torch.equal(held, was) for held, was in kept)
        assert_identical(parameters_of(model), parameters_of(twin))


EDITS = {
    "data": lambda grad: setattr(grad, "data", grad.data.clone()),
    "data through": lambda grad: setattr(grad.data, "data", torch.zeros(1)),
    "shared memory": lambda grad: grad.share_memory_(),
    "deep copy": lambda grad: copy.deepcopy(grad).zero_(),
    "pickle": lambda grad: pickle.loads(pickle.dumps(grad)).zero_(),
}


@every_wrapper
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_a_gradient_that_changes_no_number_changes_nothing(wrapper, edit):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    for step in range(6):
        optimizer.zero_grad()
        run_blocks(model, optimizer, step)
        optimizer.surgery()
        for parameter in model.parameters():
            if parameter.grad is not None:
                EDITS[edit](parameter.grad)
        optimizer.step()
        train_step(twin, twin_optimizer, step)
        assert_identical(parameters_of(model), parameters_of(twin))


CONVERSIONS = {
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "half and back": lambda model: model.half().float(),
    "other memory": lambda model: model.load_state_dict(
        copy.deepcopy(model.state_dict()), assign=False
    ),
}


@every_wrapper
@pytest.mark.parametrize("with_grad", [True, False], ids=["with .grad", "without"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_converted_model_trains_like_one_that_was_built_so(wrapper, conversion, with_grad):
    model = Model()
    optimizer = WRAPPERS[wrapper](torch.optim.SGD(model.parameters(), lr=0.05))
    train(model, optimizer, range(4))
    if not with_grad:
        optimizer.zero_grad()
    CONVERSIONS[conversion](model)
    twin = copy.deepcopy(model)
    later = WRAPPERS[wrapper](torch.optim.SGD(twin.parameters(), lr=0.05))
    later.load_state_dict(optimizer.state_dict())
    for step in range(4, 8):
        train_step(model, optimizer, step)
        train_step(twin, later, step)
        assert_identical(gradients_of(model), gradients_of(twin))
        assert_identical(parameters_of(model), parameters_of(twin))


class ComplexModel(nn.Module):
    """A complex weight that all tasks share, made of complex or of twice as many real numbers."""

    def __init__(self, is_complex):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(3, 4, dtype=torch.complex64, generator=generator)
        weight = weight.T  # another memory order
        self.is_complex = is_complex
        self.weight = nn.Parameter(weight if is_complex else torch.view_as_real(weight))
        self.bias = nn.Parameter(torch.zeros(3))

    def loss(self, task, step):
        inputs, targets = examples(task, step)
        weight = self.weight if self.is_complex else torch.view_as_complex(self.weight)
        outputs = torch.complex(inputs, inputs.flip(-1)) @ weight + self.bias
        return (outputs - targets * (1 + 0.5j)).abs().square().mean()


@every_wrapper
@pytest.mark.parametrize("base", [name for name in COPIED_BASES if name != "adamw-fused"])
def test_complex_numbers_are_pairs_of_real_ones(wrapper, base):
    model, twin = ComplexModel(True), ComplexModel(False)
    optimizers = [WRAPPERS[wrapper](BASES[base](m.parameters())) for m in (model, twin)]
    for step in range(6):
        for network, optimizer in zip((model, twin), optimizers, strict=True):
            train_step(network, optimizer, step)
        found = torch.view_as_real(model.weight.grad)
        assert model.weight.grad.stride() == model.weight.stride()
        torch.testing.assert_close(found, twin.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.view_as_real(model.weight.detach()), twin.weight.detach(), rtol=1e-4, atol=1e-4
        )
        ours, theirs = (optimizer.diagnostics for optimizer in optimizers)
        assert ours.num_surgeries == theirs.num_surgeries
        if ours.num_surgeries:
            torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-4, atol=1e-4)
            has_gram = getattr(optimizers[0].weighting, "needs_gram", True) or optimizers[0].monitor
            if has_gram:
                torch.testing.assert_close(ours.cosines, theirs.cosines, rtol=1e-4, atol=1e-4)


# Shells that others put around an optimizer


class Shell:
    """What Lightning puts around an optimizer: it takes on its class, and asks it for the rest."""

    def __init__(self, optimizer, copies):
        if copies:  # as it did in earlier versions
            self.__dict__.update(vars(optimizer))
        self._optimizer = optimizer
        self.__class__ = type("Shell", (Shell, type(optimizer)), {})

    def step(self):
        return self._optimizer.step()

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def use_everything(model, optimizer, saved):
    """Training that goes through every method."""
    optimizer.load_state_dict(copy.deepcopy(saved))
    if optimizer._settings.sketch is None:
        optimizer.watch({"first": model.trunk[0].parameters()})
    for step in range(4):
        train_step(model, optimizer, step)
        optimizer.zero_grad()
        optimizer.step()
        optimizer.backward([model.loss(task, 10 + step) for task in TASKS])
        optimizer.step()
        optimizer.zero_grad()
        features = model.trunk(torch.ones(2, 4))
        losses = [model.heads[task](features).square().mean() for task in TASKS]
        optimizer.feature_backward(losses, features)
        optimizer.surgery()
        optimizer.step()


def saved_by(wrapper):
    model, optimizer = build(wrapper)
    optimizer.seed = 11
    train(model, optimizer, range(3))
    return optimizer.state_dict()


@every_wrapper
@pytest.mark.parametrize("copies", [False, True], ids=["asks", "copies"])
def test_a_shell_that_takes_on_its_class_does_what_it_does(wrapper, copies):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    saved = saved_by(wrapper)
    shell = Shell(optimizer, copies)
    use_everything(model, shell, saved)
    use_everything(twin, twin_optimizer, saved)
    assert_identical(parameters_of(model), parameters_of(twin))
    assert_identical(optimizer.state_dict(), twin_optimizer.state_dict())
    assert shell.seed == optimizer.seed == 11


@every_wrapper
def test_nothing_is_set_on_it_after_it_was_made(wrapper):
    """Else a shell would keep what is set."""
    model, optimizer = build(wrapper)
    before = dict(vars(optimizer))
    use_everything(model, optimizer, saved_by(wrapper))
    assert vars(optimizer).keys() == before.keys()
    assert all(vars(optimizer)[name] is value for name, value in before.items())


# Learning-rate schedulers

SCHEDULERS = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one-cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.1,
        total_steps=10,
        cycle_momentum=bool({"momentum", "betas"} & optimizer.defaults.keys()),
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


def scheduled(model, optimizer, scheduler, num_steps=7):
    """Learning rates (and momenta) of a training run with a scheduler."""
    history = []
    for step in range(num_steps):
        train_step(model, optimizer, step)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        history.append(
            [
                (group["lr"], group.get("momentum"), group.get("betas"))
                for group in optimizer.base.param_groups
            ]
        )
    return history


@every_wrapper
@every_base
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_drive_it(wrapper, base, scheduler):
    model, optimizer = build(wrapper, base)
    alone = Model()
    bare = BASES[base](alone.parameters())
    found = scheduled(model, optimizer, SCHEDULERS[scheduler](optimizer))
    on_bare = SCHEDULERS[scheduler](bare)
    expected = scheduled(alone, PlainLoop(bare), on_bare)
    assert len({str(rates) for rates in expected}) > 1
    assert found == expected
    if wrapper.startswith("loss-sum"):
        assert_identical(parameters_of(model), parameters_of(alone))


@every_wrapper
def test_a_scheduler_of_the_base_drives_it_too(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    found = scheduled(model, optimizer, SCHEDULERS["step"](optimizer.base))
    assert found == scheduled(twin, twin_optimizer, SCHEDULERS["step"](twin_optimizer))
    assert_identical(parameters_of(model), parameters_of(twin))


@every_wrapper
def test_a_scheduler_resumes(wrapper):
    model, optimizer = build(wrapper)
    scheduler = SCHEDULERS["one-cycle"](optimizer)
    scheduled(model, optimizer, scheduler, num_steps=4)
    saved = copy.deepcopy(
        (model.state_dict(), optimizer.state_dict(), scheduler.state_dict()),
    )
    again, resumed = build(wrapper)
    resumed_scheduler = SCHEDULERS["one-cycle"](resumed)
    for part, state in zip((again, resumed, resumed_scheduler), saved, strict=True):
        part.load_state_dict(state)
    expected = scheduled(model, optimizer, scheduler, num_steps=4)
    assert scheduled(again, resumed, resumed_scheduler, num_steps=4) == expected
    assert_identical(parameters_of(again), parameters_of(model))


# Copies and checkpoints


def through_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


def through_torch_save(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_wrapper
@every_copied_base
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, through_pickle, through_torch_save], ids=lambda f: f.__name__
)
def test_a_copy_continues_identically(wrapper, base, copied):
    num_steps = 4
    model, optimizer = build(wrapper, base)
    train(model, optimizer, range(num_steps))
    twin, twin_optimizer = copied((model, optimizer))
    assert type(twin_optimizer) is type(optimizer)
    assert twin_optimizer.base is not optimizer.base
    assert twin_optimizer.param_groups is twin_optimizer.base.param_groups
    assert twin_optimizer.state is twin_optimizer.base.state
    frozen = parameters_of(twin)
    train(model, optimizer, range(num_steps, num_steps + 10))
    assert_identical(parameters_of(twin), frozen)
    train(twin, twin_optimizer, range(num_steps, num_steps + 10))
    assert_identical(parameters_of(twin), parameters_of(model))
    assert_identical(twin_optimizer.state_dict(), optimizer.state_dict())


@every_wrapper
def test_a_copy_under_a_scheduler_does_not_step_the_original(wrapper):
    model, optimizer = build(wrapper)
    scheduler = SCHEDULERS["step"](optimizer)
    train_step(model, optimizer, 0)
    scheduler.step()
    before = parameters_of(model)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train_step(twin, twin_optimizer, 1)
    assert_identical(parameters_of(model), before)
    assert not torch.equal(twin.trunk[0].weight, model.trunk[0].weight)


@pytest.mark.parametrize(
    ("wrapper", "num_steps"),
    # Before the first surgery, at it, and at each place between two of them.
    [(name, 4) for name in WRAPPERS] + [("pcgrad-every-3", steps) for steps in (0, 1, 2, 3, 5)],
)
@every_base
def test_a_checkpoint_resumes_exactly(wrapper, base, num_steps):
    model, optimizer = build(wrapper, base)
    train(model, optimizer, range(num_steps))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    # Nothing in it may need unpickling of arbitrary classes.
    of_model, of_optimizer = torch.load(file, weights_only=True)
    again, resumed = build(wrapper, base)
    again.load_state_dict(of_model)
    resumed.load_state_dict(of_optimizer)
    assert_identical(resumed.state_dict(), optimizer.state_dict())
    for step in range(num_steps, num_steps + 10):
        train_step(model, optimizer, step)
        train_step(again, resumed, step)
        assert_identical(parameters_of(again), parameters_of(model))
    assert_identical(resumed.state_dict(), optimizer.state_dict())


@every_wrapper
def test_a_checkpoint_is_not_changed_by_further_training(wrapper):
    model, optimizer = build(wrapper, "sgd")
    train(model, optimizer, range(4))
    saved = optimizer.state_dict()
    own = copy.deepcopy({key: saved[key] for key in saved.keys() - {"state", "param_groups"}})
    train(model, optimizer, range(4, 10))
    # torch hands out live tensors of the base's state; what is the wrapper's own stays as it was.
    assert_identical({key: saved[key] for key in own}, own)


@every_wrapper
@every_base
def test_a_plain_checkpoint_of_the_base_loads(wrapper, base):
    alone = Model()
    bare = BASES[base](alone.parameters())
    train(alone, PlainLoop(bare), range(3))
    model, optimizer = build(wrapper, base)
    model.load_state_dict(alone.state_dict())
    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))
    assert_identical(optimizer.base.state_dict(), bare.state_dict())
    train(model, optimizer, range(3, 6))
    if wrapper.startswith("loss-sum"):
        train(alone, PlainLoop(bare), range(3, 6))
        assert_identical(parameters_of(model), parameters_of(alone))


@every_wrapper
@every_base
def test_the_base_alone_loads_a_checkpoint_of_the_wrapper(wrapper, base):
    model, optimizer = build(wrapper, base)
    train(model, optimizer, range(3))
    bare = BASES[base](Model().parameters())
    bare.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_identical(bare.state_dict(), optimizer.base.state_dict())


# Hooks


@every_wrapper
@every_base
@pytest.mark.parametrize("on", ["wrapper", "base", "every optimizer"])
def test_step_hooks_fire_once(wrapper, base, on):
    model, optimizer = build(wrapper, base)
    calls = []

    def before(*_):
        calls.append("before")

    def after(*_):
        calls.append("after")

    if on == "every optimizer":
        handles = [
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]
    else:
        owner = optimizer if on == "wrapper" else optimizer.base
        handles = [owner.register_step_pre_hook(before), owner.register_step_post_hook(after)]
    try:
        for step in range(4):
            train_step(model, optimizer, step)
            assert calls == ["before", "after"] * (step + 1)
    finally:
        for handle in handles:
            handle.remove()
    train_step(model, optimizer, 4)
    assert calls == ["before", "after"] * 4


@every_wrapper
@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_checkpoint_hooks_fire_once(wrapper, on):
    model, optimizer = build(wrapper)
    train(model, optimizer, range(2))
    owner = optimizer if on == "wrapper" else optimizer.base
    calls = []
    owner.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    owner.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    owner.register_load_state_dict_pre_hook(lambda *_: calls.append("load"))
    owner.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "saved", "load", "loaded"]


@every_wrapper
@every_base
@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_hooks_see_the_optimizer_that_they_were_registered_on(wrapper, base, on):
    model, optimizer = build(wrapper, base)
    owner = optimizer if on == "wrapper" else optimizer.base
    seen, saved = [], []

    def note(hooked, *_):
        seen.append(hooked)

    def of_step(hooked, args, kwargs):
        note(hooked)
        assert args[0] is hooked
        assert kwargs == {}

    def of_save(hooked, state):
        note(hooked)
        saved.append("gradsurgery" in state)
        return {**state, "note": 3}

    def of_load(hooked, state):
        note(hooked)
        saved.append("gradsurgery" in state)
        return {key: value for key, value in state.items() if key != "note"}

    owner.register_step_pre_hook(of_step)
    owner.register_step_post_hook(of_step)
    owner.register_state_dict_pre_hook(note)
    owner.register_state_dict_post_hook(of_save)
    owner.register_load_state_dict_pre_hook(of_load)
    owner.register_load_state_dict_post_hook(note)
    train(model, optimizer, range(3))
    state = optimizer.state_dict()
    assert state["note"] == 3
    optimizer.load_state_dict(state)
    assert len(seen) == 10
    assert all(hooked is owner for hooked in seen)
    assert saved == [on == "wrapper"] * 2
    if base in COPIED_BASES:  # which leaves hooks out, as torch does
        train(model, copy.deepcopy(optimizer), range(3))
        assert len(seen) == 10


@every_wrapper
def test_hooks_are_called_in_the_order_of_torch(wrapper):
    model, optimizer = build(wrapper)
    calls = []

    def noting(name):
        return lambda *_: calls.append(name)

    handles = [
        optimizer.register_step_pre_hook(noting("before, ours")),
        optimizer.register_step_post_hook(noting("after, ours")),
        optimizer.base.register_step_pre_hook(noting("before, base")),
        optimizer.base.register_step_post_hook(noting("after, base")),
        register_optimizer_step_pre_hook(noting("before, all")),
        register_optimizer_step_post_hook(noting("after, all")),
    ]
    try:
        train_step(model, optimizer, 0)
    finally:
        for handle in handles:
            handle.remove()
    before = ["before, all", "before, base", "before, ours"]
    assert calls == [*before, "after, base", "after, ours", "after, all"]


@every_wrapper
def test_a_hook_may_change_the_closure(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)

    def closure(step):
        twin_optimizer.zero_grad()
        return run_blocks(twin, twin_optimizer, step)

    def never():
        raise AssertionError

    for step in range(6):
        train_step(model, optimizer, step)
        given = (twin_optimizer, lambda step=step: closure(step))
        handle = twin_optimizer.register_step_pre_hook(lambda *_, given=given: (given, {}))
        assert twin_optimizer.step(never) > 0
        handle.remove()
    assert_identical(parameters_of(twin), parameters_of(model))
    assert_identical(twin_optimizer.state_dict(), optimizer.state_dict())
    twin_optimizer.register_step_pre_hook(lambda *_: "neither")
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        twin_optimizer.step()


@every_wrapper
def test_a_step_of_the_base_is_none_of_the_wrapper(wrapper):
    _, optimizer = build(wrapper)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("called"))
    optimizer.base.step()


@every_wrapper
def test_step_hooks_see_the_combined_gradient(wrapper):
    model, optimizer = build(wrapper)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(gradients_of(model)))
    optimizer.zero_grad()
    run_blocks(model, optimizer, 0)
    optimizer.step()
    assert_identical(seen, [gradients_of(model)])
    assert seen[0]["trunk.0.weight"] is not None


# What the base has beyond an optimizer


class Beyond(torch.optim.SGD):
    """An optimizer with a method, a property, an attribute and a private name of its own."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.alpha = 0.25
        self.backward = self.diagnostics = self.tasks = None  # names that the wrapper has, too
        self._step_supports_amp_scaling = True

    def eval(self, how="quietly"):
        return how, self

    @property
    def double(self):
        return 2 * self.alpha


@every_wrapper
def test_what_the_base_has_is_found_on_the_wrapper(wrapper):
    base = Beyond(Model().parameters())
    optimizer = WRAPPERS[wrapper](base)
    for one in (optimizer, copy.deepcopy(optimizer), through_pickle(optimizer)):
        one.base.alpha = 0.5  # an optimizer of torch does not copy what it has beyond
        assert hasattr(one, "eval")
        assert one.eval("at once") == ("at once", one.base)
        assert (one.alpha, one.double) == (0.5, 1.0)
        assert {"eval", "alpha", "double", "step", "diagnostics"} <= set(dir(one))
        assert callable(one.backward)
        assert one.diagnostics is not None
        assert one.tasks is not None
        # It says of the base's own step() that GradScaler may leave its work to it.
        assert not hasattr(one, "_step_supports_amp_scaling")
        assert not hasattr(one, "train")
        with pytest.raises(AttributeError, match="has no attribute 'trian'") as refusal:
            _ = one.trian
        assert type(one).__name__ in message(refusal)
    twice = LossSum(optimizer)
    assert twice.eval() == ("quietly", base)
    empty = type(optimizer).__new__(type(optimizer))
    with pytest.raises(AttributeError):
        _ = empty.alpha


# Steps that are none


@every_wrapper
@every_copied_base
@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_step_without_any_gradient_does_nothing_and_does_not_count(wrapper, base, num_steps):
    model, optimizer = build(wrapper, base)
    twin, twin_optimizer = build(wrapper, base)
    train(model, optimizer, range(num_steps))
    train(twin, twin_optimizer, range(num_steps))
    optimizer.zero_grad()
    twin_optimizer.zero_grad()
    before = snapshot(model, optimizer)
    own = copy.deepcopy(optimizer.state_dict())
    assert optimizer.step() is None
    assert optimizer.step(lambda: 7.0) == 7.0
    assert_identical(snapshot(model, optimizer), before)
    assert_identical(optimizer.state_dict(), own)
    for step in range(num_steps, num_steps + 3):
        train_step(model, optimizer, step)
        train_step(twin, twin_optimizer, step)
    assert_identical(parameters_of(model), parameters_of(twin))
    assert_identical(optimizer.state_dict(), twin_optimizer.state_dict())


@every_wrapper
@every_copied_base
@pytest.mark.parametrize("num_steps", [0, 3])
def test_the_state_that_torch_asks_for_counts_no_step(wrapper, base, num_steps):
    """It makes the base optimizer's state by a step of zero gradients, where there is none yet."""
    model, optimizer = build(wrapper, base)
    # torch loads no state that lacks a trainable parameter's, nor one that has a frozen one's.
    model.unused.requires_grad_(base == "adagrad")
    train(model, optimizer, range(num_steps))
    optimizer.zero_grad()
    parameters = parameters_of(model)
    own = copy.deepcopy(optimizer.state_dict()["gradsurgery"])
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert saved["state"]
    set_optimizer_state_dict(model, optimizer, saved)
    assert_identical(optimizer.state_dict()["gradsurgery"], own)
    assert_identical(parameters_of(model), parameters)
    again = get_optimizer_state_dict(model, optimizer)
    assert_identical(again["state"], saved["state"])


@every_wrapper
def test_a_hook_that_clears_the_gradients_does_not_stop_the_count(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
    for step in range(6):
        train_step(model, optimizer, step)
        train_step(twin, twin_optimizer, step)
    assert_identical(parameters_of(model), parameters_of(twin))
    assert_identical(optimizer.state_dict(), twin_optimizer.state_dict())
    assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 6


# Closures, loss scaling


@every_wrapper
@every_copied_base
def test_a_closure_is_the_same_step(wrapper, base):
    model, optimizer = build(wrapper, base)
    twin, twin_optimizer = build(wrapper, base)
    for step in range(6):
        train_step(model, optimizer, step)
        losses = []

        def closure(step=step, losses=losses):
            twin_optimizer.zero_grad()
            losses.append(run_blocks(twin, twin_optimizer, step))
            return losses[-1]

        assert twin_optimizer.step(closure) == losses[0]
        assert len(losses) == 1
        assert_identical(parameters_of(twin), parameters_of(model))


@every_wrapper
def test_a_closure_may_call_backward(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    for step in range(6):
        # Each loss has a graph of its own, so that the order of the additions is the same.
        optimizer.zero_grad()
        optimizer.backward(iter([model.loss(task, step) for task in TASKS]))
        optimizer.step()

        def closure(step=step):
            twin_optimizer.zero_grad()
            twin_optimizer.backward(iter([twin.loss(task, step) for task in TASKS]))

        twin_optimizer.step(closure)
        assert_identical(parameters_of(twin), parameters_of(model))


# The others have no one function of which their update is the gradient, which LBFGS expects.
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if "sum" in name])
def test_lbfgs_learns(wrapper):
    model, optimizer = build(wrapper, "lbfgs")

    def total():
        with torch.no_grad():
            return sum(model.loss(task, 0).item() for task in TASKS)

    before = total()
    for _ in range(5):
        train_step(model, optimizer, 0)
    assert total() < before


def scaled_step(model, optimizer, scaler, step, spoil=False, whole=False):
    optimizer.grad_scaler = scaler  # for methods that look at losses
    optimizer.zero_grad()
    scales = {task: math.inf if spoil and task == "b" else 1.0 for task in TASKS}
    if whole:
        optimizer.backward(scaler.scale(model.loss(task, step) * scales[task]) for task in TASKS)
    else:
        for task in TASKS:
            with optimizer.task(task) as block:
                loss = scaler.scale(model.loss(task, step) * scales[task])
                back_propagate(optimizer, block, loss)
        optimizer.surgery()
    scaler.step(optimizer)
    scaler.update()


@every_scaled_wrapper
@every_copied_base
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "backward"])
def test_loss_scaling_changes_nothing(wrapper, base, whole):
    # A power of two rounds nothing on its way in and out.
    model, optimizer = build(wrapper, base)
    twin, twin_optimizer = build(wrapper, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        train_step(model, optimizer, step)
        scaled_step(twin, twin_optimizer, scaler, step, whole=whole)
        assert_identical(parameters_of(twin), parameters_of(model))


@every_scaled_wrapper
@every_copied_base
def test_loss_scaling_skips_a_non_finite_step_and_goes_on_clean(wrapper, base):
    model, optimizer = build(wrapper, base)
    twin, twin_optimizer = build(wrapper, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        before = parameters_of(twin)
        scaled_step(twin, twin_optimizer, scaler, step, spoil=True)
        assert_identical(parameters_of(twin), before)
        assert scaler.get_scale() == 2.0 ** (9 - step)
        train_step(model, optimizer, step)
        scaled_step(twin, twin_optimizer, scaler, step)
        assert_identical(parameters_of(twin), parameters_of(model))


@every_wrapper
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_non_finite_task_makes_the_update_non_finite(wrapper, bad):
    model, optimizer = build(wrapper)
    for step in range(7):
        optimizer.zero_grad()
        for task in TASKS:
            with optimizer.task(task) as block:
                loss = model.loss(task, step) * (bad if task == "b" else 1.0)
                back_propagate(optimizer, block, loss)
        optimizer.surgery()
        for parameter in model.trunk.parameters():
            assert not parameter.grad.isfinite().all()
        train_step(model, optimizer, step)
        for parameter in model.parameters():
            assert parameter.isfinite().all()


# Gradients: missing, accumulated, made outside


@without_surgery
@every_wrapper
@every_base
def test_missing_is_not_zero(wrapper, base):
    model, optimizer = build(wrapper, base)
    train(model, optimizer, range(4))
    for step, present in enumerate(
        [("a", "b"), ("c",), TASKS, ("b", "c"), ("c", "b"), ("a",), TASKS], start=4
    ):
        before = parameters_of(model)
        train_step(model, optimizer, step, present)
        assert model.unused.grad is None
        for task in TASKS:
            for parameter in model.heads[task].parameters():
                assert (parameter.grad is None) == (task not in present)
        if base != "lbfgs":  # LBFGS moves all parameters as one vector
            after = parameters_of(model)
            for task in set(TASKS) - set(present):
                name = f"heads.{task}.weight"
                assert torch.equal(after[name], before[name])
        for parameter in model.trunk.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()


@every_wrapper
def test_a_single_task_keeps_its_gradient(wrapper):
    for task in TASKS:
        model, optimizer = build(wrapper)
        alone = Model()
        alone.loss(task, 0).backward()
        weight = {"a": 1.0, "b": 0.5, "c": 2.0}[task] if wrapper.startswith("weighted") else 1.0
        if wrapper in ALONE:
            weight = ALONE[wrapper](alone.loss(task, 0).item(), TASKS.index(task))
        with optimizer.task(task) as block:
            back_propagate(optimizer, block, model.loss(task, 0))
        optimizer.surgery()
        expected = {
            name: None if grad is None else weight * grad
            for name, grad in gradients_of(alone).items()
        }
        assert_identical(gradients_of(model), expected)


@every_wrapper
@pytest.mark.parametrize("way", ["blocks", "backwards", "interleaved blocks"])
def test_accumulated_parts_are_one_large_batch(wrapper, way):
    model, optimizer = build(wrapper, dtype=torch.float64)
    twin, twin_optimizer = build(wrapper, dtype=torch.float64)
    for step in range(7):
        optimizer.zero_grad()
        for task in TASKS:
            with optimizer.task(task) as block:
                loss = sum(model.loss(task, 10 * step + part) for part in range(3)) / 3
                back_propagate(optimizer, block, loss)
        optimizer.surgery()
        twin_optimizer.zero_grad()
        if way == "backwards":
            for task in TASKS:
                with twin_optimizer.task(task) as block:
                    for part in range(3):
                        loss = twin.loss(task, 10 * step + part) / 3
                        back_propagate(twin_optimizer, block, loss)
        else:
            pairs = [(task, part) for task in TASKS for part in range(3)]
            if way == "interleaved blocks":
                pairs.sort(key=lambda pair: pair[1])
            for task, part in pairs:
                with twin_optimizer.task(task) as block:
                    back_propagate(twin_optimizer, block, twin.loss(task, 10 * step + part) / 3)
        twin_optimizer.surgery()
        for (name, grad), other in zip(
            gradients_of(model).items(), gradients_of(twin).values(), strict=True
        ):
            if grad is None:
                assert other is None, name
            else:
                torch.testing.assert_close(other, grad, rtol=1e-11, atol=1e-12)
        optimizer.step()
        twin_optimizer.step()


def regulariser(model):
    return sum(p.square().sum() for p in model.trunk[0].parameters()) + model.unused.sum()


@every_wrapper
@pytest.mark.parametrize("when", ["before", "between", "after", "after surgery"])
def test_a_gradient_made_outside_every_block_is_added_as_it_is(wrapper, when):
    model, optimizer = build(wrapper, dtype=torch.float64)
    twin, twin_optimizer = build(wrapper, dtype=torch.float64)
    for step in range(7):
        twin_optimizer.zero_grad()
        run_blocks(twin, twin_optimizer, step)
        twin_optimizer.surgery()
        regulariser(twin).backward()
        optimizer.zero_grad()
        if when == "before":
            regulariser(model).backward()
        run_blocks(model, optimizer, step, TASKS[:2])
        if when == "between":
            regulariser(model).backward()
        run_blocks(model, optimizer, step, TASKS[2:])
        if when == "after":
            regulariser(model).backward()
        optimizer.surgery()
        if when == "after surgery":
            regulariser(model).backward()
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-13)
            other.grad.copy_(parameter.grad)
        optimizer.step()
        twin_optimizer.step()
        assert_identical(parameters_of(model), parameters_of(twin))


@every_wrapper
def test_zero_grad_forgets_the_tasks_gradients(wrapper):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    for step in range(6):
        run_blocks(model, optimizer, 99, ("a", "b"))
        train_step(model, optimizer, step)
        train_step(twin, twin_optimizer, step)
        assert_identical(parameters_of(model), parameters_of(twin))
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


@every_wrapper
def test_zero_grad_may_keep_the_gradients_memory(wrapper):
    model, optimizer = build(wrapper, dtype=torch.float64)
    twin, twin_optimizer = build(wrapper, dtype=torch.float64)
    for step, present in enumerate([TASKS, TASKS, ("a", "b"), TASKS, TASKS, TASKS, ("b", "c")]):
        for network, stepper in ((model, optimizer), (twin, twin_optimizer)):
            stepper.zero_grad(set_to_none=network is twin)
            if network is model and step:
                assert all(not p.grad.any() for p in model.trunk.parameters())
            run_blocks(network, stepper, step, present)
            stepper.surgery()
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            if other.grad is None:
                assert parameter.grad is None or not parameter.grad.any()
            else:
                torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-13)
            if parameter.grad is not None:
                other.grad = parameter.grad.clone()
        optimizer.step()
        twin_optimizer.step()


@every_wrapper
def test_the_global_random_states_are_left_alone(wrapper):
    model, optimizer = build(wrapper)
    torch.manual_seed(0)
    # numpy's legacy state is the global one that must stay as it is.
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    train(model, optimizer, range(6))
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(), states[2])  # noqa: NPY002


# Refusals


class Interrupted(Exception):  # noqa: N818, it stands for any exception
    """Raised by the user's own code."""


def interrupt(loss):
    raise Interrupted


def fail_after_backward(loss):
    loss.backward()
    raise Interrupted


@every_wrapper
@pytest.mark.parametrize("num_steps", [0, 3, 4])
def test_an_exception_in_a_block_leaves_what_was_and_the_block_usable(wrapper, num_steps):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    for network, stepper in ((model, optimizer), (twin, twin_optimizer)):
        train(network, stepper, range(num_steps))
        stepper.zero_grad()
        regulariser(network).backward()
        run_blocks(network, stepper, num_steps, ("a",))
    before = snapshot(model, optimizer)
    # A plain sum is autograd's own accumulation, which nothing takes back.
    is_plain = wrapper == "loss-sum" or (wrapper == "pcgrad-every-3" and num_steps < 2)
    for task in ("b", "a"):
        fail = interrupt if is_plain else fail_after_backward
        with pytest.raises(Interrupted), optimizer.task(task):
            fail(model.loss(task, 50))
        assert_identical(snapshot(model, optimizer), before)
    for network, stepper in ((model, optimizer), (twin, twin_optimizer)):
        run_blocks(network, stepper, num_steps, ("b", "c"))
        stepper.step()
    assert_identical(gradients_of(model), gradients_of(twin))
    assert_identical(parameters_of(model), parameters_of(twin))
    train(model, optimizer, range(10, 14))
    train(twin, twin_optimizer, range(10, 14))
    assert_identical(parameters_of(model), parameters_of(twin))


def enter(optimizer, task):
    with optimizer.task(task):
        raise AssertionError("the block must not run")


CALLS = {
    "unknown task": lambda model, optimizer: enter(optimizer, "nobody"),
    "unknown task of a mapping": lambda model, optimizer: optimizer.backward(
        {"a": model.loss("a", 0), "nobody": model.loss("b", 0)}
    ),
    "loss that is not a scalar": lambda model, optimizer: optimizer.backward(
        {"a": model.loss("a", 0), "b": model.loss("b", 0) * torch.ones(2)}
    ),
    "loss that needs no gradient": lambda model, optimizer: optimizer.backward(
        {"a": model.loss("a", 0), "b": torch.tensor(1.0)}
    ),
    "loss that is no tensor": lambda model, optimizer: optimizer.backward(
        {"a": model.loss("a", 0), "b": 1.0}
    ),
    "bad loss of a sequence": lambda model, optimizer: optimizer.backward(
        [model.loss("a", 0), model.loss("b", 0), model.loss("c", 0).detach()]
    ),
    "no loss at all": lambda model, optimizer: optimizer.backward([]),
    "no loss in a mapping": lambda model, optimizer: optimizer.backward({}),
    "no loss in a generator": lambda model, optimizer: optimizer.backward(iter(())),
    "fewer losses than tasks": lambda model, optimizer: optimizer.backward(
        [model.loss("a", 0), model.loss("b", 0)]
    ),
    "more losses than tasks": lambda model, optimizer: optimizer.backward(
        [model.loss(task, 0) for task in (*TASKS, "a")]
    ),
    "checkpoint of other parameters": lambda model, optimizer: optimizer.load_state_dict(
        torch.optim.SGD([torch.ones(1)], lr=0.1, momentum=0.9).state_dict()
    ),
    "checkpoint of other tasks": lambda model, optimizer: optimizer.load_state_dict(
        LossSum(BASES["sgd"](Model().parameters()), tasks=("x", "y")).state_dict()
    ),
}
OPEN_NAMES = {  # refused only where the tasks are declared
    "unknown task",
    "unknown task of a mapping",
    "fewer losses than tasks",
    "more losses than tasks",
    "checkpoint of other tasks",
}


GENERATORS = {  # seen to be bad after the first losses have been back-propagated
    "loss that is not a scalar": lambda model: (
        model.loss(task, 0) * torch.ones(1 + (task == "c")) for task in TASKS
    ),
    "task that is unknown": lambda model: (
        (name, model.loss(task, 0)) for name, task in zip(("a", "b", "nobody"), TASKS, strict=True)
    ),
}
SITUATIONS = ["fresh", "in a step", "later step", "after surgery"]


def twins(wrapper, situation):
    """Two equal pairs of model and optimizer, some way into training."""
    pairs = build(wrapper), build(wrapper)
    for model, optimizer in pairs:
        if situation == "later step":
            train(model, optimizer, range(3))
            optimizer.zero_grad()
        if situation != "fresh":
            regulariser(model).backward()
            run_blocks(model, optimizer, 7, ("a", "b"))
        if situation == "after surgery":
            optimizer.surgery()
    return pairs


def assert_both_go_on_alike(pairs):
    """The rest of the step, and the steps after it."""
    (model, _), (twin, _) = pairs
    for network, stepper in pairs:
        run_blocks(network, stepper, 8, ("c", "b"))
        stepper.surgery()
    assert_identical(gradients_of(model), gradients_of(twin))
    for step in range(9, 13):
        for network, stepper in pairs:
            stepper.step()
            stepper.zero_grad()
            run_blocks(network, stepper, step)
        assert_identical(parameters_of(model), parameters_of(twin))


@every_wrapper
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_refused_call_changes_nothing(wrapper, situation):
    pairs = twins(wrapper, situation)
    model, optimizer = pairs[0]
    before = snapshot(model, optimizer)
    for name, call in CALLS.items():
        if wrapper in DECLARED or name not in OPEN_NAMES:
            with pytest.raises((ValueError, TypeError)) as refusal:
                call(model, optimizer)
            assert ":" in message(refusal), name
            assert_identical(snapshot(model, optimizer), before)
    assert_both_go_on_alike(pairs)


@pytest.mark.parametrize(
    ("wrapper", "generator"),
    [
        (wrapper, generator)
        for wrapper in WRAPPERS
        for generator in GENERATORS
        if wrapper in DECLARED or "unknown" not in generator
    ],
)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_refused_generator_changes_nothing(wrapper, generator, situation):
    pairs = twins(wrapper, situation)
    model, optimizer = pairs[0]
    before = snapshot(model, optimizer)
    with pytest.raises((ValueError, TypeError)) as refusal:
        optimizer.backward(GENERATORS[generator](model))
    assert ":" in message(refusal)
    assert_identical(snapshot(model, optimizer), before)
    assert_both_go_on_alike(pairs)


@every_wrapper
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, optimizer: enter(optimizer, "b"),
        lambda model, optimizer: enter(optimizer, "a"),
        lambda model, optimizer: optimizer.backward([model.loss(task, 0) for task in TASKS]),
    ],
    ids=["another task", "the same task", "backward"],
)
def test_a_block_inside_a_block_is_refused(wrapper, call, num_steps):
    model, optimizer = build(wrapper)
    twin, twin_optimizer = build(wrapper)
    for network, stepper in ((model, optimizer), (twin, twin_optimizer)):
        train(network, stepper, range(num_steps))
        stepper.zero_grad()
        run_blocks(network, stepper, 7, ("b",))
    with optimizer.task("a") as block:
        back_propagate(optimizer, block, model.loss("a", 8))
        before = snapshot(model, optimizer)
        with pytest.raises(ValueError, match=r"block|task") as refusal:
            call(model, optimizer)
        message(refusal)
        assert_identical(snapshot(model, optimizer), before)
        back_propagate(optimizer, block, model.loss("a", 9))
    with twin_optimizer.task("a") as block:
        back_propagate(twin_optimizer, block, twin.loss("a", 8))
        back_propagate(twin_optimizer, block, twin.loss("a", 9))
    for network, stepper in ((model, optimizer), (twin, twin_optimizer)):
        run_blocks(network, stepper, 8, ("c",))
        stepper.step()
    assert_identical(gradients_of(model), gradients_of(twin))
    assert_identical(parameters_of(model), parameters_of(twin))


@pytest.mark.parametrize(
    "wrapper", [name for name in WRAPPERS if "sum" not in name and "every" not in name]
)
@pytest.mark.parametrize("num_steps", [0, 2])
def test_sparse_gradients_are_refused(wrapper, num_steps):
    model, optimizer = build(wrapper)
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer.add_param_group({"params": list(embedding.parameters())})
    train(model, optimizer, range(num_steps))
    optimizer.zero_grad()
    run_blocks(model, optimizer, 7, ("a", "b"))
    before = snapshot(model, optimizer), embedding.weight.grad
    with pytest.raises((ValueError, TypeError), match=r"dense|sparse") as refusal:  # noqa: SIM117
        with optimizer.task("c"):
            model.trunk(embedding(torch.tensor([1, 3]))).sum().backward()
    message(refusal)
    assert_identical((snapshot(model, optimizer), embedding.weight.grad), before)
    twin, twin_optimizer = build(wrapper)
    train(twin, twin_optimizer, range(num_steps))
    twin_optimizer.zero_grad()
    run_blocks(twin, twin_optimizer, 7, ("a", "b"))
    optimizer.step()
    twin_optimizer.step()
    assert_identical(parameters_of(model), parameters_of(twin))


def sgd():
    return BASES["sgd"]([nn.Parameter(torch.ones(2))])


CONSTRUCTIONS = {
    "no parameters": lambda base: PCGrad(torch.optim.SGD([{"params": []}], lr=0.1)),
    "no parameters for the sum": lambda base: LossSum(torch.optim.SGD([{"params": []}], lr=0.1)),
    "base is a model": lambda base: PCGrad(nn.Linear(2, 1)),
    "base is a list": lambda base: LossSum([nn.Parameter(torch.ones(2))]),
    "arguments of a base": lambda base: PCGrad(base.param_groups[0]["params"], lr=0.1),
    "an option of a base": lambda base: WeightedSum(base, [1.0], lr=0.1),
    "nothing at all": lambda base: LossSum(),
    "weighting is a number": lambda base: MultiTaskOptimizer(base, 1.0),
    "reduction": lambda base: PCGrad(base, reduction="max"),
    "reduction none": lambda base: PCGrad(base, reduction=None),
    "reduction of the wrapper": lambda base: MultiTaskOptimizer(base, equal_norms, reduction=""),
    "scope": lambda base: PCGrad(base, scope="heads"),
    "scope of the monitor": lambda base: LossSum(base, monitor=True, scope="trunk"),
    "every zero": lambda base: PCGrad(base, every=0),
    "every negative": lambda base: PCGrad(base, every=-2),
    "every a fraction": lambda base: PCGrad(base, every=1.5),
    "start_step negative": lambda base: PCGrad(base, start_step=-1),
    "start_step a fraction": lambda base: PCGrad(base, start_step=0.5),
    "buffer_dtype": lambda base: PCGrad(base, buffer_dtype=torch.int32),
    "buffer_dtype a string": lambda base: PCGrad(base, buffer_dtype="float32"),
    "task named twice": lambda base: PCGrad(base, tasks=("a", "b", "a")),
    "negative weight": lambda base: WeightedSum(base, {"a": 1.0, "b": -0.5}),
    "negative weight of a sequence": lambda base: WeightedSum(base, [1.0, -0.5]),
    "infinite weight": lambda base: WeightedSum(base, {"a": math.inf, "b": 1.0}),
    "weight not a number": lambda base: WeightedSum(base, [1.0, math.nan]),
    "weight a string": lambda base: WeightedSum(base, [1.0, "2"]),
    "too few weights": lambda base: WeightedSum(base, [1.0, 2.0], tasks=TASKS),
    "too many weights": lambda base: WeightedSum(base, [1.0, 2.0, 3.0, 4.0], tasks=TASKS),
    "weight of another task": lambda base: WeightedSum(
        base, {"a": 1.0, "x": 1.0}, tasks=("a", "b")
    ),
    "weights one number": lambda base: WeightedSum(base, 2.0),
    "no weights": lambda base: WeightedSum(base, []),
}


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_a_refused_construction_leaves_the_base_as_it_was(construction):
    base = sgd()
    (parameter,) = base.param_groups[0]["params"]
    parameter.grad = torch.ones(2)
    before = copy.deepcopy((base.state_dict(), dict(base.defaults), sorted(vars(base))))
    with pytest.raises((ValueError, TypeError)) as refusal:
        CONSTRUCTIONS[construction](base)
    assert ":" in message(refusal)
    assert_identical((base.state_dict(), dict(base.defaults), sorted(vars(base))), before)
    assert parameter.tolist() == [1.0, 1.0]
    assert parameter.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "construction",
    ["base is a list", "arguments of a base", "an option of a base", "nothing at all"],
)
def test_arguments_of_another_optimizer_are_refused_with_the_remedy(construction):
    with pytest.raises(TypeError, match=r"wrap an optimizer: \w+\(torch.optim.AdamW\(") as refusal:
        CONSTRUCTIONS[construction](sgd())
    message(refusal)


@pytest.mark.parametrize("construction", ["no parameters", "negative weight", "every zero"])
def test_a_value_out_of_range_is_a_value_error(construction):
    with pytest.raises(ValueError, match=":"):
        CONSTRUCTIONS[construction](sgd())


def test_a_weighted_sum_refuses_a_wrong_number_of_losses():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = WeightedSum(torch.optim.SGD([parameter], lr=0.1), [1.0, 2.0])
    losses = [(parameter * factor).sum() for factor in (1.0, 2.0, 3.0)]
    with pytest.raises(ValueError, match="2") as refusal:
        optimizer.backward(losses)
    message(refusal)
    assert parameter.grad is None


class Fickle:
    """A weighting whose first answer is not one weight for each task."""

    def __init__(self, first):
        self.first = first

    def __call__(self, gram):
        answer, self.first = self.first, None
        return gram.new_ones(gram.shape[0]) if answer is None else answer


@pytest.mark.parametrize(
    "answer",
    [torch.ones(5), torch.ones(2, 2), torch.ones(()), [1.0, 1.0]],
    ids=["five", "matrix", "scalar", "list"],
)
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("further", [(), ("b",), ("a",), ("c", "b")], ids=str)
def test_a_wrong_number_of_weights_is_refused_and_nothing_lost(answer, num_steps, further):
    weighting = Fickle(None)
    model, alone = Model(), Model()
    optimizer = MultiTaskOptimizer(BASES["sgd"](model.parameters()), weighting)
    plain = PlainLoop(BASES["sgd"](alone.parameters()))
    train(model, optimizer, range(num_steps))
    train(alone, plain, range(num_steps))
    optimizer.zero_grad()
    plain.zero_grad()
    # The second layer is reached by one task alone this time, after all have reached it before.
    for network, stepper in ((model, optimizer), (alone, plain)):
        regulariser(network).backward()
        with stepper.task("a"):
            network.trunk[0](torch.ones(2, 4)).sum().backward()
        run_blocks(network, stepper, 9, ("b",))
    before = snapshot(model, optimizer)
    weighting.first = answer
    with pytest.raises((ValueError, TypeError), match="weight") as refusal:
        optimizer.surgery()
    message(refusal)
    assert_identical(snapshot(model, optimizer), before)
    for network, stepper in ((model, optimizer), (alone, plain)):
        run_blocks(network, stepper, 10, further)
        stepper.step()
    for parameter, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)
