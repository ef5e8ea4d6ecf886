"""A hundred steps of every method's optimizer against loops in float64 that follow its definition.

The loops take gradients by `torch.autograd.grad` and a step of SGD by hand. Each problem is solved
on the gradients themselves or by going through all supports, never by a solver of the library.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torchjd.aggregation import MGDAWeighting

from gradsurgery import projection_order
from gradsurgery.methods.order import standard_normals
from tests.library.methods.table import (
    GRAM_METHODS,
    SEEING_METHODS,
    TASKS,
    WRAPPERS,
    equal_norms,
)
from tests.library.methods.test_weights import gradvac_by_loops
from tests.oracle import pcgrad

NUM_STEPS, LR, MOMENTUM = 100, 0.05, 0.5


class Model(nn.Module):
    """A trunk for all tasks and a head for each, in float64."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.double()

    def loss(self, task, step):
        """The task's mean squared error on examples on which tasks disagree."""
        place = TASKS.index(task)
        generator = torch.Generator().manual_seed(1000 * step + place)
        inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        targets = (inputs.sum(1, keepdim=True) + inputs[:, :1] * place).sin() * (-1.0) ** place
        return (self.heads[task](self.trunk(inputs)) - targets).square().mean() + 0.1 * place


def present_in(step):
    """Tasks of a step: now and then one is absent, or two."""
    if step % 17 == 9:
        return ("a",)
    absent = {3: "b", 5: "a", 7: "c"}.get(step % 9)
    return tuple(task for task in TASKS if task != absent)


# Definitions: the tasks' gradients as rows [T, P], what else there is to see, and state by task.


def supports(number):
    return itertools.chain.from_iterable(
        itertools.combinations(range(number), size) for size in range(1, number + 1)
    )


def least(gram, linear):
    """The x of at least 0 with the least x'Gx / 2 + linear'x, of those of all supports."""
    best, value = torch.zeros_like(linear), 0.0
    for support in map(list, supports(len(gram))):
        x = torch.zeros_like(linear)
        x[support] = torch.linalg.solve(gram[support][:, support], -linear[support])
        if (x >= 0).all() and (linear @ x).item() < value:
            best, value = x, (linear @ x).item()
    return best


def mgda(rows):
    gram, found = rows @ rows.T, []
    for support in map(list, supports(len(rows))):
        weights = torch.zeros(len(rows), dtype=torch.float64)
        ones = torch.ones(len(support), dtype=torch.float64)
        weights[support] = torch.linalg.solve(gram[support][:, support], ones)
        if (weights >= 0).all():
            weights = weights / weights.sum()
            found.append(((weights @ gram @ weights).item(), weights))
    return min(found, key=lambda pair: pair[0])[1]


def upgrad(rows):
    gram = rows @ rows.T
    return sum(unit + least(gram, gram @ unit) for unit in torch.eye(len(rows)).double()) / len(
        rows
    )


def dualproj(rows):
    gram, mean = rows @ rows.T, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    return mean + least(gram, gram @ mean)


def sdmgrad(rows, lamb=0.3):
    return (mgda(rows + lamb * rows.mean(0)) + lamb / len(rows)) / (1 + lamb)


def cagrad(rows, c=0.4):
    """On each support the gradients reach equally far: a ball cuts that line where it ends."""
    mean, found = rows.mean(0), []
    for support in map(list, supports(len(rows))):
        some = rows[support]
        level = torch.linalg.lstsq(some, torch.ones(len(some), 1).double()).solution[:, 0]
        start = torch.linalg.lstsq(some, -(some @ mean)[:, None]).solution[:, 0]
        # What is added, start + t level, is as long as the radius.
        a, b = level @ level, start @ level
        root = b * b - a * (start @ start - c * c * (mean @ mean))
        if root >= 0:
            more = start + (root.sqrt() - b) / a * level
            weights = torch.linalg.lstsq(some.T, more[:, None]).solution[:, 0]
            if (weights >= 0).all():
                value = (rows @ (mean + more)).min().item()
                whole = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
                whole[support] += weights
                found.append((value, whole))
    return max(found, key=lambda pair: pair[0])[1]


def bargain(rows, alpha):
    """Weights one after the other, each by halving the interval, until none moves."""
    gram = (rows @ rows.T).tolist()
    tasks = range(len(gram))
    weights = [gram[i][i] ** (-alpha / (1 + alpha)) for i in tasks]
    for _ in range(2000):
        before = list(weights)
        for i in tasks:
            others = sum(gram[i][j] * weights[j] for j in tasks if j != i)

            def excess(weight, i=i, others=others):
                return gram[i][i] * weight + others - weight ** (-1 / alpha)

            low = high = weights[i]
            while excess(low) > 0:
                low /= 1.01
            while excess(high) < 0:
                high *= 1.01
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if excess(middle) > 0 else (middle, high)
            weights[i] = (low + high) / 2
        if max(abs(w / b - 1) for w, b in zip(weights, before, strict=True)) < 1e-15:
            break
    return torch.tensor(weights, dtype=torch.float64)


def nash(rows):
    weights = bargain(rows, 1.0)
    return weights / (weights @ rows).norm().clamp_min(1)


def imtl_g(rows):
    """The closed form of the paper, with differences to the first task."""
    if len(rows) == 1:
        return torch.ones(1, dtype=torch.float64)
    units = rows / rows.norm(dim=1, keepdim=True)
    apart, turned = rows[0] - rows[1:], units[0] - units[1:]
    others = torch.linalg.solve(turned @ apart.T, turned @ rows[0])
    return torch.cat([1 - others.sum(0, keepdim=True), others])


def as_weights(rows, update):
    return torch.linalg.lstsq(rows.T, update[:, None]).solution[:, 0]


def config(rows):
    units = rows / rows.norm(dim=1, keepdim=True)
    along = torch.linalg.pinv(units).sum(1)
    along = along / along.norm()
    return as_weights(rows, (rows @ along).sum() * along)


def aligned_mtl(rows):
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    return as_weights(rows, values[-1] * (left @ right).sum(0))


def by_rows(function):
    """A definition that sees nothing but the rows."""

    def make():
        return lambda rows, seen: function(rows)

    return make


def make_pcgrad(seed):
    def weights(rows, seen):
        order = projection_order(len(rows), seed, seen["step"])
        return torch.from_numpy(pcgrad(rows, order)[1])

    return lambda: weights


def make_gradvac():
    targets = torch.zeros(len(TASKS), len(TASKS), dtype=torch.float64)

    def weights(rows, seen):
        places = [TASKS.index(task) for task in seen["tasks"]]
        order = projection_order(len(rows), 3, seen["step"]).tolist()
        mine = targets[places][:, places]
        update, moved = gradvac_by_loops(rows, mine, order, beta=0.5)
        for i, place in enumerate(places):
            for j, other in enumerate(places):
                targets[place, other] = moved[i, j]
        return as_weights(rows, update)

    return weights


def make_rgw():
    def weights(rows, seen):
        drawn = standard_normals(len(TASKS), 3, seen["step"]).tolist()
        shares = [math.exp(drawn[TASKS.index(task)]) for task in seen["tasks"]]
        return torch.tensor(shares, dtype=torch.float64) / sum(shares)

    return weights


def make_crmogm():
    average = {}

    def weights(rows, seen):
        for task, weight in zip(seen["tasks"], upgrad(rows), strict=True):
            average[task] = 0.9 * average[task] + 0.1 * weight if task in average else weight
        return torch.stack([average[task] for task in seen["tasks"]])

    return weights


def make_gradnorm():
    kept, first = dict.fromkeys(TASKS, 1.0), {}

    def weights(rows, seen):
        tasks, losses = seen["tasks"], seen["losses"]
        for task in tasks:
            first.setdefault(task, losses[task])
        used = torch.tensor([kept[task] for task in tasks], dtype=torch.float64)
        ratios = torch.tensor([losses[t] / first[t] for t in tasks], dtype=torch.float64)
        learned = used.clone().requires_grad_()
        lengths = (learned[:, None] * rows).norm(dim=1)
        target = lengths.mean().detach() * (ratios / ratios.mean()) ** 1.5
        (slope,) = torch.autograd.grad((lengths - target).abs().sum(), learned)
        moved = used - 0.025 * slope.sign()
        moved = moved * used.sum() / moved.sum()
        kept.update(zip(tasks, moved.tolist(), strict=True))
        return used

    return weights


def make_dbmtl():
    def weights(rows, seen):
        losses = [seen["losses"][task] for task in seen["tasks"]]
        logs = [(row / loss).norm() for row, loss in zip(rows, losses, strict=True)]
        return torch.stack([max(logs) / row.norm() for row in rows])

    return weights


DEFINITIONS = {
    "pcgrad": make_pcgrad(seed=3),
    "gradvac": make_gradvac,
    "upgrad": by_rows(upgrad),
    "dualproj": by_rows(dualproj),
    "mgda": by_rows(mgda),
    "sdmgrad": by_rows(sdmgrad),
    "cagrad": by_rows(cagrad),
    "nash-mtl": by_rows(nash),
    "fairgrad": by_rows(lambda rows: bargain(rows, 2.0)),
    "imtl-g": by_rows(imtl_g),
    "config": by_rows(config),
    "aligned-mtl": by_rows(aligned_mtl),
    "rgw": make_rgw,
    "cr-mogm": make_crmogm,
    "gradnorm": make_gradnorm,
    "db-mtl": make_dbmtl,
    "custom": by_rows(lambda rows: equal_norms(rows @ rows.T)),
}


class Loop:
    """Training by a definition, in plain torch.

    Args:
        make: makes the definition for one unit of parameters, with its state.
        granularity: of what is weighted as a whole.
        asks_alone: whether a task alone has a weight.
        heads_too: whether the weights go to heads as well.
        rows_of_all: whether the rows hold heads, too.
        reduction: of the sum over what is shared.
    """

    def __init__(
        self,
        make,
        granularity="model",
        *,
        asks_alone=False,
        heads_too=False,
        rows_of_all=False,
        reduction="sum",
    ):
        self.model = Model()
        trunk = list(self.model.trunk.parameters())
        units = [trunk] if granularity == "model" else [[parameter] for parameter in trunk]
        self.units = [(parameters, make()) for parameters in units]
        self.velocity = {p: torch.zeros_like(p) for p in self.model.parameters()}
        self.asks_alone = asks_alone
        self.heads_too = heads_too
        self.rows_of_all = rows_of_all
        self.reduction = reduction

    def grads_of(self, loss, parameters):
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([grad.flatten() for grad in found])

    def step(self, step):
        tasks = present_in(step)
        losses = {task: self.model.loss(task, step) for task in tasks}
        seen = {"step": step, "tasks": tasks}
        seen["losses"] = {task: loss.item() for task, loss in losses.items()}
        grads = {}
        for parameters, weights_of in self.units:
            rows = torch.stack([self.grads_of(losses[task], parameters) for task in tasks])
            told = rows
            if self.rows_of_all:
                everything = list(self.model.parameters())
                told = torch.stack([self.grads_of(losses[task], everything) for task in tasks])
            # What one task alone reaches keeps its plain gradient.
            weights = torch.ones(len(tasks), dtype=torch.float64)
            if len(tasks) > 1 or self.asks_alone:
                weights = weights_of(told, seen)
            update = weights @ rows / (len(tasks) if self.reduction == "mean" else 1)
            parts = update.split([p.numel() for p in parameters])
            grads.update({p: part.view_as(p) for p, part in zip(parameters, parts, strict=True)})
        for task, weight in zip(tasks, weights, strict=True):
            head = list(self.model.heads[task].parameters())
            found = torch.autograd.grad(losses[task], head)
            factor = weight if self.heads_too else 1
            grads.update({p: factor * grad for p, grad in zip(head, found, strict=True)})
        with torch.no_grad():
            for parameter, grad in grads.items():
                self.velocity[parameter].mul_(MOMENTUM).add_(grad)
                parameter -= LR * self.velocity[parameter]


def train_step(model, optimizer, step):
    """By blocks and by `backward` in turn."""
    optimizer.zero_grad()
    if step % 2:
        optimizer.backward({task: model.loss(task, step) for task in present_in(step)})
    else:
        for task in present_in(step):
            with optimizer.task(task) as block:
                block.backward(model.loss(task, step))
    optimizer.step()


def assert_same_path(make_optimizer, loop):
    model = Model()
    optimizer = make_optimizer(torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM))
    begun = torch.cat([p.detach().flatten() for p in model.parameters()])
    for step in range(NUM_STEPS):
        train_step(model, optimizer, step)
        loop.step(step)
        found, expected = (
            torch.cat([p.detach().flatten() for p in network.parameters()])
            for network in (model, loop.model)
        )
        moved = (expected - begun).norm()
        assert (found - expected).norm() <= 1e-9 * moved, step
    assert moved > 0.5


without_surgery = pytest.mark.filterwarnings("ignore:.*a step without surgery")


@without_surgery
@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("name", [*GRAM_METHODS, *SEEING_METHODS])
def test_a_hundred_steps_are_those_of_the_definition(name, granularity):
    make = {**GRAM_METHODS, **SEEING_METHODS}[name]
    assert_same_path(
        lambda base: make(base, tasks=TASKS, granularity=granularity),
        Loop(DEFINITIONS[name], granularity),
    )


def make_ones():
    return lambda rows, seen: torch.ones(len(rows), dtype=torch.float64)


def make_weighted():
    by_task = {"a": 1.0, "b": 0.5, "c": 2.0}
    return lambda rows, seen: torch.tensor([by_task[task] for task in seen["tasks"]]).double()


def make_every_third():
    """From the third step on; between two surgeries with the weights of the last."""
    last, projected = {}, make_pcgrad(seed=0)()

    def weights(rows, seen):
        tasks = seen["tasks"]
        if seen["step"] >= 2 and (seen["step"] - 2) % 3 == 0:
            found = projected(rows, seen)
            last.clear()
            last.update(zip(tasks, found.tolist(), strict=True) if len(tasks) > 1 else ())
        return torch.tensor([last.get(task, 1.0) for task in tasks], dtype=torch.float64)

    return weights


def make_late():
    """By `backward`, in odd steps, as ever; in blocks with the weights of the step before."""
    last, projected = {}, make_pcgrad(seed=0)()

    def weights(rows, seen):
        tasks = seen["tasks"]
        now = [last.get(task, 1.0) for task in tasks]
        found = projected(rows, seen).tolist()
        last.clear()
        last.update(zip(tasks, found, strict=True) if len(tasks) > 1 else ())
        return torch.tensor(found if seen["step"] % 2 else now, dtype=torch.float64)

    return weights


LOOPS = {
    "loss-sum": lambda: Loop(make_ones),
    "loss-sum-sketch": lambda: Loop(make_ones),
    "pcgrad-host": lambda: Loop(make_pcgrad(seed=0)),
    "pcgrad-sketch": lambda: Loop(make_late, asks_alone=True),
    "loss-sum-monitor": lambda: Loop(make_ones),
    "weighted-sum": lambda: Loop(make_weighted, asks_alone=True, heads_too=True),
    "weighted-sum-monitor": lambda: Loop(make_weighted, asks_alone=True, heads_too=True),
    "pcgrad-every-3": lambda: Loop(make_every_third, asks_alone=True),
    "pcgrad-mean-all": lambda: Loop(
        make_pcgrad(seed=0), asks_alone=True, heads_too=True, rows_of_all=True, reduction="mean"
    ),
    "torchjd": lambda: Loop(by_rows(lambda rows: MGDAWeighting()(rows @ rows.T))),
}


@without_surgery
@pytest.mark.parametrize("name", LOOPS)  # of methods on losses: test_losses.py
def test_a_hundred_steps_of_options_and_sums(name):
    assert_same_path(WRAPPERS[name], LOOPS[name]())
