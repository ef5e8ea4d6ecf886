"""Surgery over processes, each on a GPU of its own, beside Algorithm 1 on all their gradients.

Started by ``torch.distributed.run``; with one GPU the one process is a group of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.answers import TOLERANCE, expected_update, task_rows
from benchmarks.speed.machine import describe
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.workloads import Workload, make_mlp
from gradsurgery import PCGrad, projection_order

_NUM_TASKS, _SEED = 3, 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares and times; the first process prints. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.nccl")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args(arguments)
    is_cuda = options.device == "cuda"
    device = f"cuda:{os.environ['LOCAL_RANK']}" if is_cuda else "cpu"
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        return _compare(device, num_parameters=20_000_000 if is_cuda else 10_000)
    finally:
        dist.destroy_process_group()


def _compare(device: str, num_parameters: int) -> int:
    workload = _workload(device, num_parameters, dist.get_rank())
    error = _error(workload)
    actions = {}
    for name, group in (("alone", None), ("group", dist.group.WORLD)):
        actions[name] = Action(partial(_step, _optimizer(workload, group), workload))
    times = interleaved(actions, rounds=7, warm_up=2, device=device)
    if dist.get_rank() == 0:
        header = [
            "processes",
            "P",
            "backend",
            "relative error",
            "step alone, ms",
            "in the group, ms",
        ]
        cells = [str(dist.get_world_size()), f"{workload.num_shared:,}", dist.get_backend()]
        cells += [f"{error:.1e}", *(str(times.of(name).scaled(1e3)) for name in actions)]
        print("\n".join(table(header, [cells])))
        print(describe(device, ["surgery over processes beside Algorithm 1 in float64"]))
    return 0 if error <= TOLERANCE else 1


def _workload(device: str, num_parameters: int, rank: int) -> Workload:
    """Makes the network that all have, with one process's own batches."""
    mine = make_mlp(_NUM_TASKS, num_parameters, device=device, seed=_SEED)
    if rank:
        mine.inputs[:] = make_mlp(_NUM_TASKS, num_parameters, device=device, seed=rank).inputs
    return mine


def _error(workload: Workload) -> float:
    """Gives the relative error of the combined gradient, of which every process has all."""
    shared = workload.shared()
    rows = task_rows(workload, shared)  # [T, P], which become those of all processes
    dist.all_reduce(rows)
    order = projection_order(_NUM_TASKS, _SEED, 0).tolist()
    expected, num_projections = expected_update(
        rows / dist.get_world_size(), order, onto_itself=False
    )
    assert num_projections, "a workload has conflicts"
    optimizer = _optimizer(workload, dist.group.WORLD)
    _backwards(optimizer, workload)
    optimizer.surgery()
    found = torch.cat(
        [parameter.grad.flatten() for parameter in shared if parameter.grad is not None]
    )
    return float((found - expected).norm() / expected.norm())


def _optimizer(workload: Workload, group: dist.ProcessGroup | None) -> PCGrad:
    base = torch.optim.SGD(workload.shared(), lr=0.0)
    return PCGrad(base, tasks=range(_NUM_TASKS), seed=_SEED, process_group=group)


def _backwards(optimizer: PCGrad, workload: Workload) -> None:
    optimizer.zero_grad()
    for task in range(_NUM_TASKS):
        with optimizer.task(task):
            workload.loss(task).backward()


def _step(optimizer: PCGrad, workload: Workload) -> None:
    _backwards(optimizer, workload)
    optimizer.step()


if __name__ == "__main__":
    sys.exit(main())
