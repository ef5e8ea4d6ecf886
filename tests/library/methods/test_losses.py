"""Methods that weigh losses against autograd of the objectives of their papers, in float64."""

import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchjd import scalarization

from gradsurgery import (
    DBMTL,
    DWA,
    FAMO,
    GLS,
    IMTLL,
    RLW,
    STCH,
    ScaleInvariant,
    UncertaintyWeighting,
    dwa_weights,
    famo_weights,
    gls_weights,
    scale_invariant_weights,
    stch_weights,
)
from gradsurgery.methods.order import standard_normals
from tests.library.methods.table import LOSS_METHODS

TASKS = ("a", "b", "c")
LR = 0.005
KNOWN = ("uncertainty", "imtl-l", "dwa", "rlw")  # before the losses
every_method = pytest.mark.parametrize("name", LOSS_METHODS)
every_way = pytest.mark.parametrize("way", ["backward", "blocks", "parts"])


class Model(nn.Module):
    """A trunk and three heads, whose losses have different sizes and stay above 0.1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 3).double()
        self.heads = nn.ModuleDict({task: nn.Linear(3, 1).double() for task in TASKS})

    def losses(self, step, tasks=TASKS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        hidden = self.trunk(inputs).tanh()
        return {
            task: 0.1 + 4 ** TASKS.index(task) * (self.heads[task](hidden) - 1).square().mean()
            for task in tasks
        }


def make(name, **options):
    model = Model()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    optimizer = (LOSS_METHODS[name] if isinstance(name, str) else name)(base, **options)
    return model, optimizer


def gather(optimizer, losses, way="backward"):
    """Back-propagates the losses, in one of the ways there are."""
    optimizer.zero_grad()
    if way == "backward":
        optimizer.backward(losses)
    elif way == "blocks":
        for task, loss in losses.items():
            with optimizer.task(task) as block:
                block.backward(loss, retain_graph=True)
    else:
        for share in (0.25, 0.75):
            for task, loss in losses.items():
                with optimizer.task(task) as block:
                    block.backward(share * loss, retain_graph=True)
        optimizer.surgery()


def parameters_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def grads_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_equal(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)


# Against autograd of the objective


class Reference:
    """Plain training on an objective with numbers of its own, which Adam learns."""

    def __init__(self, objective, lr=None, weight_decay=0.0):
        self.model = Model()
        self.objective = objective
        self.numbers = nn.Parameter(torch.zeros(len(TASKS), dtype=torch.float64))
        self.base = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.adam = None
        if lr is not None:
            self.adam = torch.optim.Adam([self.numbers], lr=lr, weight_decay=weight_decay)

    def step(self, step):
        losses = torch.stack(list(self.model.losses(step).values()))
        for parameter in [*self.model.parameters(), self.numbers]:
            parameter.grad = None
        self.objective(self.numbers, losses).backward()
        self.base.step()
        if self.adam is not None:
            self.adam.step()


def uncertainty(s, losses):
    return (torch.exp(-s) * losses / 2 + s / 2).sum()


def imtl_l(s, losses):
    return (torch.exp(s) * losses - s).sum()


def stch(_, losses):
    return 0.3 * torch.logsumexp(losses.new_tensor([0.2, 0.5, 0.0]) * losses / 0.3, 0)


STCH_OPTIONS = {"mu": 0.3, "preference": {"a": 0.2, "b": 0.5, "c": 0.0}}
OBJECTIVES = {
    "uncertainty": (
        lambda base, **o: UncertaintyWeighting(base, lr=0.02, weight_decay=0.1, **o),
        lambda: Reference(uncertainty, lr=0.02, weight_decay=0.1),
    ),
    "imtl-l": (
        lambda base, **o: IMTLL(base, lr=0.02, **o),
        lambda: Reference(imtl_l, lr=0.02),
    ),
    "gls": (GLS, lambda: Reference(lambda _, losses: losses.prod() ** (1 / 3))),
    "scale-invariant": (ScaleInvariant, lambda: Reference(lambda _, losses: losses.log().sum())),
    "stch": (
        lambda base, **o: STCH(base, mu=0.3, **o),
        lambda: Reference(lambda _, losses: 0.3 * torch.logsumexp(losses / 3 / 0.3, 0)),
    ),
    "stch with preferences": (
        lambda base, **o: STCH(base, **STCH_OPTIONS, ideal={"a": 0.1, "b": 0, "c": -1.0}, **o),
        lambda: Reference(
            lambda _, losses: stch(_, losses - losses.new_tensor([0.1, 0.0, -1.0])),
        ),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@every_way
def test_training_is_descent_on_the_objective_of_the_paper(name, way):
    build, reference = OBJECTIVES[name]
    model, optimizer = make(build)
    reference = reference()
    for step in range(100):
        gather(optimizer, model.losses(step), way)
        optimizer.step()
        reference.step(step)
        assert_equal(parameters_of(model), parameters_of(reference.model), rtol=1e-9)
    if reference.adam is not None:
        (numbers,) = optimizer.diagnostics.numbers.values()
        assert_equal(numbers, reference.numbers.detach(), rtol=1e-9)
        assert (numbers.abs() > 0.1).any()


@every_way
@pytest.mark.parametrize("looks", [True, False])
def test_famo_is_the_algorithm_of_its_paper(way, looks):
    bounds = {"a": 0.05, "b": 0.0, "c": -1.0}
    model, optimizer = make(FAMO, lr=0.05, weight_decay=1e-3, min_losses=bounds, warn=looks)
    taken_off = torch.tensor(list(bounds.values()), dtype=torch.float64)
    twin = Model()
    base = torch.optim.SGD(twin.parameters(), lr=LR)
    logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([logits], lr=0.05, weight_decay=1e-3)
    for step in range(100):
        gather(optimizer, model.losses(step), way)
        optimizer.step()

        logs = (torch.stack(list(twin.losses(step).values())) - taken_off + 1e-8).log()
        shares = logits.detach().softmax(0)
        base.zero_grad()
        ((shares * logs).sum() / (shares / logs.detach().exp()).sum()).backward()
        base.step()
        if looks:
            optimizer.look_again({task: loss.detach() for task, loss in model.losses(step).items()})
            later = (torch.stack(list(twin.losses(step).values())) - taken_off + 1e-8).log()
            adam.zero_grad()
            (logits.softmax(0) * (logs - later).detach()).sum().backward()
            adam.step()
        assert_equal(parameters_of(model), parameters_of(twin), rtol=1e-7)
    found = optimizer.diagnostics.numbers["logit"]
    assert_equal(found, logits.detach(), rtol=1e-7)
    assert bool((found.abs() > 0.1).any()) == looks


@every_way
@pytest.mark.parametrize("window", [1, 3, None])
def test_dwa_is_the_formula_of_its_paper(way, window):
    model, optimizer = make(lambda base, **o: DWA(base, window=window, temperature=0.7, **o))
    means, now = [], []
    for step in range(12):
        losses = model.losses(step)
        gather(optimizer, losses, way)
        expected = [1.0] * 3
        if len(means) > 1:
            last, before = torch.tensor(means[-2:][::-1], dtype=torch.float64)
            rates = last / before
            expected = (3 * (rates / 0.7).softmax(0)).tolist()
        optimizer.surgery()
        assert optimizer.diagnostics.weights.tolist() == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        now.append([loss.item() for loss in losses.values()])
        if len(now) == (window or 4):
            means.append([sum(column) / len(now) for column in zip(*now)])  # noqa: B905
            now = []
            if window is None:
                optimizer.end_epoch()
    numbers = optimizer.diagnostics.numbers
    if window is not None:
        assert numbers["last_window"].tolist() == pytest.approx(means[-1], rel=1e-12)
        assert numbers["before_window"].tolist() == pytest.approx(means[-2], rel=1e-12)


@every_way
def test_rlw_draws_from_the_seed_and_the_step(way):
    model, optimizer = make(RLW, seed=5, tasks=TASKS)
    for step in range(4):
        gather(optimizer, model.losses(step), way)
        optimizer.surgery()
        expected = standard_normals(3, seed=5, step=step).softmax(0)
        assert_equal(optimizer.diagnostics.weights, expected)
        optimizer.step()


def test_the_numbers_of_rlw_are_normal():
    drawn = torch.cat([standard_normals(40, seed=1, step=step) for step in range(500)])
    assert drawn.mean().abs() < 0.03
    assert (drawn.std() - 1).abs() < 0.03
    assert (drawn.pow(4).mean() - 3).abs() < 0.2
    assert len(set(drawn.tolist())) == len(drawn)


def test_stch_after_a_warm_up_is_libmtls():
    model, optimizer = make(lambda base, **o: STCH(base, mu=0.6, warmup_steps=5, **o))
    twin = Model()
    base = torch.optim.SGD(twin.parameters(), lr=LR)
    warm = []
    for step in range(20):
        gather(optimizer, model.losses(step))
        optimizer.step()
        losses = torch.stack(list(twin.losses(step).values()))
        base.zero_grad()
        if step < 5:
            losses.log().sum().backward()
            warm.append(losses.detach())
        else:
            distance = (losses / torch.stack(warm).mean(0)).log()
            (0.6 * torch.logsumexp(distance / 0.6, 0) * 3).backward()
        base.step()
        assert_equal(parameters_of(model), parameters_of(twin))
    assert_equal(optimizer.diagnostics.numbers["nadir"], torch.stack(warm).mean(0))


# Against TorchJD


def jd_step(scalarizer, model, base, step):
    base.zero_grad()
    scalarizer(torch.stack(list(model.losses(step).values()))).backward()
    base.step()


PEERS = {
    "UW": (lambda b, **o: UncertaintyWeighting(b, lr=0.03, **o), lambda: scalarization.UW(3)),
    "IMTLL": (lambda b, **o: IMTLL(b, lr=0.03, **o), lambda: scalarization.IMTLL(3)),
    "DWA": (lambda b, **o: DWA(b, window=None, **o), scalarization.DWA),
    "FAMO": (FAMO, lambda: scalarization.FAMO(3)),
    "GeometricMean": (GLS, scalarization.GeometricMean),
    "STCH": (lambda b, **o: STCH(b, mu=0.5, **o), lambda: scalarization.STCH(mu=0.5)),
}


@pytest.mark.parametrize("peer", PEERS)
def test_training_is_torchjds(peer):
    build, scalarizer = PEERS[peer]
    model, optimizer = make(build)
    twin, scalarizer = Model(), scalarizer().double()
    base = torch.optim.SGD(twin.parameters(), lr=LR)
    learned = list(scalarizer.parameters()) if peer in ("UW", "IMTLL") else []
    adam = torch.optim.Adam(learned, lr=0.03) if learned else None
    for step in range(30):
        gather(optimizer, model.losses(step))
        optimizer.step()
        if adam is not None:
            adam.zero_grad()
        jd_step(scalarizer, twin, base, step)
        if adam is not None:
            adam.step()
        if peer == "FAMO":
            optimizer.look_again(model.losses(step))
            scalarizer.update(torch.stack(list(twin.losses(step).values())))
        if peer == "DWA" and step % 5 == 4:
            optimizer.end_epoch()
            scalarizer.step()
        assert_equal(parameters_of(model), parameters_of(twin), rtol=1e-8)


# State


def with_absent_tasks(model, optimizer, steps, way="backward"):
    """Steps in which now and then a task is absent, with second looks where they are wanted."""
    for step in steps:
        tasks = [TASKS, ("a", "c"), TASKS, ("b",)][step % 4]
        gather(optimizer, model.losses(step, tasks), way)
        optimizer.step()
        if isinstance(optimizer, FAMO):
            optimizer.look_again(model.losses(step, tasks))


@every_method
@every_way
@pytest.mark.parametrize("num_steps", range(6))
def test_training_resumes_exactly(name, way, num_steps):
    model, optimizer = make(name, tasks=TASKS)
    with_absent_tasks(model, optimizer, range(num_steps), way)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    of_model, of_optimizer = torch.load(file, weights_only=True)
    again, resumed = make(name, tasks=TASKS)
    # What was learned before is gone, all of it.
    with_absent_tasks(again, resumed, range(3), way)
    again.load_state_dict(of_model)
    resumed.load_state_dict(of_optimizer)
    for pair in ((model, optimizer), (again, resumed)):
        with_absent_tasks(*pair, range(num_steps, num_steps + 6), way)
    assert torch.equal(parameters_of(model), parameters_of(again))


def test_famo_resumes_between_a_step_and_its_second_look():
    model, optimizer = make("famo")
    gather(optimizer, model.losses(0))
    optimizer.step()
    _, resumed = make("famo")
    resumed.load_state_dict(optimizer.state_dict())
    for one in (optimizer, resumed):
        one.look_again(model.losses(0))
    found = [one.diagnostics.numbers["logit"] for one in (optimizer, resumed)]
    assert torch.equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("name", ["uncertainty", "imtl-l", "famo"])
@every_way
def test_an_absent_task_keeps_what_it_has_learned(name, way):
    """Adam of each task by itself sees but the steps that the task takes part in."""
    model, optimizer = make(name, tasks=TASKS)
    with_absent_tasks(model, optimizer, range(2), way)
    (before,) = optimizer.diagnostics.numbers.values()
    gather(optimizer, model.losses(2, ("a", "c")), way)
    optimizer.step()
    if name == "famo":
        optimizer.look_again(model.losses(2, ("a", "c")))
    (after,) = optimizer.diagnostics.numbers.values()
    assert before[1] != 0
    assert after[1] == before[1]
    assert (after[[0, 2]] != before[[0, 2]]).all()


def test_numbers_of_a_task_that_is_often_absent_are_those_of_its_own_adam():
    model, optimizer = make("uncertainty", tasks=TASKS)
    s = nn.Parameter(torch.zeros((), dtype=torch.float64))
    adam = torch.optim.Adam([s], lr=0.025)
    for step in range(20):
        tasks = TASKS if step % 3 == 0 else ("a", "c")
        losses = model.losses(step, tasks)
        gather(optimizer, losses)
        optimizer.step()
        if "b" in tasks:
            adam.zero_grad()
            (torch.exp(-s) * losses["b"].item() / 2 + s / 2).backward()
            adam.step()
    assert_equal(optimizer.diagnostics.numbers["log_variance"][1], s.detach())


@every_method
@every_way
def test_the_order_of_the_tasks_changes_nothing(name, way):
    if name == "rlw":
        pytest.skip("draws by the number of a task")
    results = []
    for order in (TASKS, ("c", "a", "b")):
        model, optimizer = make(name, tasks=order)
        for step in range(6):
            losses = model.losses(step)
            gather(optimizer, {task: losses[task] for task in order}, way)
            optimizer.step()
            if name == "famo":
                optimizer.look_again(losses)
        results.append((parameters_of(model), optimizer.diagnostics.numbers))
    assert_equal(results[1][0], results[0][0])
    for kind, numbers in results[0][1].items():
        assert_equal(results[1][1][kind][[1, 2, 0]], numbers)


@every_method
def test_state_stays_where_it_is(name):
    """So that a captured CUDA graph goes on from what its last replay has left."""
    model, optimizer = make(name, tasks=TASKS)
    with_absent_tasks(model, optimizer, range(1))

    def places(found):
        if isinstance(found, torch.Tensor):
            return [found.data_ptr()]
        found = found.values() if isinstance(found, dict) else vars(found).values()
        return [
            p
            for part in found
            if hasattr(part, "__dict__") or isinstance(part, dict)
            for p in places(part)
        ] + [part.data_ptr() for part in found if isinstance(part, torch.Tensor)]

    before = places(optimizer.weighting)
    with_absent_tasks(model, optimizer, range(1, 6))
    assert places(optimizer.weighting) == before
    assert bool(before) == (name not in ("rlw", "gls", "scale-invariant", "stch"))


class NoReading(TorchDispatchMode):
    """Refuses to read a number on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@every_method
@every_way
@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip_task"])
def test_nothing_is_read_on_the_host(name, way, on_nonfinite):
    model, optimizer = make(name, tasks=TASKS, on_nonfinite=on_nonfinite)
    for step in range(4):
        losses = model.losses(step)
        with NoReading():
            gather(optimizer, losses, way)
            optimizer.step()
            if name == "famo":
                optimizer.look_again(losses)


# The price


@every_method
def test_one_call_costs_one_backward_and_no_rows(name):
    model, optimizer = make(name)
    counts = []
    model.trunk.weight.register_hook(lambda grad: counts.append(1))
    for step in range(3):
        gather(optimizer, model.losses(step))
        optimizer.step()
    assert len(counts) == 3
    assert optimizer._step.buffer.num_bytes == 0


@every_method
@pytest.mark.parametrize("declared", [True, False])
def test_blocks_keep_no_rows_where_weights_are_known(name, declared):
    model, optimizer = make(name, **({"tasks": TASKS} if declared else {}))
    for step in range(3):
        gather(optimizer, model.losses(step), "blocks")
        optimizer.step()
    is_known = name in KNOWN and (declared or name != "rlw")
    assert (optimizer._step.buffer.num_bytes == 0) == is_known


@every_method
def test_every_is_refused(name):
    with pytest.raises(ValueError, match="every: must be 1 for"):
        make(name, every=2)


# Through the door: options, diagnostics, failures


@every_method
@every_way
def test_the_mean_is_the_sum_over_the_number_of_tasks(name, way):
    grads = []
    for reduction in ("sum", "mean"):
        model, optimizer = make(name, tasks=TASKS, reduction=reduction)
        gather(optimizer, model.losses(0), way)
        optimizer.surgery()
        grads.append(grads_of(model))
    assert_equal(grads[1], grads[0] / 3)


@every_method
@pytest.mark.parametrize("options", [{"scope": "all"}, {"granularity": "tensor"}, {"shared": None}])
def test_weights_of_losses_reach_every_parameter(name, options):
    grads = []
    for way in ("backward", "blocks", "parts"):
        model, optimizer = make(name, tasks=TASKS)
        if "shared" in options:
            options = {"shared": model.trunk}
        optimizer = LOSS_METHODS[name](optimizer.base, tasks=TASKS, **options)
        gather(optimizer, model.losses(0), way)
        optimizer.surgery()
        grads.append(grads_of(model))
        weights = optimizer.diagnostics.weights
        for place, task in enumerate(TASKS):
            loss = model.losses(0)[task]
            (plain,) = torch.autograd.grad(loss, model.heads[task].weight)
            assert_equal(model.heads[task].weight.grad, weights[place].double() * plain)
    assert_equal(grads[1], grads[0])
    assert_equal(grads[2], grads[0])


@every_method
@every_way
def test_nothing_is_learned_before_the_start(name, way):
    model, optimizer = make(name, tasks=TASKS, start_step=3)
    fresh, begun = make(name, tasks=TASKS)
    for step in range(3):
        losses = model.losses(step)
        plain = torch.autograd.grad(
            sum(losses.values()), list(model.parameters()), retain_graph=True
        )
        gather(optimizer, losses, way)
        assert_equal(grads_of(model), torch.cat([grad.flatten() for grad in plain]))
        optimizer.step()
    fresh.load_state_dict(model.state_dict())
    if name == "rlw":
        return  # the step is another
    for pair in ((model, optimizer), (fresh, begun)):
        with_absent_tasks(*pair, range(4), way)
    assert torch.equal(parameters_of(model), parameters_of(fresh))


@every_method
@every_way
def test_the_summary_has_weights_and_numbers(name, way):
    model, optimizer = make(name, tasks=TASKS)
    with_absent_tasks(model, optimizer, range(3), way)
    summary = optimizer.diagnostics.summary()
    for kind, numbers in optimizer.diagnostics.numbers.items():
        assert numbers.shape == (3,)
        assert [summary[f"{kind}/{task}"] for task in TASKS] == pytest.approx(
            numbers.tolist(), nan_ok=True
        )
    weights = [summary[f"weight/{task}"] for task in TASKS]
    assert weights == pytest.approx(optimizer.diagnostics.weights.tolist())
    assert optimizer.diagnostics.num_surgeries == 3


@every_method
def test_a_monitor_sees_the_gradients_and_changes_nothing(name):
    plain, alone = make(name, tasks=TASKS)
    model, optimizer = make(name, tasks=TASKS)
    optimizer.monitor = True
    for step in range(4):
        for network, one in ((model, optimizer), (plain, alone)):
            gather(one, network.losses(step), "blocks")
            one.step()
        assert_equal(parameters_of(model), parameters_of(plain))
        assert_equal(optimizer.diagnostics.weights, alone.diagnostics.weights)
    assert optimizer.diagnostics.cosines.shape == (3, 3)


class Interrupted(Exception):  # noqa: N818
    """Raised by the user's own code."""


def fail_after(block, loss):
    block.backward(loss, retain_graph=True)
    raise Interrupted


@pytest.mark.parametrize("name", [name for name in LOSS_METHODS if name != "rlw"])
def test_the_loss_of_a_block_that_fails_counts_for_nothing(name):
    model, optimizer = make(name)
    twin, twin_optimizer = make(name)
    for step in range(3):
        optimizer.zero_grad()
        losses = model.losses(step)
        with pytest.raises(Interrupted), optimizer.task("a") as block:
            fail_after(block, 7 * losses["a"])
        for task, loss in losses.items():
            with optimizer.task(task) as block:
                block.backward(loss, retain_graph=True)
        gather(twin_optimizer, twin.losses(step), "blocks")
        for one in (optimizer, twin_optimizer):
            one.step()
        assert_equal(parameters_of(model), parameters_of(twin))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", [name for name in LOSS_METHODS if name != "rlw"])
def test_a_loss_that_was_not_shown_is_asked_for(name, reduction):
    model, optimizer = make(name, reduction=reduction)
    before = parameters_of(model)
    for task, loss in model.losses(0).items():
        with optimizer.task(task):
            loss.backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"losses: must be known.*block.backward\(loss\)"):
        optimizer.step()
    assert torch.equal(parameters_of(model), before)


@every_method
@every_way
def test_what_the_closure_sees_last_is_learned_once(name, way):
    model, optimizer = make(name, tasks=TASKS)
    twin, twin_optimizer = make(name, tasks=TASKS)
    for step in range(5):
        gather(twin_optimizer, twin.losses(step), way)
        twin_optimizer.step()

        def closure(step=step):
            gather(optimizer, model.losses(step), way)

        optimizer.step(closure)
        assert torch.equal(parameters_of(model), parameters_of(twin))


def test_gradients_of_several_calls_are_one_step_of_learning():
    model, optimizer = make("uncertainty")
    twin, twin_optimizer = make("uncertainty")
    for step in range(5):
        optimizer.zero_grad()
        for share in (0.25, 0.75):
            losses = {task: share * loss for task, loss in model.losses(step).items()}
            optimizer.backward(losses)
        optimizer.step()
        gather(twin_optimizer, twin.losses(step))
        twin_optimizer.step()
        assert_equal(parameters_of(model), parameters_of(twin))


# Loss scaling


@pytest.mark.parametrize("build", [*LOSS_METHODS.values(), DBMTL], ids=[*LOSS_METHODS, "db-mtl"])
@every_way
def test_losses_are_seen_without_the_scale(build, way):
    model, optimizer = make(build, tasks=TASKS)
    twin, twin_optimizer = make(build, tasks=TASKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer.grad_scaler = scaler
    for step in range(4):
        losses = {task: scaler.scale(loss) for task, loss in model.losses(step).items()}
        gather(optimizer, losses, way)
        optimizer.surgery()
        scaler.step(optimizer)
        scaler.update()
        gather(twin_optimizer, twin.losses(step), way)
        twin_optimizer.step()
        assert_equal(parameters_of(model), parameters_of(twin))


@pytest.mark.parametrize("name", [name for name in LOSS_METHODS if name != "rlw"])
def test_a_scaled_step_without_its_scaler_is_refused(name):
    model, optimizer = make(name)
    scaler = torch.amp.GradScaler("cpu")
    before = parameters_of(model)
    gather(optimizer, {task: scaler.scale(loss) for task, loss in model.losses(0).items()})
    with pytest.raises(ValueError, match="grad_scaler: must be given to") as refusal:
        scaler.step(optimizer)
    assert "\n" not in str(refusal.value)
    assert torch.equal(parameters_of(model), before)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    disabled.step(optimizer)


# Losses that have no weight


@every_method
@pytest.mark.parametrize("way", ["backward", "blocks"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_skipped_task_leaves_the_others_a_finite_update(name, way, bad):
    model, optimizer = make(name, tasks=TASKS, on_nonfinite="skip_task")
    with_absent_tasks(model, optimizer, range(1), way)
    before = optimizer.diagnostics.numbers
    losses = model.losses(1)
    losses["b"] = losses["b"] * bad
    gather(optimizer, losses, way)
    optimizer.surgery()
    assert grads_of(model).isfinite().all()
    assert not model.heads["b"].weight.grad.any()
    assert model.heads["a"].weight.grad.any()
    optimizer.step()
    if name == "famo":
        optimizer.look_again(model.losses(1))
    for kind, numbers in optimizer.diagnostics.numbers.items():
        torch.testing.assert_close(numbers[1], before[kind][1], rtol=0, atol=0, equal_nan=True)


def test_a_skipped_loss_counts_as_the_mean_of_the_others():
    model, optimizer = make("gls", on_nonfinite="skip_task")
    losses = model.losses(0)
    a, c = losses["a"].item(), losses["c"].item()
    losses["b"] = losses["b"] * torch.nan
    gather(optimizer, losses)
    expected = gls_weights(torch.tensor([a, (a + c) / 2, c], dtype=torch.float64))
    assert_equal(optimizer.diagnostics.weights, expected)


def test_losses_at_and_below_zero():
    at, below = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0])
    assert not gls_weights(at).isfinite().all()
    assert not gls_weights(below).isfinite().any()
    assert scale_invariant_weights(at).tolist() == [1.0, torch.inf]
    assert scale_invariant_weights(below)[1].isnan()
    assert famo_weights(torch.zeros(2), below).isnan().all()
    weights = famo_weights(torch.zeros(2, dtype=torch.float64), at.double())
    assert weights.tolist() == pytest.approx([1e-8, 1.0], rel=1e-6)
    assert dwa_weights(at, torch.tensor([1.0, 0.0])).tolist() == [1.0, 1.0]
    assert stch_weights(below).isfinite().all()


def test_losses_of_any_size():
    huge, tiny = torch.tensor([1e30, 1e35]), torch.tensor([1e-30, 1e-35])
    for losses in (huge, tiny):
        shares = gls_weights(losses) * losses
        assert_equal(shares, shares.flip(0), 1e-4)
        assert famo_weights(torch.zeros(2), losses).sum() == 1
        assert stch_weights(losses, mu=1e-3).sum() == pytest.approx(0.5)
    assert gls_weights(torch.full((40,), 1e3)).tolist() == pytest.approx([1 / 40] * 40)


PURE = {
    "gls": gls_weights,
    "scale-invariant": scale_invariant_weights,
    "stch": lambda losses: stch_weights(losses, mu=0.3, preference=0.1 + losses.cos().abs()),
    "famo": lambda losses: famo_weights(losses.sin(), losses),
    "dwa": lambda losses: dwa_weights(losses, losses.cosh()),
}


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("number", [1, 2, 3, 8, 40])
def test_weights_move_with_their_losses_and_come_in_batches(name, number):
    generator = torch.Generator().manual_seed(number)
    losses = 0.1 + torch.rand(5, number, generator=generator, dtype=torch.float64)
    order = torch.randperm(number, generator=generator)
    found = PURE[name](losses)
    assert_equal(PURE[name](losses[:, order]), found[:, order])
    assert_equal(torch.stack([PURE[name](row) for row in losses]), found)
    assert (found > 0).all()


# FAMO's second look


def test_famo_says_once_that_nobody_looks_again():
    model, optimizer = make(FAMO)
    gather(optimizer, model.losses(0))
    optimizer.step()
    gather(optimizer, model.losses(1))
    with pytest.warns(UserWarning, match=r"FAMO: two steps.*optimizer.look_again\(losses\)"):
        optimizer.step()
    gather(optimizer, model.losses(2))
    optimizer.step()


def test_a_second_look_without_a_step_does_nothing():
    model, optimizer = make(FAMO, on_nonfinite="skip_step")
    optimizer.look_again(model.losses(0))
    losses = model.losses(0)
    gather(optimizer, {**losses, "b": losses["b"] * torch.nan})
    optimizer.step()
    optimizer.look_again(losses)
    for step in range(2):
        gather(optimizer, model.losses(step))
        optimizer.step()
        optimizer.look_again(model.losses(step))
        before = optimizer.diagnostics.numbers["logit"]
        optimizer.look_again(model.losses(step))
        assert torch.equal(optimizer.diagnostics.numbers["logit"], before)
    assert before.any()


@pytest.mark.parametrize("name", [name for name in LOSS_METHODS if name != "famo"])
def test_only_famo_looks_twice(name):
    model, optimizer = make(name)
    gather(optimizer, model.losses(0))
    optimizer.step()
    with pytest.raises(ValueError, match=r"look_again\(\): must be called for a method that looks"):
        optimizer.look_again(model.losses(0))


BAD_OPTIONS = {
    "lr negative": lambda base: UncertaintyWeighting(base, lr=-0.1),
    "lr no number": lambda base: IMTLL(base, lr="fast"),
    "weight_decay nan": lambda base: FAMO(base, weight_decay=float("nan")),
    "temperature": lambda base: DWA(base, temperature=0.0),
    "window": lambda base: DWA(base, window=0),
    "mu": lambda base: STCH(base, mu=0.0),
    "preference negative": lambda base: STCH(base, preference={"a": -1.0}),
    "preference a list": lambda base: STCH(base, preference=[1.0, 2.0]),
    "ideal infinite": lambda base: STCH(base, ideal={"a": float("inf")}),
    "ideal and warm-up": lambda base: STCH(base, ideal={"a": 0.0}, warmup_steps=3),
    "warmup_steps": lambda base: STCH(base, warmup_steps=-1),
    "min_losses": lambda base: FAMO(base, min_losses=3.0),
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_one_clear_line(options):
    base = torch.optim.SGD(Model().parameters(), lr=LR)
    with pytest.raises((TypeError, ValueError)) as refusal:
        BAD_OPTIONS[options](base)
    assert str(refusal.value).startswith(options.split()[0] + ":")
    assert "\n" not in str(refusal.value)


def test_a_number_that_a_task_lacks_is_asked_for():
    model, optimizer = make(STCH, preference={"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"preference: must have a number for each task.*'c'"):
        optimizer.backward(model.losses(0))


def test_the_state_of_another_method_is_refused():
    model, optimizer = make("uncertainty")
    gather(optimizer, model.losses(0))
    optimizer.step()
    for name in ("imtl-l", "dwa", "famo", "stch"):
        _, other = make(name)
        with pytest.raises(ValueError, match="state_dict: must be of an equal weighting"):
            other.load_state_dict(optimizer.state_dict())
