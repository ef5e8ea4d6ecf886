"""Diagnostics against numpy on gradients that are known, and against what training saw."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery import (
    Diagnostics,
    LossSum,
    MultiTaskOptimizer,
    PCGrad,
    WeightedSum,
    projection_order,
)
from tests.oracle import project

pytestmark = pytest.mark.usefixtures("poisoned_empty")

GRADS = {
    "a": [-4.0, 1.0, 1.0, 0.5],
    "b": [6.0, 1.0, 1.0, 0.0],
    "c": [0.5, -2.0, 0.25, 1.0],
    "d": [-6.0, -1.0, -1.5, 0.0],
}


def optimizer_on(wrapper, **options):
    """An optimizer of one parameter; the gradient of a linear loss is its coefficients."""
    parameter = nn.Parameter(torch.zeros(4))
    base = torch.optim.SGD([parameter], lr=0.1)
    return parameter, wrapper(base, **options)


def surgery(parameter, optimizer, grads, scale=1.0):
    optimizer.zero_grad()
    for name, grad in grads.items():
        with optimizer.task(name):
            (parameter * (scale * torch.tensor(grad))).sum().backward()
    optimizer.step()


def some(names):
    return {name: GRADS[name] for name in names}


WRAPPERS = {
    "pcgrad": PCGrad,
    "loss-sum": lambda base, **options: LossSum(base, monitor=True, **options),
    "weighted-sum": lambda base, **options: WeightedSum(
        base, {"a": 1.0, "b": 0.5, "c": 2.0, "d": 1.0}, monitor=True, **options
    ),
    "custom": lambda base, **options: MultiTaskOptimizer(
        base, lambda gram: torch.arange(1.0, 1.0 + len(gram), dtype=gram.dtype), **options
    ),
}
FIXED_WEIGHTS = {
    "loss-sum": [1.0, 1.0, 1.0],
    "weighted-sum": [1.0, 0.5, 2.0],
    "custom": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_numbers_of_one_surgery(wrapper, step):
    parameter, optimizer = optimizer_on(WRAPPERS[wrapper])
    for _ in range(step + 1):
        surgery(parameter, optimizer, some("abc"))
    seen = optimizer.diagnostics
    rows = np.array(list(some("abc").values()))
    norms = np.linalg.norm(rows, axis=1)
    gram = rows @ rows.T
    assert seen.tasks == ("a", "b", "c")
    np.testing.assert_allclose(seen.gram, gram, rtol=1e-6)
    np.testing.assert_allclose(seen.norms, norms, rtol=1e-6)
    np.testing.assert_allclose(seen.cosines, gram / np.outer(norms, norms), rtol=1e-6)
    assert seen.conflicts.dtype == torch.bool
    assert seen.conflicts.tolist() == (gram < 0).tolist()
    np.testing.assert_allclose(seen.norm_before, np.linalg.norm(rows.sum(0)), rtol=1e-6)
    weights = seen.weights.numpy()
    assert weights.shape == (3,)
    if wrapper in FIXED_WEIGHTS:
        np.testing.assert_allclose(weights, FIXED_WEIGHTS[wrapper], rtol=1e-6)
    np.testing.assert_allclose(weights @ rows, parameter.grad, rtol=1e-5)
    np.testing.assert_allclose(seen.norm_after, parameter.grad.norm(), rtol=1e-5)
    assert seen.norm_before.shape == seen.norm_after.shape == ()


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_conflict_rate_runs_over_steps_and_absent_tasks(wrapper):
    options = {} if wrapper == "weighted-sum" else {"tasks": tuple("abcd")}
    parameter, optimizer = optimizer_on(WRAPPERS[wrapper], **options)
    # Turning the sign of a task turns its conflicts into agreements.
    steps = ["abc", "ab", "Ab", "c", "cb", "aB", "bc"]
    met, conflicted = np.zeros((4, 4)), np.zeros((4, 4))
    for names in steps:
        grads = {
            name.lower(): [(-1.0 if name.isupper() else 1.0) * x for x in GRADS[name.lower()]]
            for name in names
        }
        surgery(parameter, optimizer, grads)
        for name, grad in grads.items():
            for other, against in grads.items():
                i, j = "abcd".index(name), "abcd".index(other)
                met[i, j] += 1
                conflicted[i, j] += np.dot(grad, against) < 0
        rate = optimizer.diagnostics.conflict_rate.numpy()
        assert optimizer.diagnostics.task_names == tuple("abcd")
        assert rate.shape == (4, 4)
        for i, j in [(i, j) for i in range(4) for j in range(4) if i != j]:
            if met[i, j]:
                assert rate[i, j] == pytest.approx(conflicted[i, j] / met[i, j], abs=1e-6)
            else:
                assert math.isnan(rate[i, j])
    assert 0 < conflicted[0, 1] < met[0, 1]
    assert not met[:3, 3].any()


def test_tasks_of_a_surgery_come_in_the_order_of_their_names():
    parameter, optimizer = optimizer_on(PCGrad, tasks=tuple("abc"))
    surgery(parameter, optimizer, some("abc"))
    gram = optimizer.diagnostics.gram
    surgery(parameter, optimizer, some("cab"))
    assert optimizer.diagnostics.tasks == ("a", "b", "c")
    torch.testing.assert_close(optimizer.diagnostics.gram, gram)
    surgery(parameter, optimizer, some("ca"))
    assert optimizer.diagnostics.tasks == ("a", "c")
    torch.testing.assert_close(optimizer.diagnostics.gram, gram[[0, 2]][:, [0, 2]])


def test_names_register_as_they_are_met():
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, some("ab"))
    assert optimizer.diagnostics.task_names == ("a", "b")
    assert optimizer.diagnostics.conflict_rate[0, 1] == 1
    surgery(parameter, optimizer, some("abd"))
    seen = optimizer.diagnostics
    assert seen.task_names == ("a", "b", "d")
    rate = seen.conflict_rate
    assert rate[0, 1] == rate[1, 0] == 1
    assert rate[1, 2] == rate[2, 1] == 1
    assert rate[0, 2] == rate[2, 0] == 0


def test_heads_do_not_count_unless_all_is_in_scope():
    trunk, head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    for scope, first in (("shared", 5.0), ("all", 14.0)):
        base = torch.optim.SGD([trunk, head], lr=0.1)
        optimizer = PCGrad(base, scope=scope)
        for _ in range(3):
            optimizer.zero_grad()
            with optimizer.task("a"):
                (trunk @ torch.tensor([1.0, 2.0]) + 3.0 * head).sum().backward()
            with optimizer.task("b"):
                (trunk @ torch.tensor([-1.0, 0.0])).backward()
            optimizer.step()
            assert optimizer.diagnostics.gram.tolist() == [[first, -1.0], [-1.0, 1.0]]


def test_an_all_zero_gradient_conflicts_with_nobody():
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, {"a": [0.0] * 4, "b": GRADS["b"]})
    seen = optimizer.diagnostics
    assert not seen.conflicts.any()
    assert seen.conflict_rate[0, 1] == 0
    assert seen.norms[0] == 0


@pytest.mark.parametrize("scale", [1e-18, 1e-30])
def test_tiny_gradients_keep_their_cosines(scale):
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, some("abc"))
    cosines = optimizer.diagnostics.cosines
    surgery(parameter, optimizer, some("abc"), scale=scale)
    torch.testing.assert_close(optimizer.diagnostics.cosines, cosines, rtol=1e-5, atol=1e-6)


def test_non_finite_gradients_show():
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, {"a": [math.nan, 1.0, 1.0, 1.0], "b": GRADS["b"]})
    assert not optimizer.diagnostics.norm_before.isfinite()
    assert not optimizer.diagnostics.norm_after.isfinite()


def test_without_a_monitor_there_is_nothing_to_read():
    parameter, optimizer = optimizer_on(LossSum)
    surgery(parameter, optimizer, some("abc"))
    assert optimizer.diagnostics.tasks == ()
    with pytest.raises(ValueError, match="monitor"):
        _ = optimizer.diagnostics.gram


def test_rates_survive_a_checkpoint():
    parameter, optimizer = optimizer_on(PCGrad)
    for names in ("ab", "abc", "bd"):
        surgery(parameter, optimizer, some(names))
    again, resumed = optimizer_on(PCGrad)
    resumed.load_state_dict(optimizer.state_dict())
    for names in ("ab", "cd"):
        surgery(parameter, optimizer, some(names))
        surgery(again, resumed, some(names))
        np.testing.assert_array_equal(
            resumed.diagnostics.conflict_rate, optimizer.diagnostics.conflict_rate
        )
    assert resumed.diagnostics.task_names == optimizer.diagnostics.task_names


def test_summary_is_flat_and_on_the_host():
    parameter, optimizer = optimizer_on(PCGrad)
    assert optimizer.diagnostics.summary() == {}
    surgery(parameter, optimizer, some("abc"))
    seen = optimizer.diagnostics
    summary = seen.summary()
    assert all(type(value) is float for value in summary.values())
    assert summary["norm_before"] == pytest.approx(float(seen.norm_before))
    assert summary["norm_after"] == pytest.approx(float(seen.norm_after))
    for i, name in enumerate("abc"):
        assert summary[f"norm/{name}"] == pytest.approx(float(seen.norms[i]))
        assert summary[f"weight/{name}"] == pytest.approx(float(seen.weights[i]))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = "abc"[i] + "~" + "abc"[j]
        assert summary[f"cosine/{pair}"] == pytest.approx(float(seen.cosines[i, j]))
        assert summary[f"conflict_rate/{pair}"] == float(seen.conflicts[i, j])
    for i, name in enumerate("abc"):
        assert summary[f"norm_after/{name}"] == pytest.approx(float(seen.norms_after[i]))
    assert len(summary) == 2 + 3 * 3 + 2 * 3


def test_norms_after_projection_against_the_oracle():
    parameter, optimizer = optimizer_on(PCGrad, seed=3)
    surgery(parameter, optimizer, some("abcd"))
    order = projection_order(4, seed=3, step=0)
    rows = np.array(list(GRADS.values()))
    expected = [
        np.linalg.norm(project(rows, i, visits)[0]) for i, visits in enumerate(order.tolist())
    ]
    found = optimizer.diagnostics.norms_after
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found < optimizer.diagnostics.norms - 1e-3).any()
    parameter, optimizer = optimizer_on(WRAPPERS["loss-sum"])
    surgery(parameter, optimizer, some("ab"))
    with pytest.raises(ValueError, match="only PCGrad projects"):
        _ = optimizer.diagnostics.norms_after


@pytest.mark.parametrize("method", [PCGrad, WRAPPERS["loss-sum"]])
@pytest.mark.parametrize("num_steps", [1, 3])  # kept loose in the first step, then in rows
def test_groups_of_parameters_against_numpy(method, num_steps):
    sizes = {"a": (2, 3), "b": (64,), "c": (5,), "d": (64, 2)}
    model = nn.ParameterDict({name: torch.zeros(size) for name, size in sizes.items()})
    unused = nn.Parameter(torch.zeros(3))
    optimizer = method(torch.optim.SGD([*model.values(), unused], lr=0.1))
    groups = {"first": ["a", "b"], "ends": ["a", "d"], "nothing": []}
    optimizer.watch({name: [model[key] for key in keys] for name, keys in groups.items()})
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        grads = [{k: torch.randn(s, generator=generator) for k, s in sizes.items()} for _ in "xyz"]
        optimizer.zero_grad()
        for task, of_task in zip("xyz", grads, strict=True):
            with optimizer.task(task):
                sum((model[k] * g).sum() for k, g in of_task.items()).backward()
        optimizer.step()
    seen = optimizer.diagnostics
    assert seen.group_names == tuple(groups)
    for found, keys in zip(seen.group_grams, groups.values(), strict=True):
        rows = np.array(
            [np.concatenate([g[k].numpy().ravel() for k in keys] or [[]]) for g in grads]
        )
        np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-5, atol=1e-6)
    name = "cosine@ends/x~z"
    assert seen.summary()[name] == pytest.approx(float(seen.group_cosines[1, 0, 2]))
    assert seen.group_cosines[2].tolist() == [[0.0] * 3] * 3


def test_groups_are_watched_until_told_otherwise():
    parameter, optimizer = optimizer_on(PCGrad)
    optimizer.watch({"all": [parameter]})
    surgery(parameter, optimizer, some("ab"))
    np.testing.assert_allclose(
        optimizer.diagnostics.group_cosines[0], optimizer.diagnostics.cosines
    )
    optimizer.watch({})
    surgery(parameter, optimizer, some("ab"))
    with pytest.raises(ValueError, match=r"call optimizer\.watch"):
        _ = optimizer.diagnostics.group_cosines


def test_watching_what_the_optimizer_does_not_have_is_refused():
    parameter, optimizer = optimizer_on(PCGrad)
    other = nn.Parameter(torch.zeros(4))
    optimizer.watch({"own": [parameter]})
    for groups, error in (
        ({"other": [parameter, other]}, ValueError),
        ({"other": ["weight"]}, TypeError),
        ({1: [parameter]}, TypeError),
    ):
        with pytest.raises(error, match=r"^groups: must .*; ") as refusal:
            optimizer.watch(groups)
        assert "\n" not in str(refusal.value)
    surgery(parameter, optimizer, some("ab"))
    assert optimizer.diagnostics.group_names == ("own",)
    optimizer.add_param_group({"params": [other]})
    optimizer.watch({"both": [parameter, other], "one": parameter})
    surgery(parameter, optimizer, some("ab"))
    assert optimizer.diagnostics.group_names == ("both", "one")


def test_a_watched_group_that_was_given_up_is_refused_and_nothing_lost():
    parameter, other = (nn.Parameter(torch.zeros(4)) for _ in "ab")
    base = torch.optim.SGD([{"params": [parameter]}, {"params": [other]}], lr=0.1)
    optimizer = PCGrad(base)
    optimizer.watch({"other": [other]})
    del base.param_groups[1]
    with pytest.raises(ValueError, match=r"^groups: must hold parameters of this optimizer"):
        surgery(parameter, optimizer, some("ab"))
    optimizer.watch({})
    optimizer.step()
    gradients = np.array(list(some("ab").values()))
    found = optimizer.diagnostics
    np.testing.assert_allclose(found.gram, gradients @ gradients.T)


def test_plot_of_the_cosines():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, {1: GRADS["a"], "1": GRADS["b"], "c": GRADS["c"]})
    axes = optimizer.diagnostics.plot_cosines()
    try:
        (image,) = axes.get_images()
        np.testing.assert_allclose(image.get_array(), optimizer.diagnostics.cosines, rtol=1e-6)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "'1'", "c"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "'1'", "c"]
    finally:
        pyplot.close(axes.figure)


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, GRADS)
    with pytest.raises(ImportError, match=r"^plot_cosines\(\): .*; pip install matplotlib$"):
        optimizer.diagnostics.plot_cosines()


def test_its_repr_reads_nothing_from_the_device():
    parameter, optimizer = optimizer_on(PCGrad)
    assert "tasks=(), num_surgeries=0" in repr(optimizer.diagnostics)
    surgery(parameter, optimizer, GRADS)
    with Operations() as seen:
        shown = repr(optimizer.diagnostics)
    assert seen.number == 0
    assert f"tasks={tuple(GRADS)}, num_surgeries=1, num_skipped_steps=0" in shown


class Operations(TorchDispatchMode):
    """Counts the operations that the host asks for."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("method", [PCGrad, WRAPPERS["loss-sum"]], ids=["pcgrad", "loss-sum"])
@pytest.mark.parametrize("scope", ["shared", "all"])
@pytest.mark.parametrize("num_before", [0, 1])  # kept loose in the first step, then in rows
def test_absent_tasks_cost_no_operations(method, device, scope, num_before):
    num_tasks = 60

    def operations(present):
        trunk, part = (nn.Parameter(torch.zeros(3, device=device)) for _ in "ab")
        base = torch.optim.SGD([trunk, part], lr=0.1)
        optimizer = method(base, tasks=range(num_tasks), scope=scope)
        optimizer.watch({"trunk": [trunk]})
        for step in range(num_before + 1):
            optimizer.zero_grad()
            for task in present if step == num_before else range(num_tasks):
                with optimizer.task(task):  # every other task reaches the second parameter as well
                    (trunk.sum() + part.sum() * (task % 2) if task % 2 else trunk.sum()).backward()
            with Operations() as counted:
                optimizer.surgery()
                optimizer.diagnostics.state_dict()  # counts what still waits to be counted
        if device == "meta":
            return counted.number, 0
        with Operations() as read:
            optimizer.diagnostics.summary()
        return counted.number, read.number

    surgery_of_all, summary_of_all = operations(range(num_tasks))
    for present in (
        range(1, num_tasks),
        range(num_tasks - 1),
        range(num_tasks // 2),
        range(0, num_tasks, 2),
        range(1, num_tasks, 2),
        reversed(range(num_tasks)),
    ):
        in_surgery, in_summary = operations(list(present))
        assert in_surgery <= surgery_of_all + 20
        assert in_summary <= summary_of_all + 5
    assert summary_of_all < 100


def test_absent_tasks_leave_the_counts_of_the_others():
    """Any tasks in any order, in steps in which gradients are loose and in rows, against numpy."""
    names = list(range(7))
    generator = torch.Generator().manual_seed(0)
    trunk, part = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    optimizer = PCGrad(torch.optim.SGD([trunk, part], lr=0.1), tasks=names)
    met, conflicted = np.zeros((7, 7)), np.zeros((7, 7))
    for _ in range(12):
        present = torch.randperm(7, generator=generator)[
            : int(torch.randint(1, 8, (), generator=generator))
        ].tolist()
        grads = torch.randn(7, 5, generator=generator)
        grads[::2, 3:] = 0  # what every other task reaches
        optimizer.zero_grad()
        for task in present:
            with optimizer.task(task):
                loss = (trunk * grads[task, :3]).sum()
                (loss if task % 2 == 0 else loss + (part * grads[task, 3:]).sum()).backward()
        optimizer.surgery()
        here = sorted(present)
        if sum(task % 2 for task in here) < 2:
            grads[:, 3:] = 0  # reached by one task alone: not shared
        if len(here) < 2:
            grads[:] = 0
        gram = (grads @ grads.T).numpy()
        np.testing.assert_allclose(
            optimizer.diagnostics.gram, gram[np.ix_(here, here)], rtol=1e-5, atol=1e-6
        )
        met[np.ix_(here, here)] += 1
        conflicted[np.ix_(here, here)] += (gram < 0)[np.ix_(here, here)]
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(
                optimizer.diagnostics.conflict_rate, conflicted / met, rtol=1e-6
            )
    assert conflicted.sum() > 0


def test_every_number_of_a_summary_has_a_key_of_its_own():
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, {1: GRADS["a"], "1": GRADS["b"], "c": GRADS["c"]})
    seen = optimizer.diagnostics
    summary = seen.summary()
    assert len(summary) == 2 + 3 * 3 + 2 * 3
    assert [summary[f"norm/{name}"] for name in ("1", "'1'", "c")] == seen.norms.tolist()
    assert summary["cosine/1~'1'"] == pytest.approx(float(seen.cosines[0, 1]))
    assert summary["cosine/1~c"] == pytest.approx(float(seen.cosines[0, 2]))
    assert summary["cosine/'1'~c"] == pytest.approx(float(seen.cosines[1, 2]))


@pytest.mark.parametrize(
    "names",
    [
        (1, "1", "'1'"),
        ("a~b", "c", "a", "b~c"),
        (None, "None"),
        (1.5, "1.5"),
        ((1, "2"), "(1, '2')"),
    ],
)
def test_names_that_look_alike(names):
    parameter, optimizer = optimizer_on(PCGrad)
    surgery(parameter, optimizer, dict(zip(names, GRADS.values(), strict=False)))
    num, summary = len(names), optimizer.diagnostics.summary()
    assert len(summary) == 2 + 3 * num + num * (num - 1)
    assert optimizer.diagnostics.summary().keys() == summary.keys()


def test_recorded_by_hand():
    seen = Diagnostics()
    gram = torch.tensor([[4.0, -2.0], [-2.0, 9.0]], dtype=torch.float64)
    seen.record(["x", "y"], [0, 2], ["x", "z", "y"], gram, torch.tensor([1.0, 2.0]))
    assert seen.cosines[0, 1].item() == pytest.approx(-1 / 3)
    assert seen.norm_before.item() == 3.0
    assert seen.norm_after.item() == pytest.approx(math.sqrt(32.0))
    assert seen.conflict_rate[0, 2] == 1
    assert seen.conflict_rate[0, 1].isnan()
