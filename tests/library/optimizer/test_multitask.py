"""Every update against the oracle, torch's own loop, TorchJD and pytorch_optimizer.

The gradients that go into a comparison come from `torch.autograd.grad` or are known in advance,
never from the optimizer under test.
"""

import copy
import enum
import functools
import io
import itertools
import math
import pickle
import weakref
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pytorch_optimizer import PCGrad as OlderPCGrad
from pytorch_optimizer import load_optimizer
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchjd.aggregation import (
    IMTLG,
    MGDA,
    AlignedMTL,
    AlignedMTLWeighting,
    ConstantWeighting,
    GradVacWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    PCDWeighting,
)

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum, projection_order
from gradsurgery.solvers import plain
from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_empty")

TASKS = ("a", "b", "c")


class Network(nn.Module):
    """Two shared layers and a head for each of three tasks that disagree."""

    def __init__(self, dtype=torch.float64, tasks=TASKS, seed=0):
        super().__init__()
        self.tasks = tasks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in tasks})
        for head in self.heads.values():
            head.load_state_dict(self.heads[tasks[0]].state_dict())
        self.to(dtype)

    def inputs(self, task, step):
        generator = torch.Generator().manual_seed(1000 * step + self.tasks.index(task))
        return torch.randn(8, 4, generator=generator).to(self.trunk[0].weight.dtype)

    def loss(self, task, step, inputs=None):
        inputs = self.inputs(task, step) if inputs is None else inputs
        # Through equal heads, targets that add up to nothing: every pair of tasks is in conflict.
        angle = 2 * math.pi * self.tasks.index(task) / len(self.tasks)
        targets = 3 * (math.cos(angle) * inputs[:, :1] + math.sin(angle) * inputs[:, 1:2])
        return (self.heads[task](self.trunk(inputs)) - targets).square().mean()

    def shared(self):
        return list(self.trunk.parameters())

    def separate(self):
        return list(self.heads.parameters())


def task_gradients(network, step, tasks=TASKS, of=None):
    """Gradients ``[T, P]`` of the shared parameters in float64, by autograd alone."""
    parameters = network.shared() if of is None else of
    rows = []
    for task in tasks:
        grads = torch.autograd.grad(
            network.loss(task, step), parameters, allow_unused=True, materialize_grads=True
        )
        rows.append(flat(grads))
    return np.stack(rows)


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).numpy()


def written(parameters):
    """What the optimizer wrote to ``.grad``, flat and in float64."""
    return flat([parameter.grad for parameter in parameters])


def write(parameters, vector):
    """Puts a flat vector into ``.grad``."""
    start = 0
    for parameter in parameters:
        piece = torch.from_numpy(vector[start : start + parameter.numel()].copy())
        parameter.grad = piece.view(parameter.shape).to(parameter.dtype)
        start += parameter.numel()


def plain_gradients(network, step, tasks=TASKS, weights=None):
    """Gradients of the loss sum for every parameter, added up in the order of the tasks."""
    before = [parameter.grad for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = None
    for task in tasks:
        loss = network.loss(task, step)
        (loss if weights is None else weights[task] * loss).backward()
    found = [parameter.grad for parameter in network.parameters()]
    for parameter, grad in zip(network.parameters(), before, strict=True):
        parameter.grad = grad
    return dict(zip(network.parameters(), found, strict=True))


def run_blocks(network, optimizer, step, tasks=TASKS):
    optimizer.zero_grad()
    for task in tasks:
        with optimizer.task(task):
            network.loss(task, step).backward()


def sgd(network, **options):
    return torch.optim.SGD(network.parameters(), lr=0.05, **options)


def assert_close(found, expected, tolerance):
    """Relative to the largest entry, since cancelled entries have no precision of their own."""
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(largest, 1e-300))


# PCGrad


@pytest.mark.parametrize("seed", [0, 11711])
def test_pcgrad_follows_the_oracle_for_a_hundred_steps(seed):
    network, twin = Network(), Network()
    optimizer = PCGrad(torch.optim.Adam(network.parameters(), lr=0.01), seed=seed)
    base = torch.optim.Adam(twin.parameters(), lr=0.01)
    num_projected = 0
    for step in range(100):
        run_blocks(network, optimizer, step)
        optimizer.step()

        rows = task_gradients(twin, step)
        update, weights = oracle.pcgrad(rows, projection_order(3, seed, step))
        base.zero_grad()
        for parameter, grad in plain_gradients(twin, step).items():
            parameter.grad = grad
        write(twin.shared(), update)
        base.step()

        num_projected += weights.max() > 1
        np.testing.assert_allclose(optimizer.diagnostics.weights, weights, rtol=1e-7)
    assert num_projected > 50
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-8, atol=1e-9)


def test_pcgrad_in_float32_follows_the_oracle_at_each_of_a_hundred_steps():
    network = Network(torch.float32)
    optimizer = PCGrad(sgd(network, momentum=0.9), tasks=TASKS, seed=5)
    for step in range(100):
        rows = task_gradients(network, step)
        update, _ = oracle.pcgrad(rows, projection_order(3, 5, step))
        plain = plain_gradients(network, step)
        run_blocks(network, optimizer, step)
        optimizer.step()
        # The Gram matrix is exact to float32, and cancelled components keep its error.
        np.testing.assert_allclose(
            written(network.shared()), update, rtol=0, atol=1e-6 * np.abs(rows).max() * 3
        )
        for parameter in network.separate():
            assert torch.equal(parameter.grad, plain[parameter])


def test_heads_keep_their_gradient_and_do_not_weaken_the_projection():
    # On the trunk the tasks conflict; heads with gradients 3 and 1 must see none of it.
    trunk = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    heads = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    optimizer = PCGrad(torch.optim.SGD([trunk, *heads], lr=0.1))
    rows = torch.tensor([[2.0, 0.0], [2.0, -1.0]], dtype=torch.float64)
    rows[1, 0] = -1.0
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(
            [(trunk @ rows[0] + 3.0 * heads[0]).sum(), (trunk @ rows[1] + heads[1]).sum()]
        )
        update, _ = oracle.pcgrad(rows.numpy(), [[1], [0]])
        assert_close(trunk.grad.numpy(), update, 1e-14)
        assert [head.grad.item() for head in heads] == [3.0, 1.0]
        np.testing.assert_allclose(optimizer.diagnostics.gram, rows @ rows.T)
        optimizer.step()


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_reduction_mean_is_the_sum_divided_by_the_tasks_on_shared_parameters(num_tasks):
    tasks = TASKS[:num_tasks]
    network = Network()
    for step in range(4):
        by_sum, by_mean = PCGrad(sgd(network)), PCGrad(sgd(network), reduction="mean")
        run_blocks(network, by_sum, step, tasks)
        by_sum.surgery()
        total, heads = written(network.shared()), written(heads_of(network, tasks))
        run_blocks(network, by_mean, step, tasks)
        by_mean.surgery()
        assert_close(written(network.shared()), total / num_tasks, 1e-14)
        assert np.array_equal(written(heads_of(network, tasks)), heads)


def heads_of(network, tasks):
    return [parameter for task in tasks for parameter in network.heads[task].parameters()]


def test_scope_all_and_mean_equal_pytorch_optimizer_at_two_tasks():
    tasks = TASKS[:2]
    network, twin = Network(tasks=tasks), Network(tasks=tasks)
    optimizer = PCGrad(sgd(network, momentum=0.9), scope="all", reduction="mean")
    older = OlderPCGrad(sgd(twin, momentum=0.9), reduction="mean")
    num_projected = 0
    for step in range(30):
        run_blocks(network, optimizer, step, tasks)
        optimizer.step()
        older.zero_grad()
        older.pc_backward([twin.loss(task, step) for task in tasks])
        older.step()
        num_projected += bool(optimizer.diagnostics.conflicts.any())
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-12)
    assert num_projected > 5


def test_scope_all_projects_heads_as_well():
    network = Network()
    optimizer = PCGrad(sgd(network), scope="all", seed=2)
    everything = [*network.shared(), *network.separate()]
    for step in range(5):
        rows = task_gradients(network, step, of=everything)
        update, _ = oracle.pcgrad(rows, projection_order(3, 2, step))
        run_blocks(network, optimizer, step)
        optimizer.step()
        assert_close(written(everything), update, 1e-12)


def test_the_order_depends_on_the_seed_and_not_on_the_blocks_order():
    network = Network()
    for step in range(3):
        rows = task_gradients(network, step)
        found = []
        for seed in range(6):
            for visits in (TASKS, ("c", "a", "b")):
                optimizer = PCGrad(sgd(network), tasks=TASKS, seed=seed)
                run_blocks(network, optimizer, step, visits)
                optimizer.surgery()
                update, _ = oracle.pcgrad(rows, projection_order(3, seed, 0))
                assert_close(written(network.shared()), update, 1e-12)
                found.append(tuple(written(network.shared()).round(9)))
        assert len(set(found)) > 1


def test_any_hashable_names_a_task():
    network = Network()
    names = dict(zip(TASKS, [0, ("sts", 2), None], strict=True))
    optimizer = PCGrad(sgd(network))
    for step in range(3):
        optimizer.zero_grad()
        for task in TASKS:
            with optimizer.task(names[task]):
                network.loss(task, step).backward()
        update, _ = oracle.pcgrad(task_gradients(network, step), projection_order(3, 0, step))
        optimizer.step()
        assert_close(written(network.shared()), update, 1e-12)
    assert optimizer.diagnostics.tasks == tuple(names.values())


class Plain(enum.Enum):
    A = "a"


class Name(str, enum.Enum):
    A = "a"
    B = "b"


class Number(enum.IntEnum):
    A = 4
    B = 2


class Pair(NamedTuple):
    name: str
    number: int


EQUAL_NAMES = {
    "np.str_": (np.array(["a", "b"]), ["a", "b"]),
    "np.int64": (np.unique([7, 3]), [3, 7]),
    "np.float32": (np.array([0.1, 0.5], dtype=np.float32), [float(np.float32(0.1)), 0.5]),
    "np.bool_": (np.array([True, False]), [True, False]),
    "str Enum": (list(Name), ["a", "b"]),
    "IntEnum": (list(Number), [4, 2]),
    "tuples": ([Pair(np.str_("a"), np.int8(1)), torch.Size([2])], [("a", 1), (2,)]),
    "others": ([None, torch.float32, b"a"], [None, torch.float32, b"a"]),
    "fraction": ([Fraction(1, 2), 1], [0.5, 1]),
}


def read_back(state):
    """A checkpoint as it comes out of a file by torch's default."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("optimize", [PCGrad, LossSum, "weighted"], ids=str)
@pytest.mark.parametrize("names", EQUAL_NAMES)
def test_whatever_is_accepted_is_saved_as_its_plain_equal(names, optimize, declared):
    given, equal = EQUAL_NAMES[names]
    if optimize == "weighted":
        optimize = lambda base, **o: WeightedSum(  # noqa: E731
            base, dict(zip(given, np.arange(1, 1 + len(given)), strict=True)), **o
        )
    parameter = nn.Parameter(torch.tensor([0.5, 0.3]))
    base = torch.optim.SGD([parameter], lr=0.1)
    optimizer = optimize(base, tasks=given) if declared else optimize(base)
    losses = lambda: {n: (i + 1) * parameter.sum() for i, n in enumerate(given)}  # noqa: E731
    optimizer.backward(losses())
    optimizer.step()
    optimizer.zero_grad()
    for name, loss in losses().items():
        with optimizer.task(name):
            loss.backward()
    optimizer.step()
    assert list(optimizer.tasks) == equal
    assert [type(name) for name in optimizer.tasks] == [type(name) for name in equal]
    saved = read_back(optimizer.state_dict())
    again = optimize(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
    again.load_state_dict(saved)
    assert again.tasks == optimizer.tasks
    with again.task(given[0]):
        pass
    assert again.tasks == optimizer.tasks


@pytest.mark.parametrize(
    "name",
    [
        Plain.A,
        ("a", Plain.A),
        frozenset("a"),
        math.nan,
        ("a", math.nan),
        Decimal("0.1"),
        Fraction(1, 3),
        object(),
        int,
        torch.zeros(()),
        range(3),
        2**2100,
        np.datetime64("2020-01-01"),
        ["a"],
    ],
    ids=lambda name: type(name).__name__,
)
def test_a_name_that_no_checkpoint_could_hold_is_refused(name):
    parameter = nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([parameter], lr=0.1)
    with pytest.raises((TypeError, ValueError), match=r"^tasks: must ") as refusal:
        PCGrad(base, tasks=[name, "b"])
    assert "\n" not in str(refusal.value)
    optimizer = PCGrad(base)
    with pytest.raises((TypeError, ValueError), match=r"^task: must "), optimizer.task(name):
        pass
    assert optimizer.tasks == ()
    assert parameter.grad is None
    if isinstance(name, Plain):
        assert str(refusal.value).endswith("use its .name")


def test_names_that_are_equal_are_one_task():
    optimizer = LossSum(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    for name in (1, True, 1.0, np.int64(1), "1"):
        with optimizer.task(name):
            pass
    assert optimizer.tasks == (1, "1")
    with pytest.raises(ValueError, match="must name each task once"):
        LossSum(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), tasks=[1, True])


@pytest.mark.parametrize(
    "seed", [np.int64(5), np.uint8(5), Number.A, np.random.default_rng(0).integers(9)]
)
def test_a_seed_is_saved_as_an_int(seed):
    optimizer = PCGrad(
        torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
        seed=seed,
        every=np.int64(2),
        start_step=np.int64(0),
    )
    assert type(read_back(optimizer.state_dict())["gradsurgery"]["seed"]) is int
    optimizer.seed = np.int64(7)
    assert type(optimizer.seed) is int
    assert read_back(optimizer.state_dict())["gradsurgery"]["seed"] == 7


@pytest.mark.parametrize(
    "seed", [True, np.bool_(True), 1.0, np.float64(1), torch.tensor(1), "1", 2**2100]
)
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    base = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises((TypeError, ValueError), match=r"^seed: must "):
        PCGrad(base, seed=seed)
    optimizer = PCGrad(base)
    with pytest.raises((TypeError, ValueError), match=r"^seed: must "):
        optimizer.seed = seed
    assert optimizer.seed == 0


class Slower:
    """A weighting that remembers: the mean of all diagonals so far."""

    def __init__(self):
        self.num_calls, self.total = 0, None

    def __call__(self, gram):
        self.num_calls += 1
        self.total = gram.diagonal().clone() + (0 if self.total is None else self.total)
        return self.num_calls / self.total

    def state_dict(self):
        return {"num_calls": np.int64(self.num_calls), "total": self.total}

    def load_state_dict(self, state):
        self.num_calls, self.total = state["num_calls"], state["total"]


class Buffered(nn.Module):
    """The same in a buffer that is there from the start and one that is not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", None)

    def forward(self, gram):
        self.num_calls += 1
        self.total = gram.diagonal().clone() + (0 if self.total is None else self.total)
        return self.num_calls / self.total


STATEFUL = {
    "object": Slower,
    "module": Buffered,
    "nested": lambda: nn.Sequential(Buffered()),
    "gradvac": GradVacWeighting,
    "pcd": PCDWeighting,
}


def remembering_steps(parameter, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)  # TorchJD draws from the global state
        optimizer.zero_grad()
        maps = torch.randn(3, 6, 6, dtype=torch.float64)
        optimizer.backward([1e-2 * (m @ parameter - i).pow(2).sum() for i, m in enumerate(maps)])
        optimizer.step()


@pytest.mark.parametrize("weighting", STATEFUL)
@pytest.mark.parametrize("num_steps", [0, 5])
@pytest.mark.parametrize("num_before", [0, 3])  # of the optimizer that takes the state back
def test_a_weighting_resumes_exactly(weighting, num_steps, num_before):
    def build():
        parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
        base = torch.optim.SGD([parameter], lr=0.05)
        return parameter, MultiTaskOptimizer(base, STATEFUL[weighting]())

    parameter, optimizer = build()
    remembering_steps(parameter, optimizer, range(num_steps))
    state, weights = optimizer.state_dict(), parameter.detach().clone()
    copied = copy.deepcopy((parameter, optimizer))
    pickled = pickle.loads(pickle.dumps((parameter, optimizer)))
    remembering_steps(parameter, optimizer, range(num_steps, num_steps + 5))
    resumed = build()
    remembering_steps(*resumed, range(num_before))
    resumed[1].load_state_dict(read_back(state))
    resumed[0].data.copy_(weights)
    for other, stepper in (copied, pickled, resumed):
        remembering_steps(other, stepper, range(num_steps, num_steps + 5))
        assert torch.equal(other, parameter)
    fresh = build()
    fresh[0].data.copy_(weights)
    remembering_steps(*fresh, range(num_steps, num_steps + 5))
    assert torch.equal(fresh[0], parameter) == (num_steps == 0)


def test_a_checkpoint_without_a_weightings_state_loads():
    parameter = nn.Parameter(torch.ones(6, dtype=torch.float64))
    base = torch.optim.SGD([parameter], lr=0.05)
    plain = MultiTaskOptimizer(base, lambda gram: gram.new_ones(len(gram)))
    assert "weighting" not in plain.state_dict()["gradsurgery"]
    stateful = MultiTaskOptimizer(base, Slower())
    remembering_steps(parameter, stateful, range(2))
    stateful.load_state_dict(plain.state_dict())
    assert stateful.weighting.num_calls == 2
    plain.load_state_dict(stateful.state_dict())


def test_a_weightings_state_that_it_refuses_changes_nothing():
    parameter = nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = MultiTaskOptimizer(torch.optim.Adam([parameter]), Buffered())
    remembering_steps(parameter, optimizer, range(2))
    before = optimizer.state_dict()
    other = MultiTaskOptimizer(torch.optim.Adam([parameter], lr=9.0), nn.Sequential(Buffered()))
    with pytest.raises(ValueError, match=r"^state_dict: must be of an equal weighting") as refusal:
        optimizer.load_state_dict(other.state_dict())
    assert "\n" not in str(refusal.value)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    saved, kept = (s["gradsurgery"]["weighting"]["state_dict"] for s in (before, after))
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_a_state_that_no_checkpoint_could_hold_is_refused_when_the_optimizer_is_made():
    weighting = Slower()
    weighting.total = object()
    with pytest.raises(TypeError, match=r"^weighting: must "):
        MultiTaskOptimizer(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), weighting)


class ByName(nn.Module):
    """Weights by the names of the tasks."""

    def forward(self, gram, *, tasks):
        return gram.new_tensor([{"a": 1.0, "b": 2.0, "c": 3.0}[task] for task in tasks])


@pytest.mark.parametrize(
    "weighting",
    [
        ByName(),
        ByName().forward,
        lambda gram, tasks: ByName()(gram, tasks=tasks),
        functools.partial(lambda factor, gram, tasks=(): factor * ByName()(gram, tasks=tasks), 1),
    ],
    ids=["module", "method", "function", "partial"],
)
@pytest.mark.parametrize("present", ["abc", "ac", "ca", "bc"])
def test_a_weighting_that_asks_is_told_who_is_there(weighting, present):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = MultiTaskOptimizer(torch.optim.SGD([parameter], lr=0.1), weighting, tasks="abc")
    optimizer.backward({t: parameter["abc".index(t)] + 0 * parameter.sum() for t in present})
    expected = [
        float(task in present) * weight for task, weight in zip("abc", (1, 2, 3), strict=True)
    ]
    assert parameter.grad.tolist() == expected


@pytest.mark.parametrize(
    "weighting",
    [
        ConstantWeighting(torch.tensor([1.0, 2.0, 3.0])),
        lambda gram: gram @ gram.new_ones(3),
        lambda gram: torch.ones(3),
        lambda gram: gram[[0, 1, 2]].sum(-1),
    ],
)
def test_a_weighting_for_all_tasks_is_told_which_is_absent(weighting):
    parameter = nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([parameter], lr=0.1)
    optimizer = MultiTaskOptimizer(base, weighting, tasks="abc")
    with pytest.raises(ValueError, match=r"^weighting: must .*\['b'\]") as refusal:
        optimizer.backward({"a": parameter.sum(), "c": 2 * parameter.sum()})
    assert "\n" not in str(refusal.value)
    assert parameter.grad is None
    optimizer.backward([parameter.sum() for _ in "abc"])


def test_the_error_of_a_weighting_is_its_own_where_no_task_is_absent():
    parameter = nn.Parameter(torch.ones(2))
    wrong = ConstantWeighting(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = MultiTaskOptimizer(torch.optim.SGD([parameter], lr=0.1), wrong)
    with pytest.raises(ValueError, match="should have 3 rows"):
        optimizer.backward([parameter.sum(), parameter.sum()])


def test_an_absent_task_leaves_the_others_to_each_other():
    network = Network()
    optimizer = PCGrad(sgd(network), tasks=TASKS, warn=False)
    for step, present in enumerate([("a", "c"), TASKS, ("c", "b"), ("b",), ("b", "a"), TASKS]):
        rows = task_gradients(network, step, sorted(present))
        plain = plain_gradients(network, step, present)
        order = projection_order(len(present), 0, step)
        update, _ = oracle.pcgrad(rows, order)
        run_blocks(network, optimizer, step, present)
        optimizer.step()
        assert_close(written(network.shared()), update, 1e-12)
        for parameter in network.separate():
            if plain[parameter] is None:
                assert parameter.grad is None
            else:
                assert torch.equal(parameter.grad, plain[parameter])


def test_lbfgs_minimises_with_the_combined_gradient():
    network, twin = Network(), Network()
    tasks = TASKS[:2]
    options = {"lr": 0.1, "max_iter": 4, "history_size": 3}
    optimizer = PCGrad(torch.optim.LBFGS(network.parameters(), **options))
    bare = torch.optim.LBFGS(twin.parameters(), **options)
    for step in range(4):

        def closure(step=step):
            run_blocks(network, optimizer, step, tasks)
            return sum(network.loss(task, step) for task in tasks).detach()

        def by_hand(step=step):
            for parameter, grad in plain_gradients(twin, step, tasks).items():
                parameter.grad = grad
            rows = task_gradients(twin, step, tasks)
            write(twin.shared(), oracle.pcgrad(rows, [[1], [0]])[0])
            return sum(twin.loss(task, step) for task in tasks).detach()

        assert float(optimizer.step(closure)) == pytest.approx(float(bare.step(by_hand)), rel=1e-6)
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-8)


# Surgery in every k-th step


@pytest.mark.parametrize("short", [False, True], ids=["blocks", "backward"])
@pytest.mark.parametrize(("every", "start_step"), [(1, 0), (3, 0), (3, 2), (1, 3), (4, 1)])
def test_every_and_start_step(every, start_step, short):
    network = Network()
    optimizer = PCGrad(sgd(network), tasks=TASKS, every=every, start_step=start_step)
    last = None
    num_projected = 0
    for step in range(12):
        rows = task_gradients(network, step)
        plain = plain_gradients(network, step)
        if step < start_step:
            weights = np.ones(3)
        elif (step - start_step) % every == 0:
            _, last = oracle.pcgrad(rows, projection_order(3, 0, step))
            weights = last
        else:
            weights = last
        num_projected += weights.max() > 1
        if short:
            optimizer.zero_grad()
            optimizer.backward({task: network.loss(task, step) for task in TASKS})
        else:
            run_blocks(network, optimizer, step)
        optimizer.step()
        assert_close(written(network.shared()), weights @ rows, 1e-12)
        for parameter in network.separate():
            torch.testing.assert_close(parameter.grad, plain[parameter], rtol=1e-12, atol=0)
        if last is None:
            assert optimizer.diagnostics.tasks == ()
        else:
            np.testing.assert_allclose(optimizer.diagnostics.weights, last, rtol=1e-9)
    assert num_projected > 3


def test_reused_weights_honour_the_reduction_and_the_scope():
    for reduction, scope in itertools.product(("sum", "mean"), ("shared", "all")):
        network = Network()
        optimizer = PCGrad(
            sgd(network), tasks=TASKS, every=2, reduction=reduction, scope=scope, seed=4
        )
        everything = [*network.shared(), *network.separate()]
        for step in range(4):
            rows = task_gradients(network, step, of=everything)
            num_shared = sum(parameter.numel() for parameter in network.shared())
            if step % 2 == 0:
                seen = rows if scope == "all" else rows[:, :num_shared]
                _, weights = oracle.pcgrad(seen, projection_order(3, 4, step))
            run_blocks(network, optimizer, step)
            optimizer.step()
            expected = weights @ rows
            if scope == "shared":
                expected[num_shared:] = rows.sum(0)[num_shared:]
            if reduction == "mean":
                expected[:num_shared] /= 3
            assert_close(written(everything), expected, 1e-12)


# Sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("monitor", [False, True])
def test_loss_sum_is_the_plain_backward_bit_for_bit(dtype, monitor):
    network = Network(dtype)
    optimizer = LossSum(sgd(network), monitor=monitor)
    for step in range(10):
        expected = plain_gradients(network, step)
        run_blocks(network, optimizer, step)
        optimizer.surgery()
        for parameter, grad in expected.items():
            assert torch.equal(parameter.grad, grad)
        optimizer.step()


def test_loss_sum_in_one_call_is_the_backward_of_the_sum_bit_for_bit():
    network, twin = Network(torch.float32), Network(torch.float32)
    optimizer, base = LossSum(sgd(network)), sgd(twin)
    for step in range(10):
        optimizer.zero_grad()
        inputs = network.inputs("a", step)
        optimizer.backward([network.loss(task, step, inputs) for task in TASKS])
        base.zero_grad()
        sum(twin.loss(task, step, inputs) for task in TASKS).backward()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad)
        optimizer.step()
        base.step()


@pytest.mark.parametrize("optimize", [LossSum, lambda base: WeightedSum(base, [1.0, 0.5, 2.0])])
def test_a_sum_of_losses_that_share_a_graph_goes_through_it_once(optimize):
    network = Network()
    optimizer = optimize(sgd(network))
    num_passes = Counter()
    inputs = network.inputs("a", 0)
    hidden = network.trunk(inputs)
    hidden.register_hook(lambda grad: num_passes.update(["trunk"]))
    optimizer.backward([network.heads[task](hidden).square().mean() for task in TASKS])
    assert num_passes["trunk"] == 1


@pytest.mark.parametrize("monitor", [False, True])
@pytest.mark.parametrize("short", [False, True], ids=["blocks", "backward"])
def test_weighted_sum_is_the_backward_of_the_weighted_losses(monitor, short):
    weights = {"a": 0.3, "b": 0.0, "c": 1.7}
    network = Network()
    optimizer = WeightedSum(sgd(network), weights, monitor=monitor)
    for step in range(6):
        expected = plain_gradients(network, step, weights=weights)
        if short:
            optimizer.zero_grad()
            optimizer.backward([network.loss(task, step) for task in TASKS])
        else:
            run_blocks(network, optimizer, step)
        optimizer.surgery()
        for parameter, grad in expected.items():
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-13, atol=1e-15)
        optimizer.step()


@pytest.mark.parametrize(
    "wrapper", [LossSum, lambda base, **o: WeightedSum(base, [0.3, 1, 2], **o)]
)
def test_a_monitor_does_not_change_the_update(wrapper):
    # Blocks of several backwards apart: there a monitor must add up the block before the rest.
    network, twin = Network(torch.float32), Network(torch.float32)
    monitored = wrapper(sgd(network, momentum=0.9), tasks=TASKS, monitor=True)
    plain = wrapper(sgd(twin, momentum=0.9), tasks=TASKS)
    for step in range(20):
        for model, optimizer in ((network, monitored), (twin, plain)):
            run_blocks(model, optimizer, step, (*TASKS, "b", "a"))
            optimizer.step()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad)
            assert torch.equal(parameter, other)
    rows = task_gradients(network, 20)
    run_blocks(network, monitored, 20)
    monitored.step()
    np.testing.assert_allclose(
        monitored.diagnostics.gram, rows @ rows.T, rtol=0, atol=1e-5 * (rows**2).sum(1).max()
    )


# Other functions of the Gram matrix


@pytest.mark.parametrize(
    ("weighting", "aggregator"),
    [(MGDAWeighting, MGDA), (IMTLGWeighting, IMTLG), (AlignedMTLWeighting, AlignedMTL)],
)
def test_torchjd_weightings_plug_in(weighting, aggregator):
    network = Network()
    optimizer = MultiTaskOptimizer(sgd(network), weighting())
    for step in range(10):
        rows = torch.from_numpy(task_gradients(network, step))
        plain = plain_gradients(network, step)
        run_blocks(network, optimizer, step)
        optimizer.step()
        assert_close(written(network.shared()), aggregator()(rows).numpy(), 1e-9)
        for parameter in network.separate():
            assert torch.equal(parameter.grad, plain[parameter])


def test_a_weighting_sees_the_gram_matrix_of_the_tasks_in_their_order():
    seen = []

    def weighting(gram):
        seen.append(gram.clone())
        return torch.tensor([1.0, 2.0, 3.0])

    network = Network()
    optimizer = MultiTaskOptimizer(sgd(network), weighting, tasks=TASKS)
    for step in range(4):
        rows = task_gradients(network, step)
        run_blocks(network, optimizer, step, ("b", "c", "a"))
        optimizer.step()
        assert len(seen) == step + 1
        np.testing.assert_allclose(seen[-1], rows @ rows.T, rtol=1e-12)
        assert_close(written(network.shared()), np.array([1.0, 2.0, 3.0]) @ rows, 1e-12)


# The short form

OPTIMIZERS = {
    "loss-sum": lambda network, **options: LossSum(sgd(network), **options),
    "weighted-sum": lambda network, **options: WeightedSum(sgd(network), [0.3, 1, 2], **options),
    "pcgrad": lambda network, **options: PCGrad(sgd(network), **options),
    "pcgrad-every-2": lambda network, **options: PCGrad(sgd(network), every=2, **options),
    "custom": lambda network, **options: MultiTaskOptimizer(
        sgd(network), lambda gram: 1 / gram.diagonal().sqrt(), **options
    ),
}


@pytest.mark.parametrize("optimize", OPTIMIZERS)
@pytest.mark.parametrize("declared", [False, True], ids=["numbered", "declared"])
@pytest.mark.parametrize(
    ("form", "shared_graph"),
    # A generator's graphs are freed one by one: its losses cannot share one.
    [(form, False) for form in ("sequence", "tuple", "mapping", "generator", "pairs")]
    + [(form, True) for form in ("sequence", "tuple", "mapping")],
)
def test_backward_equals_blocks(optimize, declared, form, shared_graph):
    network, twin = Network(), Network()
    if declared:
        names, options = TASKS, {"tasks": TASKS}
    else:
        names, options = (0, 1, 2), {}
    optimizer = OPTIMIZERS[optimize](network, **options)
    by_blocks = OPTIMIZERS[optimize](twin, **options)
    for step in range(4):
        shared_inputs = network.inputs("b", step) if shared_graph else None
        losses = (network.loss(task, step, shared_inputs) for task in TASKS)
        if shared_graph:
            hidden = network.trunk(shared_inputs)
            losses = (network.heads[task](hidden).square().mean() for task in TASKS)
        optimizer.zero_grad()
        if form == "sequence":
            optimizer.backward(list(losses))
        elif form == "tuple":
            optimizer.backward(tuple(losses))
        elif form == "mapping":
            optimizer.backward(dict(zip(names, losses, strict=True)))
        elif form == "generator":
            optimizer.backward(losses)
        else:
            optimizer.backward(zip(names, losses, strict=True))
        by_blocks.zero_grad()
        for name, task in zip(names, TASKS, strict=True):
            with by_blocks.task(name):
                if shared_graph:
                    hidden = twin.trunk(shared_inputs)
                    twin.heads[task](hidden).square().mean().backward()
                else:
                    twin.loss(task, step).backward()
        by_blocks.surgery()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-14)
        optimizer.step()
        by_blocks.step()
    if optimize.startswith("pcgrad"):
        assert optimizer.diagnostics.tasks == names


def test_backward_writes_the_gradient_before_it_returns_and_step_keeps_it():
    network, twin = Network(), Network()
    optimizer, bare = PCGrad(sgd(network)), sgd(twin)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward([network.loss(task, step) for task in TASKS])
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        assert math.isclose(np.linalg.norm(written(network.parameters())), 0.1, rel_tol=1e-5)
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            other.grad = parameter.grad.clone()
        optimizer.step()
        bare.step()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(parameter, other)


@pytest.mark.parametrize("clears", [False, True], ids=["never cleared", "cleared"])
def test_pc_backward_overwrites_as_pytorch_optimizer_does(clears):
    tasks = TASKS[:2]
    network, twin = Network(tasks=tasks), Network(tasks=tasks)
    for model in (network, twin):
        model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = PCGrad(sgd(network, momentum=0.9), scope="all", reduction="mean")
    older = OlderPCGrad(sgd(twin, momentum=0.9), reduction="mean")
    for step in range(4):
        for model, stepper in ((network, optimizer), (twin, older)):
            if clears:
                stepper.zero_grad()
            elif step == 1:
                # Whatever was there before, of the trainer or of a block, is gone.
                model.unused.sum().backward()
            stepper.pc_backward([model.loss(task, step) for task in tasks])
            stepper.step()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-12)
        assert network.unused.grad is None


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_pc_backward_replaces_what_blocks_kept_apart(optimize):
    network, twin = Network(), Network()
    optimizer, fresh = OPTIMIZERS[optimize](network), OPTIMIZERS[optimize](twin)
    for step in range(3):
        with optimizer.task(0):
            (1e3 * network.loss("b", 77)).backward()
        optimizer.pc_backward([network.loss(task, step) for task in TASKS])
        fresh.zero_grad()
        fresh.backward([twin.loss(task, step) for task in TASKS])
        for stepper in (optimizer, fresh):
            stepper.step()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fails", ["in a loss", "in surgery"])
def test_pc_backward_that_fails_leaves_every_gradient(fails):
    network, twin = Network(), Network()
    weights = []

    def weighting(gram):
        return torch.ones(len(gram) + (len(weights) == 1), dtype=gram.dtype)

    optimizer, other = (MultiTaskOptimizer(sgd(each), weighting) for each in (network, twin))
    for model, stepper in ((network, optimizer), (twin, other)):
        model.trunk[0].weight.square().sum().backward()
        with stepper.task(0):
            model.loss("a", 3).backward()
    weights.append(None)
    losses = [network.loss(task, 4) for task in TASKS]
    if fails == "in a loss":
        losses[2] = losses[2].detach()
    with pytest.raises(ValueError, match=r"losses|weighting"):
        optimizer.pc_backward(losses)
    weights.append(None)
    for model, stepper in ((network, optimizer), (twin, other)):
        assert stepper.tasks == (0,)
        stepper.backward({1: model.loss("b", 5)})
        stepper.step()
    for parameter, mirrored in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, mirrored)


def test_a_second_backward_adds_to_the_first():
    # Micro-batches of a step, each with its own surgery: nothing of the first may be lost.
    network = Network()
    for num_before in (0, 2):
        optimizer = PCGrad(sgd(network), tasks=TASKS)
        for step in range(num_before):
            run_blocks(network, optimizer, step)
            optimizer.step()
        order = projection_order(3, 0, num_before)
        expected = sum(oracle.pcgrad(task_gradients(network, part), order)[0] for part in (50, 51))
        optimizer.zero_grad()
        for part in (50, 51):
            optimizer.backward([network.loss(task, part) for task in TASKS])
        assert_close(written(network.shared()), expected, 1e-12)


@pytest.mark.parametrize("form", ["sequence", "mapping"])
def test_retain_graph_may_keep_the_last_graph_too(form):
    network = Network()
    optimizer = PCGrad(sgd(network))
    losses = [network.loss(task, 0) for task in TASKS]
    given = losses if form == "sequence" else dict(zip(TASKS, losses, strict=True))
    optimizer.backward(given, retain_graph=True)
    first = written(network.shared())
    optimizer.zero_grad()
    optimizer.backward(given)
    assert np.array_equal(written(network.shared()), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        optimizer.backward(given)


class Saved:
    """Holds a tensor for a backward; alive exactly as long as the graph that asked for it."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_a_generator_keeps_one_graph_alive_at_a_time(optimize):
    network = Network()
    optimizer = OPTIMIZERS[optimize](network)
    graphs = {task: weakref.WeakSet() for task in TASKS}

    def loss(task, step):
        def save(tensor):
            saved = Saved(tensor)
            graphs[task].add(saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
            return network.loss(task, step)

    def losses(step):
        for place, task in enumerate(TASKS):
            assert not any(graphs[before] for before in TASKS[:place])
            yield loss(task, step)
            assert not graphs[task]

    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward(losses(step))
        assert not any(graphs.values())
        optimizer.step()
    kept = loss("a", 0)
    assert graphs["a"]
    assert kept.requires_grad


# Losses that were one tensor, and parameters that are declared shared


def assigned(losses):
    """As LibMTL gathers its losses."""
    gathered = losses[0].new_zeros(len(losses))
    for place, loss in enumerate(losses):
        gathered[place] = loss
    return gathered


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
STACKED = {  # the losses to give, and the same ones computed apart
    "tensor": (torch.stack, list),
    "unbind": (lambda losses: torch.stack(losses).unbind(), list),
    "list": (lambda losses: list(torch.stack(losses)), list),
    "index": (lambda losses: [torch.stack(losses)[i] for i in range(3)], list),
    "index tensor": (lambda losses: torch.stack(losses)[torch.arange(3)], list),
    "slices": (lambda losses: [torch.stack(losses)[i : i + 1] for i in range(3)], list),
    "split": (lambda losses: torch.stack(losses).split(1), list),
    "flip": (lambda losses: torch.stack(losses).flip(0), lambda losses: losses[::-1]),
    "reshape": (lambda losses: torch.stack(losses).view(1, 3).T.squeeze(1), list),
    "cat": (lambda losses: torch.cat([loss.view(1) for loss in losses]), list),
    "hstack": (lambda losses: torch.hstack(losses).unbind(), list),
    "nested": (
        lambda losses: torch.stack([*torch.stack(losses[:2]).unbind(), losses[2]]).unbind(),
        list,
    ),
    "assigned": (lambda losses: assigned(losses).unbind(), list),
    "weighted": (
        lambda losses: (WEIGHTS * torch.stack(losses)).unbind(),
        lambda losses: [weight * loss for weight, loss in zip(WEIGHTS, losses, strict=True)],
    ),
    "logarithm": (
        lambda losses: (torch.stack(losses) + 1).log().square() / 2,
        lambda losses: [(loss + 1).log().square() / 2 for loss in losses],
    ),
    "mixed": (
        lambda losses: (lambda s: [s[0] + s[1], 2 * s[1], s[2]])(torch.stack(losses)),
        lambda losses: [losses[0] + losses[1], 2 * losses[1], losses[2]],
    ),
}


def assert_equal_grads(network, twin, tolerance=1e-12):
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimize", OPTIMIZERS)
@pytest.mark.parametrize("form", STACKED)
def test_stacked_losses_are_the_losses_apart(optimize, form):
    network, twin = Network(), Network()
    optimizer, other = OPTIMIZERS[optimize](network), OPTIMIZERS[optimize](twin)
    together, apart = STACKED[form]
    for step in range(3):
        for model, stepper, arrange in ((network, optimizer, together), (twin, other, apart)):
            # One forward for all tasks: a trunk's graph is shared as well.
            hidden = model.trunk(model.inputs("b", step))
            losses = [
                (model.heads[task](hidden) - target).square().mean()
                for task, target in zip(TASKS, (3, -2, 0.5), strict=True)
            ]
            stepper.zero_grad()
            stepper.backward(arrange(losses))
        assert_equal_grads(network, twin)
        optimizer.step()
        other.step()


@pytest.mark.parametrize("retain_graph", [None, True])
@pytest.mark.parametrize("form", ["unbind", "weighted"])
def test_stacked_losses_free_their_graph_as_those_apart_do(form, retain_graph):
    network, twin = Network(), Network()
    optimizer, other = PCGrad(sgd(network)), PCGrad(sgd(twin))
    together, apart = STACKED[form]
    given = together([network.loss(task, 0) for task in TASKS])
    optimizer.backward(given, retain_graph=retain_graph)
    if retain_graph is None:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            optimizer.backward(given)
    else:
        optimizer.zero_grad()
        optimizer.backward(given)
        other.backward(apart([twin.loss(task, 0) for task in TASKS]))
        assert_equal_grads(network, twin)


CONCATENATED = {  # losses of outputs [B, T] that were put together from heads [B, 1]
    "columns": lambda outputs, targets: [
        (outputs[:, place] - targets[place]).square().mean() for place in range(3)
    ],
    "mean of each column": lambda outputs, targets: (outputs - targets).square().mean(0),
    "torch's loss": lambda outputs, targets: nn.functional.mse_loss(
        outputs, targets.expand_as(outputs), reduction="none"
    ).mean(0),
}


@pytest.mark.parametrize("form", CONCATENATED)
@pytest.mark.parametrize("join", [lambda o: torch.cat(o, 1), lambda o: torch.stack(o, 1)[..., 0]])
def test_columns_of_concatenated_heads_are_the_heads_apart(form, join):
    network, twin = Network(), Network()
    optimizer, other = PCGrad(sgd(network)), PCGrad(sgd(twin))
    targets = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
    outputs = [network.heads[task](network.trunk(network.inputs("a", 0))) for task in TASKS]
    optimizer.backward(CONCATENATED[form](join(outputs), targets))
    hidden = twin.trunk(twin.inputs("a", 0))
    other.backward(
        [
            (twin.heads[task](hidden) - target).square().mean()
            for task, target in zip(TASKS, targets, strict=True)
        ]
    )
    assert other.diagnostics.conflicts.any()
    assert_equal_grads(network, twin)


def test_stacked_losses_with_a_penalty_on_the_trunk_count_it_once():
    network, twin = Network(), Network()
    optimizer, other = PCGrad(sgd(network)), PCGrad(sgd(twin))
    stacked = torch.stack([network.loss(task, 0) for task in TASKS])
    optimizer.backward([loss + network.trunk[0].weight.square().sum() for loss in stacked])
    other.backward([twin.loss(t, 0) + twin.trunk[0].weight.square().sum() for t in TASKS])
    assert_equal_grads(network, twin)


def test_learned_weights_of_stacked_losses_are_shared_and_the_heads_are_not():
    # Kendall et al. 2018: every task reaches the vector of log variances, with zeros elsewhere.
    network = Network()
    network.log_variances = nn.Parameter(torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))
    optimizer = PCGrad(sgd(network))
    stacked = torch.stack([network.loss(task, 0) for task in TASKS])
    rows = torch.exp(-network.log_variances.detach())[:, None] * torch.from_numpy(
        task_gradients(network, 0)
    )
    of_variances = torch.diag(1 - torch.exp(-network.log_variances) * stacked).detach()
    update, _ = oracle.pcgrad(torch.cat([rows, of_variances], 1).numpy(), projection_order(3, 0, 0))
    plain = plain_gradients(network, 0)
    s = network.log_variances
    optimizer.backward((torch.exp(-s) * stacked + s).unbind())
    assert_close(written([*network.shared(), s]), update, 1e-12)
    for place, task in enumerate(TASKS):
        for parameter in network.heads[task].parameters():
            expected = plain[parameter] * torch.exp(-s[place]).detach()
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-14)


def test_one_layer_for_all_tasks_stays_shared():
    layer = nn.Linear(4, 3).double()
    inputs = torch.randn(8, 4, dtype=torch.float64)
    rows = []
    for place in range(3):
        grads = torch.autograd.grad(layer(inputs).square().mean(0)[place], layer.parameters())
        rows.append(flat(grads))
    update, _ = oracle.pcgrad(np.stack(rows), projection_order(3, 0, 0))
    optimizer = PCGrad(torch.optim.SGD(layer.parameters(), lr=0.1))
    optimizer.backward(layer(inputs).square().mean(0))
    assert_close(written(layer.parameters()), update, 1e-12)


@pytest.mark.parametrize(
    "collect",
    [
        lambda losses: losses.values(),
        lambda losses: losses.items(),
        lambda losses: deque(losses.values()),
        lambda losses: tuple(losses.values()),
    ],
    ids=["values", "items", "deque", "tuple"],
)
def test_any_collection_in_order_is_a_list_of_losses(collect):
    network, twin = Network(), Network()
    optimizer, other = PCGrad(sgd(network), tasks=TASKS), PCGrad(sgd(twin), tasks=TASKS)
    optimizer.backward(collect({task: network.loss(task, 0) for task in TASKS}))
    other.backward([twin.loss(task, 0) for task in TASKS])
    assert_equal_grads(network, twin, 0)


REFUSED_LOSSES = {
    "separate": (lambda o, a, b: o.backward(a, b), r"\[loss_a, loss_b\]"),
    "three separate": (lambda o, a, b: o.backward(a, b, a), r"\[loss_a, loss_b\]"),
    "separate to pc_backward": (lambda o, a, b: o.pc_backward(a, b), r"\[loss_a, loss_b\]"),
    "sum": (lambda o, a, b: o.backward(a + b), "before they were summed"),
    "stack in a list": (lambda o, a, b: o.backward([torch.stack([a, b])]), "before torch.stack"),
    "sum of a stack": (
        lambda o, a, b: o.backward([torch.stack([a, b]).sum()]),
        "before torch.stack",
    ),
    "matrix": (lambda o, a, b: o.backward(torch.stack([a, b])[None]), "before they were"),
    "set": (lambda o, a, b: o.backward({a, b}), "in the order of the tasks"),
    "number": (lambda o, a, b: o.backward(3.0), "in a list"),
    "constant": (
        lambda o, a, b: o.backward({"a": a, "b": torch.zeros(())}),
        "mapping without the task",
    ),
    "constant of a stack": (
        lambda o, a, b: o.backward(torch.stack([a, torch.zeros_like(a).detach()])),
        "mapping without the task",
    ),
}


@pytest.mark.parametrize("call", REFUSED_LOSSES)
def test_losses_that_are_not_one_for_each_task_are_refused_with_the_way_to_give_them(call):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.1))
    give, remedy = REFUSED_LOSSES[call]
    with pytest.raises((TypeError, ValueError), match=remedy) as refusal:
        give(optimizer, parameter.sum(), -parameter.square().sum())
    assert "\n" not in str(refusal.value)
    assert optimizer.tasks == ()
    assert parameter.grad is None


def test_a_mapping_may_hold_one_loss_that_is_a_sum_of_a_stack():
    network, twin = Network(), Network()
    optimizer, other = PCGrad(sgd(network)), PCGrad(sgd(twin))
    optimizer.backward({"a": torch.stack([network.loss("a", 0), network.loss("a", 1)]).sum()})
    other.backward({"a": twin.loss("a", 0) + twin.loss("a", 1)})
    assert_equal_grads(network, twin)


def test_blocks_of_one_forward_are_told_to_use_backward():
    network = Network()
    optimizer = PCGrad(sgd(network))
    hidden = network.trunk(network.inputs("a", 0))
    with optimizer.task("a"):
        network.heads["a"](hidden).mean().backward()
    with (
        pytest.raises(RuntimeError, match=r"task 'b'.*optimizer\.backward\(\[") as refusal,
        optimizer.task("b"),
    ):
        network.heads["b"](hidden).mean().backward()
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_base_that_differentiates_gradients_is_told_that_it_cannot():
    for closure in (False, True):
        parameter = nn.Parameter(torch.tensor([0.5, 0.3]))
        optimizer = PCGrad(load_optimizer("adahessian")([parameter], lr=0.01))

        def evaluate(parameter=parameter, optimizer=optimizer):
            for name, loss in (("a", parameter.pow(3).sum()), ("b", -parameter.sum())):
                with optimizer.task(name):
                    torch.autograd.backward(loss, create_graph=True)

        if not closure:
            evaluate()
        with pytest.raises(ValueError, match=r"base: must be .* AdaHessian") as refusal:
            optimizer.step(evaluate if closure else None)
        assert "\n" not in str(refusal.value)


def test_a_gradient_of_a_gradient_may_be_part_of_a_task():
    parameter = nn.Parameter(torch.tensor([0.5, 0.3], dtype=torch.float64))
    optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.1), warn=False)
    with optimizer.task("a"):
        (grad,) = torch.autograd.grad(parameter.pow(3).sum(), parameter, create_graph=True)
        (parameter.sum() + grad.square().sum()).backward()
    optimizer.step()
    assert_close(
        written([parameter]), flat([1 + 36 * parameter.new_tensor([0.5, 0.3]) ** 3]), 1e-12
    )


def concatenated_blocks(network, optimizer, step):
    """Blocks in which autograd sends zeros to the other tasks' heads."""
    optimizer.zero_grad()
    for place, task in enumerate(TASKS):
        with optimizer.task(task):
            hidden = network.trunk(network.inputs(task, step))
            outputs = torch.cat([network.heads[each](hidden) for each in TASKS], 1)
            (outputs[:, place] - place).square().mean().backward()


def separate_blocks(network, optimizer, step):
    """The same losses, each through its own head alone."""
    optimizer.zero_grad()
    for place, task in enumerate(TASKS):
        with optimizer.task(task):
            hidden = network.trunk(network.inputs(task, step))
            (network.heads[task](hidden)[:, 0] - place).square().mean().backward()


DECLARED = {
    "module": lambda network: network.trunk,
    "modules": lambda network: [network.trunk[0], network.trunk[2]],
    "parameters": lambda network: network.trunk.parameters(),
    "modules and a parameter": lambda network: (
        network.trunk[0],
        *network.trunk[2].parameters(),
    ),
}
MONITORED = {
    **OPTIMIZERS,
    "mean": lambda network, **options: PCGrad(sgd(network), reduction="mean", **options),
    "tensor": lambda network, **options: PCGrad(sgd(network), granularity="tensor", **options),
    "monitor": lambda network, **options: LossSum(sgd(network), monitor=True, **options),
}


@pytest.mark.parametrize("optimize", MONITORED)
@pytest.mark.parametrize("form", DECLARED)
def test_declared_shared_parameters_leave_the_others_their_plain_gradient(optimize, form):
    network, twin = Network(), Network()
    optimizer = MONITORED[optimize](network, tasks=TASKS, shared=DECLARED[form](network))
    other = MONITORED[optimize](twin, tasks=TASKS)
    for step in range(4):
        concatenated_blocks(network, optimizer, step)
        separate_blocks(twin, other, step)
        optimizer.surgery()
        other.surgery()
        for parameter, mirrored in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, mirrored.grad, rtol=1e-12, atol=1e-14)
        optimizer.step()
        other.step()
        if other.diagnostics.num_surgeries:
            torch.testing.assert_close(optimizer.diagnostics.cosines, other.diagnostics.cosines)


def test_declared_shared_parameters_are_the_only_ones_with_rows():
    network = Network()
    optimizer = PCGrad(sgd(network), shared=network.trunk)
    for step in range(3):
        concatenated_blocks(network, optimizer, step)
        optimizer.step()
    num_numbers = sum(parameter.numel() for parameter in network.shared())
    assert optimizer._step.buffer.num_bytes == 3 * 8 * num_numbers


def test_a_task_that_reaches_no_declared_parameter_is_a_task_all_the_same():
    network, twin = Network(), Network()
    optimizer = PCGrad(sgd(network), reduction="mean", shared=network.trunk)
    other = PCGrad(sgd(twin), reduction="mean")
    for model, stepper in ((network, optimizer), (twin, other)):
        for task in TASKS:
            with stepper.task(task):
                if task == "c":
                    model.heads["c"](torch.ones(2, 6, dtype=torch.float64)).mean().backward()
                else:
                    model.loss(task, 0).backward()
        stepper.surgery()
    assert_equal_grads(network, twin)
    for task in TASKS[:2]:  # nothing declared is reached by anybody
        with optimizer.task(task):
            network.heads[task](torch.ones(2, 6, dtype=torch.float64)).mean().backward()
    optimizer.step()
    assert optimizer.diagnostics.num_surgeries == 1


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_declares_its_own_parameters_shared(copied):
    network = Network()
    optimizer = PCGrad(sgd(network), shared=network.trunk)
    concatenated_blocks(network, optimizer, 0)
    optimizer.step()
    clone, mirror = copied((optimizer, network))
    for step in range(1, 4):
        for model, stepper in ((network, optimizer), (mirror, clone)):
            concatenated_blocks(model, stepper, step)
            stepper.step()
        assert_equal_grads(mirror, network, 0)
    assert clone.shared == set(mirror.trunk.parameters())


@pytest.mark.parametrize(
    ("found", "kind", "rule"),
    [
        (lambda network: nn.Linear(1, 1), ValueError, "parameters of base"),
        (lambda network: [], ValueError, "at least one"),
        (lambda network: "trunk", TypeError, "parameters or modules, got str"),
        (lambda network: 3, TypeError, "parameters or modules, got int"),
        (lambda network: network.trunk.named_parameters(), TypeError, "got tuple"),
    ],
)
def test_what_cannot_be_shared_is_refused(found, kind, rule):
    network = Network()
    with pytest.raises(kind, match=f"shared: .*{rule}"):
        PCGrad(sgd(network), shared=found(network))
    with pytest.raises(ValueError, match='shared: must be left out where scope="all"'):
        PCGrad(sgd(network), shared=network.trunk, scope="all")


def test_a_frozen_parameter_may_be_declared_before_it_is_added():
    network, twin = Network(), Network()
    for model in (network, twin):
        model.trunk[0].requires_grad_(False)
    optimizers = []
    for model, options in ((network, {"shared": network.trunk}), (twin, {})):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizers.append(PCGrad(torch.optim.SGD(trained, lr=0.1), **options))
        model.trunk[0].requires_grad_(True)
        optimizers[-1].add_param_group({"params": list(model.trunk[0].parameters())})
    concatenated_blocks(network, optimizers[0], 0)
    separate_blocks(twin, optimizers[1], 0)
    for optimizer in optimizers:
        optimizer.surgery()
    assert_equal_grads(network, twin)


# Which parameters are shared, and how they lie in memory

LAYOUTS = {
    "scalar": lambda: torch.zeros(()),
    "vector": lambda: torch.zeros(5),
    "matrix": lambda: torch.zeros(3, 4),
    "transposed": lambda: torch.zeros(4, 3).T,
    "strided": lambda: torch.zeros(4, 6)[:, ::2],
    "channels-last": lambda: torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "empty": lambda: torch.zeros(0, 3),
    "one of a size": lambda: torch.zeros(1, 7, 1),
    "long": lambda: torch.zeros(129),
}
ROUNDING = {torch.float64: 2.0**-50, torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("dtypes", ["float64", "float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("seed", range(3))
def test_any_set_of_shared_parameters_in_any_layout(reduction, scope, dtypes, seed):
    """Random steps: who is present, who reaches what, what is frozen, in which order, how often.

    Losses are linear with small whole coefficients: the tasks' gradients are exact in every type.
    """
    kinds = [torch.float64, torch.float32, torch.bfloat16]
    if dtypes != "mixed":
        kinds = [getattr(torch, dtypes)]
    rng = np.random.default_rng(seed)
    parameters = {
        name: nn.Parameter(make().to(kinds[place % len(kinds)]))
        for place, (name, make) in enumerate(LAYOUTS.items())
    }
    names = ("a", "b", "c", "d")
    optimizer = PCGrad(
        torch.optim.SGD(parameters.values(), lr=0.0),
        tasks=names,
        reduction=reduction,
        scope=scope,
        seed=seed,
        warn=False,  # of steps with one task
    )
    ever = set()
    for step in range(25):
        keep_memory = bool(rng.integers(2))
        optimizer.zero_grad(set_to_none=not keep_memory)
        ever = {name for name in ever if keep_memory}
        present = sorted(rng.permutation(4)[: rng.integers(1, 5)].tolist())
        for parameter in parameters.values():
            parameter.requires_grad_(bool(rng.random() < 0.9))
        live = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if len(live) < 2:
            parameters["vector"].requires_grad_(True)
            live = ["vector"]
        expected_rows = {task: {} for task in present}
        blocks = [task for task in present for _ in range(rng.integers(1, 3))]
        rng.shuffle(blocks)
        for task in blocks:
            reached = [name for name in live if rng.random() < 0.6] or live[:1]
            loss = torch.zeros((), dtype=torch.float64)
            for name in reached:
                parameter = parameters[name]
                coefficients = torch.from_numpy(rng.integers(-3, 4, parameter.shape).astype(float))
                row = expected_rows[task].setdefault(name, np.zeros(parameter.shape))
                row += coefficients.numpy()
                loss = loss + (parameter * coefficients.to(parameter.dtype)).sum()
            with optimizer.task(names[task]):
                loss.backward()
        outside = None
        if rng.integers(3) == 0:
            outside = live[rng.integers(len(live))]
            parameters[outside].sum().backward()
        optimizer.step()

        touched = {
            name: [task for task in present if name in expected_rows[task]] for name in parameters
        }
        seen = [
            name for name, tasks in touched.items() if len(tasks) > 1 or (scope == "all" and tasks)
        ]
        rows = np.stack(
            [
                np.concatenate(
                    [
                        expected_rows[task].get(name, np.zeros(parameters[name].shape)).reshape(-1)
                        for name in seen
                    ]
                    or [np.zeros(0)]
                )
                for task in present
            ]
        )
        order = projection_order(len(present), seed, step)
        _, weights = oracle.pcgrad(rows, order)
        np.testing.assert_allclose(optimizer.diagnostics.gram, rows @ rows.T, atol=1e-9)
        largest = max(1.0, float(np.abs(weights).max())) * 6
        for name, parameter in parameters.items():
            tasks = touched[name]
            if not tasks and name != outside:
                assert parameter.grad is None or (name in ever and not parameter.grad.any())
                continue
            total = np.zeros(parameter.shape)
            for task in tasks:
                in_scope = len(tasks) > 1 or scope == "all"
                weight = weights[present.index(task)] if in_scope else 1.0
                total += weight * expected_rows[task][name]
            if reduction == "mean" and len(tasks) > 1:
                total /= len(present)
            if name == outside:
                total += 1.0
            assert parameter.grad.dtype == parameter.dtype
            assert parameter.grad.shape == parameter.shape
            np.testing.assert_allclose(
                parameter.grad.double(),
                total,
                rtol=ROUNDING[parameter.dtype],
                atol=ROUNDING[parameter.dtype] * largest,
            )
            ever.add(name)


def test_a_head_that_becomes_shared_and_a_trunk_that_freezes():
    network = Network()
    optimizer = PCGrad(sgd(network), tasks=TASKS)
    head, lower = list(network.heads["c"].parameters()), list(network.trunk[0].parameters())
    for step in range(9):
        for parameter in lower:
            parameter.requires_grad_(not 3 <= step < 6)
        shared = [p for p in network.shared() if p.requires_grad]
        inputs = network.inputs("a", step)

        def losses(step=step, inputs=inputs):
            # From the second step on task b answers through the head of task c.
            yield "a", network.loss("a", step)
            yield "b", network.loss("c" if 1 <= step < 7 else "b", step, inputs)
            yield "c", network.loss("c", step)

        if 1 <= step < 7:
            shared = [*shared, *head]
        rows = np.stack(
            [
                flat(torch.autograd.grad(loss, shared, allow_unused=True, materialize_grads=True))
                for _, loss in losses()
            ]
        )
        update, _ = oracle.pcgrad(rows, projection_order(3, 0, step))
        optimizer.zero_grad()
        optimizer.backward(losses())
        assert_close(written(shared), update, 1e-12)
        assert all(p.grad is None for p in lower) == (3 <= step < 6)
        optimizer.step()


def test_tied_weights_count_once():
    embedding = nn.Embedding(7, 4, dtype=torch.float64)
    decoder = nn.Linear(4, 7, bias=False, dtype=torch.float64)
    decoder.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Tanh(), decoder)
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    words = {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([3, 4, 2]), "c": torch.tensor([1, 6])}

    def loss(name):
        target = (words[name] + 1) % 7
        sign = -1.0 if name == "b" else 1.0
        return sign * nn.functional.cross_entropy(model(words[name]), target)

    for step in range(3):
        rows = np.stack([flat(torch.autograd.grad(loss(name), embedding.weight)) for name in words])
        update, weights = oracle.pcgrad(rows, projection_order(3, 0, step))
        assert weights.max() > 1
        optimizer.zero_grad()
        optimizer.backward({name: loss(name) for name in words})
        assert_close(written([embedding.weight]), update, 1e-12)
        optimizer.step()


def test_a_channels_last_convolution():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 2)).double()
        images = torch.randn(3, 5, 3, 6, 6, dtype=torch.float64)
    model.to(memory_format=torch.channels_last)
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=0.01))

    def loss(task):
        return (-1.0) ** task * model(images[task]).mean() + model(images[task]).square().mean()

    for step in range(4):
        rows = np.stack(
            [flat(torch.autograd.grad(loss(task), list(model.parameters()))) for task in range(3)]
        )
        update, _ = oracle.pcgrad(rows, projection_order(3, 0, step))
        optimizer.zero_grad()
        optimizer.backward(loss(task) for task in range(3))
        assert_close(written(model.parameters()), update, 1e-12)
        optimizer.step()


def test_parameters_of_no_optimizer_accumulate_as_ever():
    network, twin = Network(), Network()
    optimizer = PCGrad(torch.optim.SGD(network.trunk[2].parameters(), lr=0.0))
    for step in range(3):
        run_blocks(network, optimizer, step)
        optimizer.step()
        for task in TASKS:
            twin.loss(task, step).backward()
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        if not any(parameter is p for p in network.trunk[2].parameters()):
            assert torch.equal(parameter.grad, other.grad)


def test_rows_of_another_type():
    # Sixteen parts in bf16 rows lose the small ones; float32 rows keep them all.
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.0), buffer_dtype=torch.float32)
    for _ in range(3):
        optimizer.zero_grad()
        for part in [256.0] + [1.0] * 16:
            for task, sign in (("a", 1.0), ("b", -1.0)):
                with optimizer.task(task):
                    (parameter * torch.tensor([part, sign * part])).sum().backward()
        optimizer.step()
        gram = optimizer.diagnostics.gram
        assert gram.tolist() == [[2 * 272.0**2, 0.0], [0.0, 2 * 272.0**2]]
        assert parameter.grad.dtype == torch.bfloat16
        assert parameter.grad.tolist() == [544.0, 0.0]


def by_hand(one, other):
    """PCGrad's update of two tasks, flat and in float64, where no order matters."""
    one, other = one.double().flatten(), other.double().flatten()
    dot = one @ other
    if dot >= 0:
        return one + other
    return one - dot / (other @ other) * other + other - dot / (one @ one) * one


def two_losses(weight):
    """Losses of two tasks in conflict, and PCGrad's gradient of them."""
    target = torch.linspace(-1, 2, weight.numel()).view_as(weight).to(weight)
    losses = [(weight - target).abs().square().sum(), -3 * (weight - 2 * target).real.sum()]
    grads = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    return losses, by_hand(*[numbers_of(grad) for grad in grads])


def numbers_of(grad):
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "tensor"},
        {"fused": False},
        {"on_nonfinite": "skip_task"},
        {"buffer_dtype": torch.float64},
        {"buffer_dtype": torch.float32},
        {"buffer_dtype": torch.bfloat16},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (0, 2), (1300,)], ids=str)
def test_complex_parameters(shape, dtype, options):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator).mT
                          if len(shape) == 2 else
                          torch.randn(shape, dtype=dtype, generator=generator))  # fmt: skip
    odd = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = PCGrad(torch.optim.SGD([odd, weight], lr=0.01), **options)
    row_dtype = options.get("buffer_dtype", dtype.to_real())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[
        min(row_dtype, dtype.to_real(), key=lambda d: torch.finfo(d).bits)
    ]
    for step in range(4):
        losses, expected = two_losses(weight)
        optimizer.zero_grad()
        optimizer.backward(losses)
        assert weight.grad.dtype == dtype
        assert weight.grad.stride() == weight.stride()
        error = numbers_of(weight.grad).double().flatten() - expected
        assert error.norm() <= tolerance * expected.norm(), step
        odd.square().sum().backward()  # shares no surgery
        optimizer.step()


def test_conjugates_and_negatives_that_are_not_carried_out():
    weight = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    optimizer = PCGrad(torch.optim.SGD([weight], lr=0.1))
    conjugate = torch.tensor([1 + 1j, 2 - 3j]).conj()
    negative = torch._neg_view(torch.tensor([1 + 1j, 0j]))
    expected = by_hand(*[numbers_of(grad.resolve_neg()) for grad in (conjugate, negative)])
    for _ in range(3):
        optimizer.zero_grad()
        for task, grad in (("a", conjugate), ("b", negative)):
            with optimizer.task(task):
                weight.grad = grad
        optimizer.surgery()
        torch.testing.assert_close(numbers_of(weight.grad).double().flatten(), expected)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_saved_gradient_is_as_large_as_its_parameter(num_steps):
    weight = nn.Parameter(torch.randn(10_000))
    optimizer = PCGrad(torch.optim.SGD([weight], lr=0.0))
    for _ in range(num_steps):
        optimizer.zero_grad()
        optimizer.backward([(weight * scale).sum() for scale in torch.randn(5, 10_000)])
    found, expected = io.BytesIO(), io.BytesIO()
    torch.save(weight.grad, found)
    torch.save(weight.grad.clone(), expected)
    assert found.tell() == expected.tell()


class Optimistic(torch.optim.Optimizer):
    """Twice the gradient less the last one, which it keeps without a copy."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                last = self.state[parameter].get("last", parameter.grad)
                parameter.sub_(2 * parameter.grad - last, alpha=group["lr"])
                self.state[parameter]["last"] = parameter.grad


def test_a_base_that_keeps_the_gradient_finds_it_as_it_was():
    weight = nn.Parameter(torch.tensor([0.5, 0.3, -0.2], dtype=torch.float64))
    alone = nn.Parameter(weight.detach().clone())
    optimizer, bare = PCGrad(Optimistic([weight], 0.1)), Optimistic([alone], 0.1)
    for _ in range(6):
        optimizer.zero_grad()
        optimizer.backward(two_losses(weight)[0])
        optimizer.step()
        alone.grad = two_losses(alone)[1]
        bare.step()
        torch.testing.assert_close(weight.detach(), alone.detach())


@pytest.mark.parametrize(
    ("begin", "end"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("with_grad", [True, False], ids=["with .grad", "without"])
def test_rows_follow_the_type_of_their_parameter(begin, end, with_grad):
    module = nn.Linear(7, 3, bias=False).to(begin)
    optimizer = PCGrad(torch.optim.SGD(module.parameters(), lr=0.01))
    for step in range(6):
        losses, expected = two_losses(module.weight)
        optimizer.zero_grad()
        optimizer.backward(losses)
        if step >= 3:
            assert module.weight.grad.dtype == end
            error = module.weight.grad.double().flatten() - expected
            assert error.norm() <= 4 * torch.finfo(end).eps * expected.norm()
        optimizer.step()
        if step == 2:
            if not with_grad:
                optimizer.zero_grad()
            module.to(end)


@pytest.mark.parametrize("shape", [(3, 4), (3, 9), (7, 3), (1, 1), (0, 7)], ids=str)
def test_rows_follow_the_shape_of_their_parameter(shape):
    weight = nn.Parameter(torch.randn(3, 7, dtype=torch.float64))
    optimizer = PCGrad(torch.optim.SGD([weight], lr=0.01))
    for step in range(6):
        losses, expected = two_losses(weight)
        optimizer.zero_grad()
        optimizer.backward(losses)
        torch.testing.assert_close(weight.grad.flatten(), expected)
        optimizer.step()
        del losses  # whose graph remembers the shape
        if step == 2:
            optimizer.zero_grad()
            weight.data = torch.randn(shape, dtype=torch.float64)
    assert optimizer._step.buffer.num_bytes == 2 * weight.numel() * 8


def test_rows_follow_the_memory_order_of_their_parameter():
    module = nn.Conv2d(3, 4, 3, bias=False).double()
    optimizer = PCGrad(torch.optim.SGD(module.parameters(), lr=0.01))
    for step in range(6):
        losses, expected = two_losses(module.weight)
        optimizer.zero_grad()
        optimizer.backward(losses)
        torch.testing.assert_close(module.weight.grad.flatten(), expected)
        assert module.weight.grad.stride() == module.weight.stride()
        optimizer.step()
        if step == 2:
            module.to(memory_format=torch.channels_last)


def begun(num_steps):
    """A module in a step of which one task has been back-propagated."""
    module = nn.Linear(4, 3, bias=False)
    optimizer = PCGrad(torch.optim.SGD(module.parameters(), lr=0.01))
    for _ in range(num_steps):
        optimizer.zero_grad()
        optimizer.backward(two_losses(module.weight)[0])
        optimizer.step()
    optimizer.zero_grad()
    losses, expected = two_losses(module.weight)
    with optimizer.task(0):
        losses[0].backward(retain_graph=True)
    return module, optimizer, losses, expected


@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_conversion_between_the_blocks_and_the_step(num_steps):
    module, optimizer, losses, expected = begun(num_steps)
    with optimizer.task(1):
        losses[1].backward()
    module.double()
    optimizer.surgery()
    assert module.weight.grad.dtype == torch.float64
    torch.testing.assert_close(module.weight.grad.flatten(), expected, rtol=1e-5, atol=1e-5)
    optimizer.step()


@pytest.mark.parametrize("num_steps", [0, 3])
def test_another_shape_between_the_blocks_and_the_step_is_refused(num_steps):
    module, optimizer, _, _ = begun(num_steps)
    module.weight.data = torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"parameter: must keep its shape .* \(3, 1\)"):
        optimizer.surgery()
    optimizer.zero_grad()
    losses, expected = two_losses(module.weight)
    optimizer.backward(losses)
    torch.testing.assert_close(module.weight.grad.double().flatten(), expected)


def test_another_type_between_the_blocks_is_refused():
    module, optimizer, _, _ = begun(3)
    module.double()
    with pytest.raises(ValueError, match=r"gradients: must keep their type"):  # noqa: SIM117
        with optimizer.task(1):
            two_losses(module.weight)[0][1].backward()
    optimizer.zero_grad()
    losses, expected = two_losses(module.weight)
    optimizer.backward(losses)
    torch.testing.assert_close(module.weight.grad.flatten(), expected)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have one type")
def test_gradients_of_another_type_than_their_parameter():
    weight = nn.Parameter(torch.randn(64))
    weight.grad_dtype = torch.bfloat16
    optimizer = PCGrad(torch.optim.SGD([weight], lr=0.01))
    for step in range(3):
        losses, expected = two_losses(weight)
        optimizer.zero_grad()
        optimizer.backward(losses)
        assert weight.grad.dtype == torch.bfloat16
        torch.testing.assert_close(weight.grad.double(), expected, rtol=2e-2, atol=2e-2)
        assert optimizer._step.buffer.num_bytes == (2 * 64 * 2 if step else 0)


def test_gradients_in_one_memory_are_told_apart():
    one, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))
    optimizer = WeightedSum(torch.optim.SGD([one, other], lr=0.1), {"a": 3.0})
    common = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with optimizer.task("a"):
        one.grad, other.grad = common, common.view(2, 2)
    assert one.grad.tolist() == other.grad.flatten().tolist() == [3.0, 6.0, 9.0, 12.0]
    assert common.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_gradients_carry_no_graph():
    network = Network()
    for optimize in OPTIMIZERS.values():
        optimizer = optimize(network)
        for step in range(3):
            numbered_step(network, optimizer, step)
            assert not any(p.grad.requires_grad for p in network.parameters())


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_gradients_that_have_a_graph_are_taken_by_value(optimize):
    network, twin = Network(), Network()
    optimizer, other = OPTIMIZERS[optimize](network), OPTIMIZERS[optimize](twin)
    for step in range(4):
        optimizer.zero_grad()
        other.zero_grad()
        for number, task in enumerate(TASKS):
            with optimizer.task(number):
                network.loss(task, step).backward(create_graph=True)
            with other.task(number):
                twin.loss(task, step).backward()
        optimizer.step()
        other.step()
        for parameter, mirrored in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter, mirrored, rtol=1e-12, atol=1e-14)


# Memory


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.storages = []
        self.made = []
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given:
                    self.storages.append((StorageWeakRef(storage), storage.nbytes()))
                    self.made.append(storage.nbytes())
        self.peak = max(self.peak, self.live())
        return result

    def live(self):
        self.storages = [pair for pair in self.storages if not pair[0].expired()]
        # A storage that several operations returned counts once.
        return sum({pair[0]: pair[1] for pair in self.storages}.values())


def one_parameter(optimize, num_params, dtype):
    """A single parameter whose losses need no memory of its size but for the gradient itself."""
    parameter = nn.Parameter(torch.zeros(num_params, dtype=dtype))
    return parameter, optimize(torch.optim.SGD([parameter], lr=0.0))


def linear_loss(parameter, scale):
    return parameter.sum() * scale


def blocks_of_one_parameter(parameter, optimizer):
    optimizer.zero_grad()
    for task in range(3):
        with optimizer.task(task):
            linear_loss(parameter, 1.0 - task).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_surgery_allocates_nothing_of_the_size_of_the_parameters(dtype):
    peaks = []
    for num_params in (1 << 22, 1 << 23):
        parameter, optimizer = one_parameter(PCGrad, num_params, dtype)
        for _ in range(3):
            blocks_of_one_parameter(parameter, optimizer)
            with LiveStorages() as storages:
                optimizer.surgery()
            peaks.append(storages.peak)
            assert parameter.grad is not None
            assert storages.live() < 10_000
    # It works in blocks: twice the parameters need no more memory.
    for small, large in zip(peaks[:3], peaks[3:], strict=True):
        assert large <= 1.01 * small


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_holds_the_rows_and_one_gradient_of_autograds(dtype):
    num_params = 1 << 23
    parameter, optimizer = one_parameter(PCGrad, num_params, dtype)
    size = num_params * parameter.element_size()
    with LiveStorages() as storages:
        for step in range(4):
            storages.peak = 0
            blocks_of_one_parameter(parameter, optimizer)
            optimizer.step()
            # T rows, the gradient that autograd is making, and the first surgery's blocks.
            assert storages.peak <= 4.5 * size, step
            assert storages.live() <= 3.01 * size, step


def test_rows_are_allocated_once():
    num_params = 1 << 22
    parameter, optimizer = one_parameter(PCGrad, num_params, torch.float32)
    with LiveStorages() as storages:
        for _ in range(6):
            blocks_of_one_parameter(parameter, optimizer)
            optimizer.step()
    size = num_params * 4
    assert [nbytes for nbytes in storages.made if nbytes > size] == [3 * size]
    # No other of a gradient's size than the one of each backward.
    assert sum(nbytes == size for nbytes in storages.made) <= 6 * 3


def test_sums_never_allocate_rows():
    num_params = 1 << 20
    size = num_params * 4
    peaks = {}
    for name, optimize in (
        ("plain", None),
        ("sum", LossSum),
        ("weighted", lambda base: WeightedSum(base, [1.0, 0.5, 2.0])),
    ):
        parameter, optimizer = one_parameter(optimize or LossSum, num_params, torch.float32)
        with LiveStorages() as storages:
            for _ in range(3):
                if optimize is None:
                    optimizer.base.zero_grad()
                    for task in range(3):
                        linear_loss(parameter, 1.0 - task).backward()
                    optimizer.base.step()
                else:
                    blocks_of_one_parameter(parameter, optimizer)
                    optimizer.step()
        assert max(storages.made) == size
        peaks[name] = storages.peak
    assert peaks["sum"] <= peaks["plain"] + 1000
    # The block's own gradient beside the sum.
    assert peaks["weighted"] <= 2 * size + 1000


# No host synchronisation


SYNCHRONISING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "nonzero_static",
    "equal",
    "masked_select",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
}


class NoSynchronisation(TorchDispatchMode):
    """Raises where a CUDA device would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in SYNCHRONISING, f"{name} waits for the device"
        if name in ("index", "index_put_", "index_put"):
            assert all(index is None or index.dtype != torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


WATCHED = {
    "pcgrad": PCGrad,
    "pcgrad-mean-all": lambda base: PCGrad(base, reduction="mean", scope="all"),
    "pcgrad-every-2": lambda base: PCGrad(base, every=2, start_step=1),
    "loss-sum-monitor": lambda base: LossSum(base, monitor=True),
    "weighted-sum-monitor": lambda base: WeightedSum(base, [1.0, 0.5, 2.0], monitor=True),
    "custom": lambda base: MultiTaskOptimizer(base, lambda gram: 1 / gram.diagonal().sqrt()),
}


def numbered_step(network, optimizer, step, absent=None, data=None):
    optimizer.zero_grad()
    for number, task in enumerate(TASKS):
        if number != absent:
            with optimizer.task(number):
                network.loss(task, step, None if data is None else data[task]).backward()
    optimizer.surgery()
    optimizer.step()


@pytest.mark.parametrize("optimize", WATCHED)
def test_no_operation_reads_a_tensor_on_the_host(optimize, monkeypatch):
    network = Network()
    optimizer = WATCHED[optimize](sgd(network, momentum=0.9))
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):

        def refuse(*_, name=name):
            raise AssertionError(f"Tensor.{name} waits for the device")

        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(plain, "_MOST_NUMBERS", 0)  # a way that only a CPU takes
    with NoSynchronisation():
        for step in range(5):
            numbered_step(network, optimizer, step, absent=step if step == 2 else None)
        seen = optimizer.diagnostics
        _ = seen.cosines, seen.conflicts, seen.conflict_rate, seen.norm_before, seen.norm_after
    monkeypatch.undo()
    assert optimizer.diagnostics.num_surgeries > 1


@pytest.mark.parametrize("optimize", WATCHED)
def test_a_step_runs_where_there_are_no_values_to_read(optimize):
    network = Network().to("meta")
    optimizer = WATCHED[optimize](sgd(network, momentum=0.9))
    data = {task: torch.empty(8, 4, dtype=torch.float64, device="meta") for task in TASKS}
    for step in range(5):
        numbered_step(network, optimizer, step, absent=step if step == 2 else None, data=data)
        for parameter in network.parameters():
            assert parameter.grad is None or parameter.grad.is_meta
    assert optimizer.diagnostics.gram.is_meta


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("optimize", WATCHED)
def test_cuda_is_never_waited_for(optimize):
    network = Network(torch.float32).cuda()
    optimizer = WATCHED[optimize](sgd(network, momentum=0.9))
    data = {task: network.inputs(task, 0).cuda() for task in TASKS}
    numbered_step(network, optimizer, 0, data=data)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 5):
            numbered_step(network, optimizer, step, absent=step if step == 2 else None, data=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_a_cuda_graph_draws_a_new_order_at_every_replay():
    network = Network(torch.float32).cuda()
    base = torch.optim.SGD(network.parameters(), lr=0.0)
    optimizer = PCGrad(base)
    data = {task: network.inputs(task, 0).cuda() for task in TASKS}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(3):
            numbered_step(network, optimizer, step, data=data)
    torch.cuda.current_stream().wait_stream(stream)
    rows = task_gradients_on(network, data)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        numbered_step(network, optimizer, 3, data=data)
    for replay in range(8):
        graph.replay()
        update, _ = oracle.pcgrad(rows, projection_order(3, 0, 3 + replay))
        assert_close(written_on_host(network.shared()), update, 1e-5)


def task_gradients_on(network, data):
    return np.stack(
        [
            torch.cat(
                [
                    grad.reshape(-1)
                    for grad in torch.autograd.grad(
                        network.loss(task, 0, data[task]), network.shared()
                    )
                ]
            )
            .double()
            .cpu()
            .numpy()
            for task in TASKS
        ]
    )


def written_on_host(parameters):
    return torch.cat([p.grad.reshape(-1) for p in parameters]).double().cpu().numpy()


def test_a_batch_for_each_task_costs_the_flops_of_the_loss_sum():
    """Forward and backward of the blocks, counted by torch, against one backward of the sum."""
    trunk, heads = torch.nn.Linear(6, 5), [torch.nn.Linear(5, 1) for _ in range(3)]
    parameters = [p for module in (trunk, *heads) for p in module.parameters()]
    batches = [torch.randn(4, 6) for _ in heads]
    optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
    with FlopCounterMode(display=False) as ours:
        for number, (head, batch) in enumerate(zip(heads, batches, strict=True)):
            with optimizer.task(number):
                head(trunk(batch)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with FlopCounterMode(display=False) as plain:
        torch.stack(
            [head(trunk(batch)).sum() for head, batch in zip(heads, batches, strict=True)]
        ).sum().backward()
    assert ours.get_total_flops() == plain.get_total_flops() > 0


TAMPERED = {
    "num_steps": [-1, True, 10**30, 0.5, None, "3"],
    "num_rows": [-1, 0.5, None, "3", 10**12],
    "in_rows": [{}, [-1], [0, 0], [True], [999], ["a"], 3],
    "last_weights": [3, [], {0: "heavy"}, {2: torch.ones(1)}, {0: torch.zeros(1).expand(9)}],
    "last_shared": [3, {0: 0}, {9: 0}, {0: -1}, {0: None}],
    "last_alone": [3, {0: 1}, {True: 0}],
    "num_surgeries": [True, -1, 0.5, None],
    "num_skipped_steps": [True, -1, 0.5],
    "nonfinite": [3, torch.ones(1), torch.zeros(9, dtype=torch.int64)],
    "met": [3, torch.ones(2, 2), torch.zeros(3, dtype=torch.int64)],
    "conflicted": [torch.zeros(9, 9, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in TAMPERED.items() for value in values]
)
def test_a_state_that_none_can_have_is_refused_and_changes_nothing(key, value):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.1, momentum=0.9), tasks=("a", "b"))
    optimizer.backward([parameter.sum(), -parameter[0]])
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    tampered = copy.deepcopy(before)
    own = tampered["gradsurgery"]
    (own if key in own else own["diagnostics"])[key] = value
    with pytest.raises((TypeError, ValueError), match=rf"^state_dict: {key}") as refusal:
        optimizer.load_state_dict(tampered)
    assert "\n" not in str(refusal.value)
    after = optimizer.state_dict()
    assert after["gradsurgery"]["num_steps"] == before["gradsurgery"]["num_steps"]
    assert torch.equal(after["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"])
