"""All checks that every process of `test_distributed.py` runs, among them the guides' code.

`python -m tests.library.distributed.worker` prints the bytes that a process sends beside the
formulas of `docs/scaling.md`.
"""

import functools
import io
import json
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import tests.library.distributed.losses
import tests.library.distributed.nonfinite
import tests.library.distributed.replicas
import tests.library.distributed.sharded  # noqa: F401 - their checks
from gradsurgery import PCGrad
from tests.library.distributed.traffic import bytes_of_a_step
from tests.library.distributed.training import (
    CHECKS,
    TASKS,
    Joined,
    Model,
    assert_equal_everywhere,
    assert_same,
    batch_of,
    bits,
    check,
    even,
    guide,
    one_group,
    own_batches,
    shared_folder,
    uneven,
    watched,
)


@check
def the_tasks_of_all_processes_make_a_surgery():
    """A task on each process is enough; one on all of them warns on each, once."""
    me = dist.get_rank()
    model = Model()
    optimizer = PCGrad(one_group(model), tasks=TASKS, process_group=dist.group.WORLD)
    for names, num_warnings in ((TASKS, 0), (("a",), 1), (("a",), 0)):
        task = names[me % len(names)]
        optimizer.zero_grad()
        with optimizer.task(task):
            model(task, batch_of(task, 0, me)).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        said = [str(warning.message) for warning in caught]
        assert len([text for text in said if "one task only, 'a'" in text]) == num_warnings
        assert len(said) == num_warnings, said


@check
def the_guide_for_process_groups_is_one_process():
    code = guide("ddp")
    me, num = dist.get_rank(), dist.get_world_size()
    model = Model()
    if me > 0:
        for parameter in model.parameters():
            parameter.data.add_(me)
    optimizer = watched(code["build"](model, TASKS), model)
    joined = Joined(functools.partial(PCGrad, tasks=TASKS), base=one_group)
    for step in range(5):
        joined.step(step, clip=True)
        code["train_step"](model, optimizer, own_batches(step, uneven, me, num))
        assert_same(model, optimizer, joined)
    assert_equal_everywhere(model, optimizer)


@check
def the_guide_for_ddp_is_one_process():
    code = guide("ddp")
    me, num = dist.get_rank(), dist.get_world_size()
    replica, optimizer = code["build_with_ddp"](Model(), TASKS)
    watched(optimizer, replica.module)
    joined = Joined(functools.partial(PCGrad, tasks=TASKS), even, base=one_group)
    for step in range(4):
        joined.step(step, clip=True)
        code["train_step"](replica, optimizer, own_batches(step, even, me, num))
        assert_same(replica, optimizer, joined)
    assert_equal_everywhere(replica, optimizer)


@check
def a_sharded_checkpoint_continues_bit_for_bit_and_loads_on_one_process():
    code = guide("fsdp2")
    me, num = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (num,))

    def built():
        model = Model()
        model.unused.requires_grad_(False)
        optimizer = code["build"](model, mesh, TASKS)
        optimizer.every = 3
        return model, watched(optimizer, model)

    def train(model, optimizer, steps):
        for step in steps:
            code["train_step"](model, optimizer, own_batches(step, even, me, num))

    model, optimizer = built()
    train(model, optimizer, range(4))
    folder = shared_folder()
    code["save"](model, optimizer, folder)
    saved_here = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved_here)
    again, resumed = built()
    code["load"](again, resumed, folder)
    train(model, optimizer, range(4, 8))
    train(again, resumed, range(4, 8))
    for one, other in zip(bits(model, optimizer), bits(again, resumed), strict=True):
        assert torch.equal(one, other)
    own, of_resumed = optimizer.state_dict()["gradsurgery"], resumed.state_dict()["gradsurgery"]
    assert repr(own) == repr(of_resumed)

    # The plain state dictionaries of this process.
    again, resumed = built()
    saved_here.seek(0)
    of_model, of_optimizer = torch.load(saved_here, weights_only=False)
    again.load_state_dict(of_model)
    resumed.load_state_dict(of_optimizer)
    train(again, resumed, range(4, 8))
    for one, other in zip(bits(model, optimizer), bits(again, resumed), strict=True):
        assert torch.equal(one, other)

    # One process alone, which then has everybody's examples.
    wrapper = functools.partial(PCGrad, tasks=TASKS, every=3)
    alone = Joined(wrapper, even, base=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    alone.model.unused.requires_grad_(False)
    load_alone(code, alone.model, alone.optimizer, folder)
    for step in range(4, 8):
        alone.step(step, clip=True)
    # AdamW divides by roots of squares, which magnifies the rounding of tiny gradients.
    assert_same(model, optimizer, alone, at_most=1e-5)


def load_alone(code, model, optimizer, folder):
    """The guide's load() as a program of one process would run it."""
    load = functools.partial(code["dcp"].load, no_dist=True)
    with mock.patch.object(code["dcp"], "load", load):
        code["load"](model, optimizer, folder)


# What a process does


def run(process, num_processes, folder, names):
    """Runs checks one after the other and writes down how each ended, until one fails."""
    torch.set_num_threads(1)
    begin(process, num_processes, folder)
    for name in names:
        outcome = Path(folder) / f"{name}.{process}.json"
        outcome.write_text(json.dumps("began and never ended"))
        try:
            CHECKS[name]()
        except BaseException:
            outcome.write_text(json.dumps(traceback.format_exc()))
            break
        outcome.write_text(json.dumps(None))
        dist.barrier()
    dist.destroy_process_group()


def begin(process, num_processes, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=process,
        world_size=num_processes,
        timeout=timedelta(seconds=60),
    )


def print_bytes(process, num_processes, folder):
    begin(process, num_processes, folder)
    found = bytes_of_a_step()
    if process == 0:
        for name, (measured, derived) in found.items():
            print(f"| {num_processes} | {name} | {measured:,.0f} | {derived:,.0f} |")
    dist.destroy_process_group()


if __name__ == "__main__":
    print("| W | what | counted | derived |\n|---|---|---|---|")
    for number in (2, 4):
        with tempfile.TemporaryDirectory() as scratch:
            torch.multiprocessing.start_processes(
                print_bytes, (number, scratch), nprocs=number, start_method="forkserver"
            )
