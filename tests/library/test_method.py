"""Three methods that the library does not have, through its door: against float64 loops by hand."""

import copy
import io

import pytest
import torch
from torch import nn

from gradsurgery import Method, MultiTaskOptimizer, Seen

TASKS = ("a", "b", "c")


class Remembering(Method):
    """Keeps a cosine for every pair of tasks, and weighs by the mean over those of a task."""

    def __init__(self):
        self.mean = torch.zeros(len(TASKS), len(TASKS), dtype=torch.float64)

    def weights(self, seen: Seen):
        gram = seen.gram.sum(0).double()
        norms = gram.diagonal().sqrt()
        cosines = gram / norms / norms[:, None]
        for row, i in enumerate(seen.tasks):
            for column, j in enumerate(seen.tasks):
                self.mean[i, j] = 0.5 * self.mean[i, j] + 0.5 * cosines[row, column]
        weights = torch.stack([1 + self.mean[i].mean() for i in seen.tasks])
        return weights.expand(len(seen.gram), -1)

    def state_dict(self):
        return {"mean": self.mean.clone()}

    def load_state_dict(self, state):
        self.mean = state["mean"].clone()


class LogLosses(Method):
    """Weighs every loss by one over it."""

    needs_gram = False
    needs_losses = True

    def weights(self, seen: Seen):
        assert seen.gram is None
        return (1 / seen.losses)[None]


class Drawn(Method):
    """Weighs by numbers drawn from the seed, the step and the task alone."""

    needs_gram = False

    def weights(self, seen: Seen):
        assert seen.gram is None
        assert seen.losses is None
        numbers = [1 + (7 * task + 3 * seen.seed + 5 * seen.step) % 4 for task in seen.tasks]
        return torch.tensor([numbers], dtype=torch.float64)


METHODS = {"remembering": Remembering, "log losses": LogLosses, "drawn": Drawn}
every_method = pytest.mark.parametrize("name", METHODS)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 3).double()
        self.heads = nn.ModuleDict({task: nn.Linear(3, 1).double() for task in TASKS})

    def losses(self, step, tasks=TASKS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        hidden = self.trunk(inputs).tanh()
        return {t: (self.heads[t](hidden) - i).square().mean() for i, t in enumerate(tasks)}


def of_trunk(model, loss):
    parameters = list(model.trunk.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def grads_of(module):
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def make(name, **options):
    model = Model()
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, MultiTaskOptimizer(base, METHODS[name](), tasks=TASKS, **options)


def by_hand(name, method, model, losses, step, seed=0):
    """Weights of the tasks of a step, by loops over plain autograd."""
    present = [TASKS.index(task) for task in losses]
    rows = [of_trunk(model, loss) for loss in losses.values()]
    if name == "log losses":
        return [1 / loss.item() for loss in losses.values()]
    if name == "drawn":
        return [1 + (7 * task + 3 * seed + 5 * step) % 4 for task in present]
    for i, g in zip(present, rows, strict=True):
        for j, h in zip(present, rows, strict=True):
            cosine = (g @ h / g.norm() / h.norm()).item()
            method[i][j] = 0.5 * method[i][j] + 0.5 * cosine
    return [1 + sum(method[i]) / len(TASKS) for i in present]


def check_step(name, state, model, optimizer, step, way, tasks=TASKS):
    losses = model.losses(step, tasks)
    weights = by_hand(name, state, model, losses, step)
    rows = [of_trunk(model, loss) for loss in losses.values()]
    trunk = sum(weight * row for weight, row in zip(weights, rows, strict=True))
    heads = {
        task: torch.autograd.grad(loss, model.heads[task].weight, retain_graph=True)[0].flatten()
        for task, loss in losses.items()
    }
    optimizer.zero_grad()
    if way == "backward":
        optimizer.backward(losses)
    else:
        for task, loss in losses.items():
            with optimizer.task(task) as block:
                block.backward(loss, retain_graph=True)
        optimizer.surgery()
    torch.testing.assert_close(grads_of(model.trunk), trunk, rtol=1e-9, atol=1e-12)
    for task, weight in zip(tasks, weights, strict=True):
        # Weights of losses reach the heads, those of gradients do not.
        expected = heads[task] if name == "remembering" else weight * heads[task]
        found = model.heads[task].weight.grad.flatten()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert optimizer.diagnostics.summary()[f"weight/{tasks[0]}"] == pytest.approx(weights[0])
    optimizer.step()


@every_method
@pytest.mark.parametrize("way", ["backward", "blocks"])
def test_training_is_that_of_loops(name, way):
    model, optimizer = make(name)
    state = [[0.0] * 3 for _ in TASKS]
    for step, tasks in enumerate([TASKS, TASKS, ("a", "c"), TASKS]):
        check_step(name, state, model, optimizer, step, way, tasks)


@every_method
def test_a_method_resumes_where_it_was(name):
    model, optimizer = make(name)
    state = [[0.0] * 3 for _ in TASKS]
    for step in range(3):
        check_step(name, state, model, optimizer, step, "backward")
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = make(name)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for step in range(3, 5):
        check_step(name, state, again, resumed, step, "blocks")


def test_the_price_of_weights_on_losses_is_one_backward_and_no_rows():
    model, optimizer = make("log losses")
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    model.trunk.weight.register_hook(counted)
    for step in range(2):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        optimizer.step()
    assert count == 2
    assert optimizer._step.buffer.num_bytes == 0


def test_every_and_start_step_are_of_every_method():
    model, optimizer = make("remembering", every=2, start_step=1)
    for step in range(5):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        optimizer.step()
    assert optimizer.diagnostics.num_surgeries == 2
    with pytest.raises(ValueError, match="every: must be 1 for LogLosses"):
        make("log losses", every=2)


def test_losses_that_a_method_cannot_see_are_asked_for():
    model, optimizer = make("log losses")
    for task, loss in model.losses(0).items():
        with optimizer.task(task):
            loss.backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"losses: must be known to this method.*block.backward"):
        optimizer.surgery()


def test_a_copy_has_a_method_of_its_own():
    model, optimizer = make("remembering")
    optimizer.backward(model.losses(0))
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    assert copied.weighting is not optimizer.weighting
    torch.testing.assert_close(copied.weighting.mean, optimizer.weighting.mean)


def test_weights_of_another_shape_are_refused():
    class Wrong(Method):
        def weights(self, seen):
            return torch.ones(1, 2, dtype=torch.float64)

    model = Model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MultiTaskOptimizer(base, Wrong(), tasks=TASKS)
    with pytest.raises(ValueError, match=r"method: must return weights \[S, 3\]"):
        optimizer.backward(model.losses(0))
