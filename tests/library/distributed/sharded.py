"""FSDP2 and other sharded parameters against one process."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from gradsurgery import PCGrad
from tests.library.distributed.training import (
    TASKS,
    WRAPPERS,
    Joined,
    Model,
    assert_equal_everywhere,
    assert_same,
    batch_of,
    blocks,
    check,
    even,
    methods,
    own_batches,
    sgd,
    sharded_model,
    watched,
    whole,
)


def compare_sharded(wrapper, mesh=None):
    me, num = dist.get_rank(), dist.get_world_size()
    model = sharded_model(mesh)
    optimizer = watched(wrapper(base=sgd(model)), model)
    joined = Joined(wrapper, even)
    for step in range(3):
        joined.step(step)
        optimizer.zero_grad()
        blocks(model, optimizer, own_batches(step, even, me, num))
        optimizer.step()
    assert_same(model, optimizer, joined)
    assert_equal_everywhere(model, optimizer)


@check
def fsdp_is_one_process_for_every_method():
    for name, wrapper in methods().items():
        try:
            compare_sharded(wrapper)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@check
def hybrid_sharding_is_one_process():
    num = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, num // 2), mesh_dim_names=("copies", "shards"))
    for name in ("pcgrad", "tensor", "sketch"):
        compare_sharded(WRAPPERS[name], mesh)


def compare_on_mesh(wrapper, model, data):
    """Processes that share a place of ``data`` see the same examples."""
    me, num = (0, 1) if data is None else (data.get_local_rank(), data.size())
    optimizer = watched(wrapper(base=sgd(model)), model)
    joined = Joined(wrapper, even, num_processes=num, model=Model(width=8))
    for step in range(3):
        joined.step(step)
        optimizer.zero_grad()
        blocks(model, optimizer, own_batches(step, even, me, num))
        optimizer.step()
    assert_same(model, optimizer, joined)
    assert_equal_everywhere(model, optimizer)


def parallel_trunk(mesh):
    """A model with the trunk's two layers cut by their hidden units."""
    model = Model(width=8)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model.trunk, mesh, plan)
    return model


@check
def tensor_parallelism_is_one_process():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in ("pcgrad", "mean-all", "tensor", "sketch"):
        compare_on_mesh(WRAPPERS[name], parallel_trunk(mesh), None)


@check
def tensor_parallelism_under_fsdp_is_one_process():
    """Two dimensions of one mesh: examples and shards over one, hidden units over the other."""
    num = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, num // 2), mesh_dim_names=("data", "units"))
    for name in ("pcgrad", "mean-all", "tensor", "every", "sketch", "sketch-averaged"):
        model = parallel_trunk(mesh["units"])
        fully_shard(model.trunk, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
        compare_on_mesh(WRAPPERS[name], model, mesh["data"])


@check
def what_is_not_sharded_counts_once():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(1)
    grads = {task: [torch.randn(5, 3, generator=generator) for _ in range(4)] for task in TASKS}
    found = []
    for layouts in (("shard", "copy", "plain", "other"), ("plain",) * 4):
        place = {
            "shard": lambda t: distribute_tensor(t.clone(), mesh, [Shard(0)]),
            "other": lambda t: distribute_tensor(t.clone(), mesh, [Shard(1)]),
            "copy": lambda t: distribute_tensor(t.clone(), mesh, [Replicate()]),
            "plain": lambda t: t.clone(),
        }
        parameters = [nn.Parameter(place[layout](torch.zeros(5, 3))) for layout in layouts]
        optimizer = PCGrad(torch.optim.SGD(parameters, lr=1.0), granularity="model")
        for _ in range(3):
            optimizer.zero_grad()
            for task in TASKS:
                with optimizer.task(task):
                    for parameter, layout, grad in zip(
                        parameters, layouts, grads[task], strict=True
                    ):
                        parameter.grad = place[layout](grad)
            optimizer.step()
            found.append((optimizer.diagnostics.gram, [whole(p.grad) for p in parameters]))
    for (gram, ours), (expected_gram, expected) in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(gram, expected_gram)
        torch.testing.assert_close(ours, expected)


@check
def torch_saves_nothing_but_the_base_optimizers_state():
    """Why the guide gives it `optimizer.base`, and the rest as bytes."""
    model = sharded_model()
    model.unused.requires_grad_(False)
    optimizer = PCGrad(sgd(model), tasks=TASKS)
    blocks(model, optimizer, own_batches(0, even, dist.get_rank(), dist.get_world_size()))
    optimizer.step()
    assert optimizer.state_dict()["gradsurgery"]["num_steps"] == 1
    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        found, of_base = (
            get_optimizer_state_dict(model, each, options=options)
            for each in (optimizer, optimizer.base)
        )
        assert "gradsurgery" not in repr(found)
        assert found.keys() == of_base.keys()


@check
def one_non_finite_shard_skips_the_step_everywhere():
    me = dist.get_rank()
    for policy in ("skip_step", "skip_task"):
        model = sharded_model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, on_nonfinite=policy)
        before = whole(model.scale.detach()).clone()
        optimizer.zero_grad()
        for task in TASKS:
            with optimizer.task(task):
                model(task, batch_of(task, 0, me)).backward()
                if task == "a" and me == 0:
                    model.trunk[0].weight.grad.to_local()[0, 0] = float("nan")
        optimizer.step()
        changed = not torch.equal(before, whole(model.scale.detach()))
        assert changed == (policy == "skip_task")
        assert whole(model.trunk[0].weight.detach()).isfinite().all()
        assert_equal_everywhere(model, optimizer)
