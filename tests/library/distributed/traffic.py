"""The bytes that collectives are given, and the memory of rows, against what was derived."""

import functools
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import PCGrad, Sketch
from tests.library.distributed.training import TASKS, blocks, check, train_step


@contextmanager
def counted(num_processes):
    """Bytes that each process sends in a ring, by collective, from what the calls are given."""
    sent = {}

    def counting(name, function, payload, factor):
        @functools.wraps(function)
        def call(*args, **kwargs):
            bytes_of = payload(*args).numel() * payload(*args).element_size()
            share = factor * bytes_of * (num_processes - 1) / num_processes
            sent[name] = sent.get(name, 0) + share
            return function(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    first, second = (lambda *args: args[0]), (lambda *args: args[1])
    with ExitStack() as stack:
        stack.enter_context(counting("all_reduce", dist.all_reduce, first, 2))
        for names, payload in (
            (("reduce_scatter_single", "reduce_scatter_tensor"), second),
            (("all_gather_single", "all_gather_into_tensor"), first),
        ):
            name = next(name for name in names if hasattr(dist, name))
            stack.enter_context(counting(name, getattr(dist, name), payload, 1))
        yield sent


class Trunk(nn.Module):
    """P = 4,096 parameters in eight tensors, all shared."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList(torch.full((512,), 0.1) for _ in range(8))

    def forward(self, task, batch):
        return torch.cat(list(self.parts)).square().sum() * (1 + TASKS.index(task))


def bytes_of_a_step():
    """Measured and derived bytes that a process sends in a step, in float32."""
    num = dist.get_world_size()
    num_tasks, columns, tensors = len(TASKS), 4096, 8
    share = (num - 1) / num
    found = {}
    derived = (num_tasks + 1) * columns * 4 * share
    derived += 2 * share * (8 * num_tasks**2 + tensors * (num_tasks + 1))
    for policy in ("propagate", "skip_task", "raise", "skip_step"):
        model = Trunk()
        base = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer = PCGrad(base, tasks=TASKS, process_group=dist.group.WORLD, on_nonfinite=policy)
        for _ in range(2):
            with counted(num) as sent:
                train_step(model, optimizer, dict.fromkeys(TASKS))
        more = 0 if policy == "propagate" else 2 * share * num_tasks
        found[f"process_group, {policy}"] = (sum(sent.values()), derived + more)

    optimizer = PCGrad(
        torch.optim.SGD((model := Trunk()).parameters(), lr=1e-3),
        tasks=TASKS,
        process_group=dist.group.WORLD,
        memory=Sketch(256),
    )
    for _ in range(2):
        with counted(num) as sent:
            train_step(model, optimizer, dict.fromkeys(TASKS))
    numbers = 4 * (columns + num_tasks * 256) + tensors * (num_tasks + 1)
    found["process_group, sketch"] = (sum(sent.values()), 2 * share * numbers)

    replica = DistributedDataParallel(Trunk())
    sent_by_ddp = []

    def hook(_, bucket):
        sent_by_ddp.append(2 * share * bucket.buffer().numel() * bucket.buffer().element_size())
        future = dist.all_reduce(bucket.buffer() / num, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    replica.register_comm_hook(None, hook)
    optimizer = PCGrad(torch.optim.SGD(replica.parameters(), lr=1e-3), tasks=TASKS)
    for _ in range(2):
        sent_by_ddp.clear()
        train_step(replica, optimizer, dict.fromkeys(TASKS))
    found["DDP"] = (sum(sent_by_ddp), 2 * num_tasks * columns * 4 * share)

    model = Trunk()
    fully_shard(model, mesh=init_device_mesh("cpu", (num,)))
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=1e-3), tasks=TASKS)
    for _ in range(2):
        optimizer.zero_grad()
        blocks(model, optimizer, dict.fromkeys(TASKS))
        with counted(num) as sent:
            optimizer.surgery()
        optimizer.step()
    found["FSDP2, surgery alone"] = (sum(sent.values()), 2 * share * 8 * num_tasks**2)
    found["rows in FSDP2, bytes"] = (
        float(optimizer._step.buffer.num_bytes),
        num_tasks * columns * 4 / num,
    )
    return found


@check
def the_bytes_are_those_derived():
    for name, (measured, derived) in bytes_of_a_step().items():
        assert measured == derived, (name, measured, derived)
