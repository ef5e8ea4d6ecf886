"""Methods that weigh losses, on processes with examples of their own, against one process."""

import functools

import torch
import torch.distributed as dist

from gradsurgery import DWA, FAMO, GLS, RLW, STCH, UncertaintyWeighting
from tests.library.distributed.training import (
    TASKS,
    Model,
    batch_of,
    check,
    even,
    one_group,
    sharded_model,
    uneven,
    whole,
)

METHODS = {
    "uncertainty": functools.partial(UncertaintyWeighting, lr=0.1),
    "uncertainty-mean": functools.partial(UncertaintyWeighting, lr=0.1, reduction="mean"),
    "skipping": functools.partial(UncertaintyWeighting, lr=0.1, on_nonfinite="skip_task"),
    "dwa": functools.partial(DWA, window=1),
    "rlw": functools.partial(RLW, seed=3),
    "gls": GLS,
    "stch": functools.partial(STCH, mu=0.5, warmup_steps=2),
    "famo": functools.partial(FAMO, lr=0.1),
}


def gather(model, optimizer, by_task, way):
    """Back-propagates each task's batches; the graph of one loss is that task's alone."""
    optimizer.zero_grad()
    if way == "backward":
        optimizer.backward(
            {task: sum(model(task, batch) for batch in own) for task, own in by_task.items()}
        )
        return
    for task, batches in by_task.items():
        with optimizer.task(task) as block:
            for batch in batches:
                block.backward(model(task, batch))


def look_again(model, optimizer, by_task):
    with torch.no_grad():
        losses = {task: sum(model(task, b) for b in own) for task, own in by_task.items()}
        optimizer.look_again(losses)


def compare(name, way, plan, model, **options):
    me, num = dist.get_rank(), dist.get_world_size()
    optimizer = METHODS[name](one_group(model), tasks=TASKS, **options)
    joined = Model()
    alone = METHODS[name](one_group(joined), tasks=TASKS)
    for step in range(6):
        plans = [plan(step, process, num) for process in range(num)]
        everybody = {
            task: [batch_of(task, step, p, 1 / num) for p in range(num) if task in plans[p]]
            for task in TASKS
            if any(task in of_process for of_process in plans)
        }
        own = {task: [batch_of(task, step, me)] for task in plans[me]}
        for network, one, by_task in ((joined, alone, everybody), (model, optimizer, own)):
            gather(network, one, by_task, way)
            one.step()
            if name == "famo":
                look_again(network, one, by_task)
    for parameter, expected in zip(model.parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(
            whole(parameter.detach()), expected.detach(), rtol=1e-5, atol=1e-6
        )
    found, expected = optimizer.diagnostics.numbers, alone.diagnostics.numbers
    assert found.keys() == expected.keys()
    for kind, numbers in found.items():
        torch.testing.assert_close(numbers, expected[kind], rtol=1e-5, atol=1e-6)
        first = numbers.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, numbers)


def compare_all(plan, build, ways, **options):
    for name in METHODS:
        for way in ways:
            try:
                compare(name, way, plan, build(), **options)
            except AssertionError as error:
                raise AssertionError(f"{name}, {way}: {error}") from error


@check
def weights_of_losses_are_alike_on_processes_that_lack_tasks():
    compare_all(uneven, Model, ("blocks", "backward"), process_group=dist.group.WORLD)


@check
def weights_of_losses_are_alike_on_sharded_parameters():
    compare_all(even, sharded_model, ("blocks", "backward"))
