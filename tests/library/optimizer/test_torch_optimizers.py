"""Torch's own optimizers, schedulers and averages, and optimizers that call their closure: wrapped,
against the same ones given the combined gradient by hand, in float64."""

import copy

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from gradsurgery import LossSum, PCGrad, WeightedSum
from tests import oracle

TASKS = ("a", "b")
WEIGHTS = {"a": 0.5, "b": 2.0}
WRAPPERS = {
    "loss-sum": LossSum,
    "loss-sum-monitor": lambda base: LossSum(base, monitor=True),
    "weighted-sum": lambda base: WeightedSum(base, WEIGHTS),
    "pcgrad": PCGrad,
}
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


def table_of_torch():
    """Entries of torch's table of optimizers; without the tool that its tests need, none."""
    try:
        import expecttest  # noqa: F401, torch's tests need it
    except ImportError:
        return {}
    frozen = torch.backends.flags_frozen()
    from torch.testing._internal.common_optimizers import optim_db

    # Its import forbids every later test to set torch's flags.
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", not frozen)
    entries = {}
    for info in optim_db:
        for given in info.optim_inputs_func(device="cpu"):
            entries[f"{info.optim_cls.__name__}, {given.desc}"] = info, given.kwargs
        for way in set(info.supported_impls) - {"differentiable"}:
            entries[f"{info.optim_cls.__name__}, {way}"] = info, {way: True}
    return entries


ENTRIES = table_of_torch()


class Pair(nn.Module):
    """A matrix that both tasks reach, and one that only the first does."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([[0.5, 0.3], [-0.2, 0.4], [0.9, 0.7]]).double())
        self.head = nn.Parameter(torch.tensor([[0.3, -0.8], [1.1, 0.2]]).double())
        self.unused = nn.Parameter(torch.ones(2, 2).double())

    def losses(self):
        """Two losses, which conflict where the entries of the trunk are positive on the whole."""
        return [self.trunk.square().sum() + self.head.square().sum(), -(2 * self.trunk).sum()]


def combine_by_hand(model, wrapper):
    """Adds to `.grad` what surgery adds, from the gradients written down."""
    grads = [2 * model.trunk.detach(), torch.full_like(model.trunk, -2.0)]
    weights = [1.0, 1.0]
    if wrapper == "weighted-sum":
        weights = [WEIGHTS[task] for task in TASKS]
    elif wrapper == "pcgrad":
        flat = np.stack([grad.flatten().numpy() for grad in grads])
        weights = oracle.pcgrad(flat, [[1, 0], [0, 1]])[1]
    alone = weights[0] if wrapper == "weighted-sum" else 1.0
    for parameter, grad in (
        (model.trunk, weights[0] * grads[0] + weights[1] * grads[1]),
        (model.head, alone * 2 * model.head.detach()),
    ):
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return sum(loss.item() for loss in model.losses())


def run_blocks(model, optimizer):
    for task, loss in zip(TASKS, model.losses(), strict=True):
        with optimizer.task(task):
            loss.backward()
    return sum(loss.item() for loss in model.losses())


def run_backward(model, optimizer):
    optimizer.backward(dict(zip(TASKS, model.losses(), strict=True)))
    return sum(loss.item() for loss in model.losses())


def run_surgery(model, optimizer):
    total = run_blocks(model, optimizer)
    optimizer.surgery()
    return total


WAYS = {"blocks": run_blocks, "backward": run_backward, "surgery": run_surgery}


def both(make, wrapper):
    """A wrapped optimizer and a bare one, each with a model of its own."""
    model, alone = Pair(), Pair()
    return model, WRAPPERS[wrapper](make(model.parameters())), alone, make(alone.parameters())


def assert_same(model, alone):
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)


def assert_trained(model):
    assert not torch.equal(model.trunk, Pair().trunk)
    assert torch.equal(model.unused, Pair().unused)


# Torch's table


def test_the_table_holds_torchs_optimizers():
    if not ENTRIES:
        pytest.skip("torch's own table of optimizers needs the package expecttest")
    names = {info.optim_cls.__name__ for info, _ in ENTRIES.values()}
    assert {name for name in torch.optim.__all__ if name not in ("Optimizer",)} >= names
    assert {"SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Rprop"} <= names


@every_wrapper
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_optimizer_of_torch_takes_the_combined_gradient(wrapper, entry):
    info, options = ENTRIES[entry]
    if info.only_supports_sparse_grads:
        check_sparse(info, options)
        return

    def make(parameters):
        return info.optim_cls(parameters, **copy.deepcopy(options))

    model, optimizer, alone, bare = both(make, wrapper)
    # Many evaluations near a point where the gradients are opposite make much of any rounding.
    for step in range(2 if info.step_requires_closure else 6):
        optimizer.zero_grad()
        bare.zero_grad()
        if step % 2 or info.step_requires_closure:

            def ours(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                return run_blocks(model, optimizer)

            def by_hand(alone=alone, bare=bare):
                bare.zero_grad()
                return combine_by_hand(alone, wrapper)

            torch.testing.assert_close(optimizer.step(ours), bare.step(by_hand))
        else:
            run_blocks(model, optimizer)
            combine_by_hand(alone, wrapper)
            optimizer.step()
            bare.step()
        assert_same(model, alone)
        if step == 1:  # as after a resume
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            bare.load_state_dict(copy.deepcopy(bare.state_dict()))
    assert_trained(model)


def check_sparse(info, options):
    """An optimizer of sparse gradients, which only the plain sum has."""
    weights = []
    for wrapped in (True, False):
        embedding = nn.Embedding(4, 3, sparse=True)
        with torch.no_grad():
            embedding.weight.copy_(torch.arange(12.0).view(4, 3) / 12)
        base = info.optim_cls(embedding.parameters(), **copy.deepcopy(options))
        optimizer = LossSum(base) if wrapped else base
        for step in range(4):
            optimizer.zero_grad()
            places = torch.tensor([step]), torch.tensor([2, step % 3])
            losses = [embedding(places[0]).sum(), embedding(places[1]).square().sum()]
            if wrapped:
                optimizer.backward(losses)
            else:
                sum(losses).backward()
            optimizer.step()
        weights.append(embedding.weight.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.arange(12.0).view(4, 3) / 12)


# Optimizers that call the closure, before or after they look at .grad

SGD = torch.optim.SGD
CALLING = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "LBFGS of others": lambda p: pytorch_optimizer.load_optimizer("lbfgs")(p, lr=0.01, max_iter=3),
    "SAM": lambda p: pytorch_optimizer.SAM(p, base_optimizer=SGD, lr=0.1, momentum=0.9),
    "SAM, adaptive": lambda p: pytorch_optimizer.SAM(p, base_optimizer=SGD, lr=0.1, adaptive=True),
    "LookSAM": lambda p: pytorch_optimizer.LookSAM(p, base_optimizer=SGD, lr=0.1, k=2),
    "FriendlySAM": lambda p: pytorch_optimizer.FriendlySAM(p, base_optimizer=SGD, lr=0.1),
    "Lookahead": lambda p: pytorch_optimizer.Lookahead(SGD(p, lr=0.1), k=2),
    "schedule-free": lambda p: pytorch_optimizer.ScheduleFreeAdamW(p, lr=0.1),
    "Ranger": lambda p: pytorch_optimizer.Ranger(p, lr=0.1),
}


# SAM and its kin look at the gradients first, so that there must be some before the step.
BEGINNINGS = [(base, True) for base in CALLING] + [
    (base, False) for base in CALLING if "SAM" not in base
]


@every_wrapper
@pytest.mark.parametrize(("base", "before"), BEGINNINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clears", [False, True], ids=["adds", "clears"])
def test_a_base_that_calls_the_closure(wrapper, base, way, before, clears):
    model, optimizer, alone, bare = both(CALLING[base], wrapper)
    gather = WAYS[way]

    def ours():
        if clears:
            optimizer.zero_grad()
        return gather(model, optimizer)

    def by_hand():
        if clears:
            bare.zero_grad()
        return combine_by_hand(alone, wrapper)

    for _ in range(4):
        if before:
            gather(model, optimizer)
            combine_by_hand(alone, wrapper)
        optimizer.step(ours)
        bare.step(by_hand)
        assert_same(model, alone)
        optimizer.zero_grad()
        bare.zero_grad()
    assert_trained(model)
    assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 4


@every_wrapper
@pytest.mark.parametrize("base", ["SGD", "LBFGS", "SAM"])
def test_a_closure_that_fails_counts_for_nothing(wrapper, base):
    model, optimizer, alone, bare = both(CALLING[base], wrapper)

    for _ in range(3):
        for network, one, gather, given in (
            (model, optimizer, run_blocks, optimizer),
            (alone, bare, combine_by_hand, wrapper),
        ):

            def closure(gather=gather, one=one, network=network, given=given):
                one.zero_grad()
                return gather(network, given)

            def failing(closure=closure):
                closure()
                raise RuntimeError("stop")

            start = copy.deepcopy(network.state_dict())
            gather(network, given)
            with pytest.raises(RuntimeError, match="stop"):
                one.step(failing)
            network.load_state_dict(start)
            one.zero_grad()
            gather(network, given)
            one.step(closure)
            one.zero_grad()
        assert_same(model, alone)
    assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 3


# Torch's schedulers and averages

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_here():
    assert set(lr_scheduler.__all__) - {"LRScheduler"} == SCHEDULERS.keys() - {"SWALR"}


def scheduled(one, gather, model, given, scheduler, num_steps):
    """Learning rates and momenta; the first step has no gradient, as in torch's own tests."""
    history = []
    for step in range(num_steps):
        if step:
            gather(model, given)
        one.step()
        one.zero_grad()
        needs_loss = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([1.0] if needs_loss else []))
        history.append([(group["lr"], group["momentum"]) for group in one.param_groups])
    return history


@every_wrapper
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR's own, of older torch
def test_a_scheduler_of_torch(wrapper, scheduler):
    model, optimizer, alone, bare = both(CALLING["SGD"], wrapper)
    of_ours, of_bare = (SCHEDULERS[scheduler](one) for one in (optimizer, bare))
    found = scheduled(optimizer, run_blocks, model, optimizer, of_ours, 4)
    expected = scheduled(bare, combine_by_hand, alone, wrapper, of_bare, 4)
    resumed = WRAPPERS[wrapper](CALLING["SGD"](model.parameters()))
    again = SCHEDULERS[scheduler](resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(of_ours.state_dict()))
    found += scheduled(resumed, run_blocks, model, resumed, again, 4)
    expected += scheduled(bare, combine_by_hand, alone, wrapper, of_bare, 4)
    assert found == expected
    assert len({str(rates) for rates in expected}) > 1
    assert_same(model, alone)
    assert_trained(model)


@every_wrapper
@pytest.mark.parametrize("average", [get_swa_multi_avg_fn, lambda: get_ema_multi_avg_fn(0.9)])
def test_an_average_of_torch(wrapper, average):
    model, optimizer, alone, bare = both(CALLING["Adam"], wrapper)
    ours = AveragedModel(model, multi_avg_fn=average())
    expected = AveragedModel(alone, multi_avg_fn=average())
    rates = [SWALR(one, swa_lr=0.01, anneal_epochs=3) for one in (optimizer, bare)]
    for _ in range(5):
        run_blocks(model, optimizer)
        combine_by_hand(alone, wrapper)
        for one, averaged, network, rate in zip(
            (optimizer, bare), (ours, expected), (model, alone), rates, strict=True
        ):
            one.step()
            one.zero_grad()
            rate.step()
            averaged.update_parameters(network)
        assert_same(ours.module, expected.module)
    assert_trained(ours.module)
    assert not torch.equal(ours.module.trunk, model.trunk)
