"""The small training that every check does, on several processes and on one that has everything."""

import functools
import re
import tempfile

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, Sketch, WeightedSum
from tests.paths import GUIDES

TASKS = ("a", "b", "c")
PER_PROCESS = 6  # examples of a task
CHECKS = {}


def check(function):
    """Lets the processes run a function, and `test_distributed.py` ask how it ended."""
    CHECKS[function.__name__] = function
    return function


class Model(nn.Module):
    """A trunk for all tasks, a head for each, a scale for task "a" and "b", and one for nobody."""

    def __init__(self, width=7):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 5))
            self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.scale = nn.Parameter(torch.ones(5))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, task, batch):
        inputs, targets, weight = batch
        features = self.trunk(inputs)
        if task != "c":
            features = features * self.scale
        return (self.heads[task](features) - targets).square().mean() * weight


def batch_of(task, step, process, weight=1.0):
    place = TASKS.index(task)
    generator = torch.Generator().manual_seed(1000 * step + 10 * process + place)
    inputs = torch.randn(PER_PROCESS, 4, generator=generator)
    return inputs, inputs.sum(1, keepdim=True) * (-1.0) ** place + 0.5 * place, weight


def even(step, process, num_processes):
    """All tasks on every process, in one order."""
    return TASKS


def uneven(step, process, num_processes):
    """Other orders on every process, a task that most have not, a process without any."""
    turn = (step + process) % 3
    tasks = [*TASKS[turn:], *TASKS[:turn]]
    if step >= 1 and process == 0:
        tasks.remove("b")
    if step >= 2 and process > 0:
        tasks.remove("c")
    return [] if step == 3 and process == num_processes - 1 else tasks


def sgd(model):
    groups = [
        {"params": [*model.trunk.parameters(), model.scale]},
        {"params": [*model.heads.parameters(), model.unused], "lr": 0.05},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def equal_norms(gram):
    norms = gram.diagonal().sqrt()
    return norms.mean() / norms


WRAPPERS = {
    "pcgrad": functools.partial(PCGrad, tasks=TASKS, seed=3),
    "mean-all": functools.partial(PCGrad, tasks=TASKS, reduction="mean", scope="all"),
    "group": functools.partial(PCGrad, tasks=TASKS, granularity="group", scope="all"),
    "tensor": functools.partial(PCGrad, tasks=TASKS, granularity="tensor"),
    "every": functools.partial(PCGrad, tasks=TASKS, every=2, start_step=1, scope="all"),
    "custom": functools.partial(MultiTaskOptimizer, weighting=equal_norms, tasks=TASKS),
    "loss-sum": functools.partial(LossSum, tasks=TASKS),
    "monitor": functools.partial(LossSum, tasks=TASKS, monitor=True),
    "weighted": functools.partial(
        WeightedSum, weights={"a": 1.0, "b": 0.5, "c": 2.0}, monitor=True
    ),
    "sketch": functools.partial(PCGrad, tasks=TASKS, memory="sketch"),
    "sketch-averaged": functools.partial(PCGrad, tasks=TASKS, memory=Sketch(momentum=0.5)),
    "sketch-monitor": functools.partial(LossSum, tasks=TASKS, monitor="sketch"),
    "wide": functools.partial(PCGrad, tasks=TASKS, buffer_dtype=torch.float64),
}


def methods():
    """All of them on two processes; on more, those that differ in what travels."""
    names = (
        WRAPPERS
        if dist.get_world_size() == 2
        else (
            "pcgrad",
            "mean-all",
            "tensor",
            "every",
            "sketch-averaged",
        )
    )
    return {name: WRAPPERS[name] for name in names}


def watched(optimizer, model):
    if optimizer._settings.sketch is None:
        optimizer.watch({"first": model.trunk[0].parameters(), "rest": [model.scale]})
    return optimizer


def blocks(model, optimizer, batches):
    for task, batch in batches.items():
        with optimizer.task(task):
            model(task, batch).backward()


def train_step(model, optimizer, batches, regulariser=None):
    optimizer.zero_grad()
    blocks(model, optimizer, batches)
    if regulariser is not None:
        (model.trunk[0].weight.square().sum() * regulariser).backward()
    optimizer.step()


def own_batches(step, plan, process, num_processes):
    return {task: batch_of(task, step, process) for task in plan(step, process, num_processes)}


class Joined:
    """The model of one process that has everybody's examples."""

    def __init__(self, wrapper, plan=uneven, num_processes=None, base=sgd, model=None):
        self.model = model or Model()
        self.optimizer = watched(wrapper(base=base(self.model)), self.model)
        self.plan = plan
        self.num_processes = num_processes or dist.get_world_size()

    def step(self, step, regularise=False, clip=False, without=None):
        """The loss of a task is the mean over the processes, 0 where it is missing, and of the
        task ``without`` everywhere."""
        self.optimizer.zero_grad()
        num = self.num_processes
        plans = [self.plan(step, process, num) for process in range(num)]
        for task in TASKS:
            having = [process for process in range(num) if task in plans[process]]
            if having:
                with self.optimizer.task(task):
                    weight = 0.0 if task == without else 1 / num
                    for process in having:
                        self.model(task, batch_of(task, step, process, weight)).backward()
        if regularise:
            factor = sum(0.01 * (1 + process) for process in range(num)) / num
            (self.model.trunk[0].weight.square().sum() * factor).backward()
        if clip:
            self.optimizer.surgery()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(model, optimizer, joined, at_most=1e-6):
    """Parameters, gradients and diagnostics are those of one process."""
    expected = dict(joined.model.named_parameters())
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        torch.testing.assert_close(
            whole(parameter.detach()), expected[name].detach(), rtol=0, atol=at_most, msg=name
        )
        if expected[name].grad is None:
            assert parameter.grad is None, name
        else:
            assert type(parameter.grad.detach()) is type(parameter.detach()), name
            torch.testing.assert_close(
                whole(parameter.grad), expected[name].grad, rtol=0, atol=at_most, msg=name
            )
    ours, theirs = optimizer.diagnostics, joined.optimizer.diagnostics
    assert ours.num_surgeries == theirs.num_surgeries
    if theirs.num_surgeries:
        # One process names the tasks of a step in the same order, because they are declared.
        assert ours.tasks == theirs.tasks
        for one, other in (
            (ours.gram, theirs.gram),
            (ours.weights, theirs.weights),
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert ours.group_names == theirs.group_names
        if theirs.group_names:
            torch.testing.assert_close(ours.group_grams, theirs.group_grams, rtol=1e-5, atol=1e-6)


def assert_equal_everywhere(model, optimizer):
    """To the last bit, whole parameters and what surgery decided."""
    seen = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
    if optimizer.diagnostics.num_surgeries:
        seen["gram"] = optimizer.diagnostics.gram
        seen["weights"] = optimizer.diagnostics.weights
        if type(optimizer) is PCGrad:
            seen["coefficients"] = optimizer.diagnostics.coefficients
    for name, here in seen.items():
        first = here.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, here), name


def guide(name):
    """The functions that a guide defines."""
    text = (GUIDES / f"{name}.md").read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, f"{name}.md", "exec"), namespace)
    return namespace


def message(refusal, call):
    """The text of an error, which must be one line."""
    with pytest.raises(refusal) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def one_group(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def sharded_model(mesh=None):
    model = Model()
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.trunk, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def shared_folder():
    """A new folder that every process knows."""
    found = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def bits(model, optimizer):
    """Copies of everything that training has changed here."""
    of_base = optimizer.base.state_dict()["state"]
    states = [value for state in of_base.values() for value in state.values()]
    tensors = [*model.state_dict().values(), *(s for s in states if isinstance(s, torch.Tensor))]
    return [(t.to_local() if isinstance(t, DTensor) else t).detach().clone() for t in tensors]
