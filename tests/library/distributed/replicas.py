"""Each process with the whole model, with and without DDP, against one process."""

import copy
import functools
from contextlib import ExitStack
from unittest import mock

import torch
import torch.distributed as dist
from pytorch_optimizer import SAM
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import Method, MultiTaskOptimizer, PCGrad
from gradsurgery.distributed import columns as columns_room
from tests.library.distributed.training import (
    TASKS,
    WRAPPERS,
    Joined,
    Model,
    assert_equal_everywhere,
    assert_same,
    batch_of,
    bits,
    blocks,
    check,
    even,
    message,
    methods,
    own_batches,
    sgd,
    sharded_model,
    train_step,
    uneven,
    watched,
)


class ComplexModel(Model):
    """Has complex numbers in the scale that two of the tasks share, and in an odd place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 2, 5) * (1 - 0.5j))

    def forward(self, task, batch):
        inputs, targets, weight = batch
        features = self.trunk(inputs)
        scaled = torch.complex(features, features.flip(-1)) * self.scale
        return (self.heads[task](scaled.real - scaled.imag) - targets).square().mean() * weight


def compare_group(wrapper, plan=uneven, num_steps=4, build=Model, **options):
    me, num = dist.get_rank(), dist.get_world_size()
    model = build()
    optimizer = wrapper(base=sgd(model), process_group=dist.group.WORLD)
    watched(optimizer, model)
    joined = Joined(wrapper, plan, model=build())
    kept = []  # gradients, and what they were
    for step in range(num_steps):
        joined.step(step, regularise=step > 1)
        train_step(
            model,
            optimizer,
            own_batches(step, plan, me, num),
            regulariser=0.01 * (1 + me) if step > 1 else None,
        )
        assert_same(model, optimizer, joined, **options)
        kept += [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        assert all(torch.equal(grad, was) for grad, was in kept)
    assert_equal_everywhere(model, optimizer)


@check
def complex_numbers_are_averaged_like_pairs():
    for name in ("pcgrad", "mean-all", "tensor", "every", "wide"):
        compare_group(WRAPPERS[name], build=ComplexModel)


@check
def complex_numbers_that_are_not_finite_skip_their_task_everywhere():
    me, num = dist.get_rank(), dist.get_world_size()
    for every in (1, 2):
        wrapper = functools.partial(
            PCGrad, tasks=TASKS, every=every, on_nonfinite="skip_task", scope="all"
        )
        model = ComplexModel()
        optimizer = watched(wrapper(base=sgd(model), process_group=dist.group.WORLD), model)
        joined = Joined(functools.partial(wrapper), even, model=ComplexModel())
        for step in range(4):
            joined.step(step, without="b" if step == 1 else None)
            batches = own_batches(step, even, me, num)
            if step == 1 and me == 0:
                model.scale.register_hook(spoilt_once())
                batches = {task: batches[task] for task in ("b", "a", "c")}
            train_step(model, optimizer, batches)
            if step != 1:
                assert_same(model, optimizer, joined)


def spoilt_once():
    """A hook that spoils the imaginary part of the first gradient it sees."""
    seen = []

    def hook(grad):
        seen.append(None)
        return grad if len(seen) > 1 else grad + complex(0, float("inf"))

    return hook


@check
def a_process_group_is_one_process_for_every_method():
    for name, wrapper in methods().items():
        try:
            compare_group(wrapper)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def trunk_declared(base, **options):
    """The trunk alone may be shared: the scale, which tasks "a" and "b" reach, is not."""
    return PCGrad(base, tasks=TASKS, shared=base.param_groups[0]["params"][:4], **options)


@check
def declared_shared_parameters_are_one_process():
    compare_group(trunk_declared)
    model = Model()
    text = message(
        ValueError,
        lambda: trunk_declared(
            sgd(model), process_group=dist.group.WORLD, on_nonfinite="skip_task"
        ),
    )
    assert "shared" in text


@check
def gradients_added_after_surgery_are_averaged_as_well():
    me, num = dist.get_rank(), dist.get_world_size()
    for wrapper in (trunk_declared, *(WRAPPERS[name] for name in ("loss-sum", "every", "pcgrad"))):
        model, joined = Model(), Joined(wrapper)
        optimizer = watched(wrapper(base=sgd(model), process_group=dist.group.WORLD), model)
        for step in range(3):
            optimizer.zero_grad()
            joined.optimizer.zero_grad()
            for part in (step, step + 1):
                blocks(model, optimizer, own_batches(part, uneven, me, num))
                optimizer.surgery()
                for task in TASKS:
                    for process in range(num):
                        if task in uneven(part, process, num):
                            with joined.optimizer.task(task):
                                joined.model(
                                    task, batch_of(task, part, process, 1 / num)
                                ).backward()
                joined.optimizer.surgery()
            optimizer.step()
            joined.optimizer.step()
            assert_same(model, optimizer, joined)


@check
def it_makes_no_difference_how_many_columns_travel_at_once():
    for columns in (16, 45):
        with mock.patch.object(columns_room, "_COLUMNS", columns):
            compare_group(WRAPPERS["group"], num_steps=2)


@check
def losses_may_share_a_graph_and_a_process_may_have_none():
    me, num = dist.get_rank(), dist.get_world_size()
    plan = lambda step, process, num: TASKS if process or step < 2 else ()  # noqa: E731
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, process_group=dist.group.WORLD)
    watched(optimizer, model)
    joined = Joined(functools.partial(PCGrad, tasks=TASKS), plan)
    for step in range(4):
        joined.step(step)
        optimizer.zero_grad()
        batches = own_batches(step, plan, me, num)
        optimizer.backward({task: model(task, batch) for task, batch in batches.items()})
        optimizer.step()
        assert_same(model, optimizer, joined)


@check
def surgery_on_features_sees_everybodys_examples():
    me, num = dist.get_rank(), dist.get_world_size()
    inputs = torch.randn(6 * num, 4, generator=torch.Generator().manual_seed(5))
    targets = torch.stack([inputs.sum(1), -inputs.sum(1), inputs[:, 0]], dim=1)
    found = []
    for mine, group in ((slice(6 * me, 6 * me + 6), dist.group.WORLD), (slice(None), None)):
        model = Model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, process_group=group)
        for _ in range(3):
            optimizer.zero_grad()
            features = model.trunk(inputs[mine])
            outputs = torch.cat([model.heads[task](features) for task in TASKS], dim=1)
            losses = (outputs - targets[mine]).square().mean(0).unbind()
            optimizer.feature_backward(losses, features)
            optimizer.step()
        found.append((model, optimizer))
    for one, other in zip(found[0][0].parameters(), found[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    weights = [optimizer.diagnostics.weights for _, optimizer in found]
    torch.testing.assert_close(*weights)
    text = message(ValueError, lambda: found[0][1].feature_backward({"a": model.scale.sum()}, []))
    assert "features" in text


@check
def parameters_of_two_types_are_one_process():
    """Both with a gradient of several tasks, of one task alone, and outside every task."""
    me, num = dist.get_rank(), dist.get_world_size()
    found = []
    for processes, group in (([me], dist.group.WORLD), (range(num), None)):
        types = (torch.float32, torch.float64) * 3
        parameters = [torch.nn.Parameter(torch.ones(5, dtype=dtype)) for dtype in types]
        optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1), tasks=TASKS, process_group=group)
        for step in range(3):
            optimizer.zero_grad()
            for task in TASKS:
                reached = parameters[:2] if task != "c" else parameters[2:4]
                for process in processes:
                    with optimizer.task(task):
                        (inputs, _, _) = batch_of(task, step, process)
                        for parameter in reached:
                            (parameter[:4] * inputs.mean(0)).sum().div(len(processes)).backward()
            for parameter in parameters[4:]:
                sum((p + 1) * parameter.sum() / len(processes) for p in processes).backward()
            optimizer.step()
        found.append(parameters)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@check
def setups_that_differ_or_cannot_work_are_refused():
    me, num = dist.get_rank(), dist.get_world_size()
    world = dist.group.WORLD
    model = Model()
    text = message(ValueError, lambda: PCGrad(sgd(model), process_group=world))
    assert "tasks: must be declared" in text
    message(TypeError, lambda: PCGrad(sgd(model), tasks=TASKS, process_group=num))
    optimizer = PCGrad(sgd(model), tasks=TASKS if me != 1 else TASKS[::-1], process_group=world)
    blocks(model, optimizer, own_batches(0, even, me, num))
    assert "process_group" in message(ValueError, lambda: copy.deepcopy(optimizer))
    assert "process 1 has" in message(ValueError, optimizer.step)
    sharded = sharded_model()
    text = message(ValueError, lambda: PCGrad(sgd(sharded), tasks=TASKS, process_group=world))
    assert "process_group: must be left out" in text
    optimizer = PCGrad(sgd(sharded), tasks=TASKS)
    text = message(
        ValueError, lambda: optimizer.feature_backward([sharded.scale.sum()] * 3, model.scale)
    )
    assert "not sharded" in text


@check
def ddp_is_one_process_for_every_method():
    me, num = dist.get_rank(), dist.get_world_size()
    for number, (name, wrapper) in enumerate(methods().items()):
        for as_view in (number % 2 == 0, number % 2 == 1)[: 2 if name == "monitor" else 1]:
            replica = DistributedDataParallel(
                Model(), find_unused_parameters=True, gradient_as_bucket_view=as_view
            )
            optimizer = watched(wrapper(base=sgd(replica.module)), replica.module)
            joined = Joined(wrapper, even)
            for step in range(3):
                joined.step(step)
                train_step(replica, optimizer, own_batches(step, even, me, num))
                try:
                    assert_same(replica, optimizer, joined)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {as_view=}, step {step}: {error}") from error


@check
def ddp_without_sync_is_a_process_group():
    me, num = dist.get_rank(), dist.get_world_size()
    for sync in (False, True):
        replica = DistributedDataParallel(Model(), find_unused_parameters=True)
        optimizer = PCGrad(sgd(replica.module), tasks=TASKS, process_group=dist.group.WORLD)
        watched(optimizer, replica.module)
        plan = even if sync else uneven
        joined = Joined(functools.partial(PCGrad, tasks=TASKS), plan)
        for step in range(4):
            joined.step(step)
            optimizer.zero_grad()
            with ExitStack() if sync else replica.no_sync():
                blocks(replica, optimizer, own_batches(step, plan, me, num))
            optimizer.step()
            assert_same(replica, optimizer, joined)


@check
def a_checkpoint_of_one_process_loads_on_all_and_on_one():
    me, num = dist.get_rank(), dist.get_world_size()

    def built():
        model = Model()
        return model, watched(
            PCGrad(sgd(model), tasks=TASKS, every=2, process_group=dist.group.WORLD), model
        )

    def train(model, optimizer, steps):
        for step in steps:
            train_step(model, optimizer, own_batches(step, uneven, me, num))

    model, optimizer = built()
    train(model, optimizer, range(3))
    saved = [copy.deepcopy((model.state_dict(), optimizer.state_dict())) if me == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    again, resumed = built()
    again.load_state_dict(saved[0][0])
    resumed.load_state_dict(copy.deepcopy(saved[0][1]))
    train(model, optimizer, range(3, 7))
    train(again, resumed, range(3, 7))
    for one, other in zip(bits(model, optimizer), bits(again, resumed), strict=True):
        assert torch.equal(one, other)
    alone = Joined(functools.partial(PCGrad, tasks=TASKS, every=2))
    alone.model.load_state_dict(saved[0][0])
    alone.optimizer.load_state_dict(saved[0][1])
    for step in range(3, 7):
        alone.step(step)
    assert_same(model, optimizer, alone)


def scaled_losses(parameter, scales):
    return {task: (scales[task] * parameter.square()).sum() for task in TASKS}


@check
def a_step_with_a_closure_or_in_parts_is_averaged_throughout():
    """Losses of other scales on every process, against one process with the scales' mean."""
    me, num = dist.get_rank(), dist.get_world_size()
    scales = [
        {task: torch.randn(5, dtype=torch.float64, generator=seeded(3 * process + place))
         for place, task in enumerate(TASKS)}
        for process in range(num)
    ]  # fmt: skip
    mean = {task: sum(of[task] for of in scales) / num for task in TASKS}
    for name, wrapper in methods().items():
        found = []
        for own, group in ((scales[me], dist.group.WORLD), (mean, None)):
            parameter = torch.nn.Parameter(torch.linspace(0.5, 1.5, 5, dtype=torch.float64))
            base = SAM([parameter], base_optimizer=torch.optim.SGD, lr=0.05)
            optimizer = wrapper(base=base, process_group=group)

            def gather(own=own, optimizer=optimizer, parameter=parameter):
                for task, loss in scaled_losses(parameter, own).items():
                    with optimizer.task(task):
                        loss.backward()

            for _ in range(4):
                optimizer.zero_grad()
                gather()
                optimizer.surgery()
                gather()
                optimizer.step(gather)
            found.append(parameter.detach())
        torch.testing.assert_close(*found, msg=name)


@check
def the_state_that_torch_asks_for_counts_no_step():
    for name, wrapper in methods().items():
        model = Model()
        optimizer = wrapper(base=sgd(model), process_group=dist.group.WORLD)
        get_optimizer_state_dict(model, optimizer)
        optimizer.step()  # without any gradient, on any process
        assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 0, name
        batches = own_batches(0, even, dist.get_rank(), dist.get_world_size())
        optimizer.zero_grad()
        blocks(model, optimizer, batches if dist.get_rank() == 0 else {})
        optimizer.step()
        assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 1, name


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class OverLosses(Method):
    """Weighs each loss by one over its mean over the processes."""

    needs_gram = False
    needs_losses = True

    def weights(self, seen):
        return (1 / seen.losses)[None]


@check
def weights_of_losses_are_of_their_mean_where_a_process_has_no_examples():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    base = torch.optim.SGD([parameter], lr=0.1)
    group = dist.group.WORLD
    optimizer = MultiTaskOptimizer(base, OverLosses(), tasks=("a", "b"), process_group=group)
    losses = {"a": 2 * parameter.sum(), "b": 3 * parameter[0]}
    optimizer.backward(losses if dist.get_rank() == 0 else {})
    # The mean of both losses is theirs over the number of processes, and so are their gradients.
    expected = parameter.new_tensor([2 / 4 + 3 / 3, 2 / 4])
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=0)


@check
def taken_gradients_are_those_of_blocks_on_every_process():
    """A process without any task takes nothing."""
    me, num = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    for options in ({}, {"every": 2}, {"on_nonfinite": "skip_task"}):
        taking, in_blocks = Model(), Model()
        optimizer = watched(
            PCGrad(sgd(taking), tasks=TASKS, process_group=group, **options), taking
        )
        other = watched(
            PCGrad(sgd(in_blocks), tasks=TASKS, process_group=group, **options), in_blocks
        )
        for step in range(4):
            batches = own_batches(step, uneven, me, num)
            parameters = list(taking.parameters())
            optimizer.zero_grad()
            optimizer.take(
                {
                    task: torch.autograd.grad(taking(task, batch), parameters, allow_unused=True)
                    for task, batch in batches.items()
                },
                parameters=parameters,
            )
            optimizer.step()
            train_step(in_blocks, other, batches)
            for found, expected in zip(parameters, in_blocks.parameters(), strict=True):
                assert torch.equal(found, expected)
        assert_equal_everywhere(taking, optimizer)
    sharded = sharded_model()
    optimizer = PCGrad(sgd(sharded), tasks=TASKS)
    stack = torch.zeros(3, *sharded.scale.shape)
    assert "not sharded" in message(ValueError, lambda: optimizer.take({sharded.scale: stack}))
