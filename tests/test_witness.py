"""Warnings of steps without surgery and of gradients read too early: when, where, what they say."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum

HERE = Path(__file__).name


def methods(**options):
    """Each Gram method around SGD, with two parameters that all losses reach."""
    for make in (PCGrad, lambda base, **o: MultiTaskOptimizer(base, ones, **o)):
        yield setting(make, **options)


def setting(make=PCGrad, **options):
    parameters = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))]
    return parameters, make(torch.optim.SGD(parameters, lr=0.1), **options)


def ones(gram):
    return torch.ones(len(gram))


def loss(parameters, factor):
    return factor * sum(parameter.sum() for parameter in parameters)


def block(optimizer, name, parameters, factor=1.0):
    with optimizer.task(name):
        loss(parameters, factor).backward()


def plain(parameters, optimizer):
    loss(parameters, 1.0).backward()


def forward_inside(parameters, optimizer):
    for name in ("a", "b"):
        with optimizer.task(name):
            found = loss(parameters, 1.0)
        found.backward()


def without_with(parameters, optimizer):
    for name in ("a", "b"):
        optimizer.task(name)
        loss(parameters, 1.0).backward()


def one_outside(parameters, optimizer):
    block(optimizer, "a", parameters)
    loss(parameters, 2.0).backward()


def one_task(parameters, optimizer):
    block(optimizer, "a", parameters)


def one_call_each(parameters, optimizer):
    for factor in (1.0, 2.0):
        optimizer.backward([loss(parameters, factor)])


REASONS = {
    plain: "every backward ran outside the tasks' blocks; run each task's backward in `with",
    forward_inside: "no gradient was made inside a block, the backwards ran outside; call backward",
    without_with: r"optimizer\.task\(name\) was called, but no block was entered; write `with",
    one_outside: "task 'a' alone had its backward in a block, other gradients were made outside; ",
    one_task: r"the step had one task only, 'a'; run a block of each task before step\(\)",
    one_call_each: "surgery ran 2 times with one task each time; give the losses of all tasks to ",
}
every_reason = pytest.mark.parametrize("make", REASONS, ids=lambda make: make.__name__)


def one_step(make, parameters, optimizer):
    optimizer.zero_grad()
    make(parameters, optimizer)
    optimizer.step()


def steps(num_steps, make, parameters, optimizer):
    for _ in range(num_steps):
        one_step(make, parameters, optimizer)


@every_reason
def test_a_step_without_surgery_warns_once_at_the_users_line(make):
    for parameters, optimizer in methods():
        pattern = f"{type(optimizer).__name__}: a step without surgery.*{REASONS[make]}"
        with pytest.warns(UserWarning, match=pattern) as caught:
            steps(3, make, parameters, optimizer)
        assert [Path(warning.filename).name for warning in caught] == [HERE]
        assert str(caught[0].message).count("\n") == 0


@every_reason
def test_nothing_is_said_where_it_is_silenced_or_a_sum(make):
    for wrapper in (lambda base: PCGrad(base, warn=False), LossSum):
        one_step(make, *setting(wrapper))
    if make is not one_call_each:
        one_step(make, *setting(lambda base: WeightedSum(base, {"a": 1.0, "b": 2.0})))


def test_two_tasks_once_do_not_excuse_later_steps():
    for parameters, optimizer in methods():
        optimizer.backward([loss(parameters, 1.0), loss(parameters, 2.0)])
        optimizer.step()
        with pytest.warns(UserWarning, match="every backward ran outside"):
            one_step(plain, parameters, optimizer)


def test_one_loss_in_a_step_of_the_plain_sum_after_two():
    parameters, optimizer = setting(start_step=5)
    optimizer.backward([loss(parameters, 1.0), loss(parameters, 2.0)])
    optimizer.step()
    optimizer.backward([loss(parameters, 1.0)])
    with pytest.warns(UserWarning, match="the step had one task only, 0"):
        optimizer.step()


def test_a_closure_is_watched():
    parameters, optimizer = setting(
        lambda base: PCGrad(torch.optim.LBFGS(base.param_groups[0]["params"], max_iter=2))
    )

    def closure(names):
        optimizer.zero_grad()
        for name in names:
            block(optimizer, name, parameters)
        return loss(parameters, 1.0).detach()

    optimizer.step(lambda: closure("ab"))
    with pytest.warns(UserWarning, match="the step had one task only, 'b'") as caught:
        optimizer.step(lambda: closure("b"))
    assert len(caught) == 1


@pytest.mark.parametrize("options", [{"start_step": 5}, {"every": 4}, {"on_nonfinite": "raise"}])
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_steps_between_surgeries_tell_their_tasks_too(options, num_tasks):
    parameters, optimizer = setting(**options)
    if "every" in options:
        optimizer.backward([loss(parameters, 1.0), loss(parameters, 2.0)])
        optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.zero_grad()
            for name in range(num_tasks):
                block(optimizer, name, parameters)
            optimizer.step()
    said = ["the step had one task only, 0;" in str(warning.message) for warning in caught]
    assert said == [True] * (num_tasks == 1)


def accumulated(parameters, optimizer):
    for name in ("a", "a", "b", "a"):
        block(optimizer, name, parameters)


def with_a_penalty(parameters, optimizer):
    loss(parameters, 0.1).backward()
    accumulated(parameters, optimizer)


def with_features(parameters, optimizer):
    feature = 2.0 * parameters[0]
    optimizer.feature_backward([feature.sum(), -feature[0]], feature)


def with_nothing(parameters, optimizer):
    loss(parameters, 1.0).backward()
    optimizer.zero_grad(set_to_none=False)


def twice(parameters, optimizer):
    accumulated(parameters, optimizer)
    optimizer.step()  # and again, with the same gradient


@pytest.mark.parametrize("make", [accumulated, with_a_penalty, with_features, with_nothing, twice])
def test_no_false_alarm(make):
    for parameters, optimizer in methods():
        steps(2, make, parameters, optimizer)


def test_a_single_declared_task_is_meant():
    for parameters, optimizer in methods(tasks=["a"]):
        one_step(one_task, parameters, optimizer)


@pytest.mark.parametrize("num_steps", [19, 20])
def test_a_late_task_is_named_once(num_steps):
    parameters, optimizer = setting()
    for step in range(num_steps + 2):
        optimizer.zero_grad()
        late = [] if step < num_steps else ["aa"]
        if late and num_steps == step == 20:
            with pytest.warns(
                UserWarning, match=r"task 'aa' is new after 20 .*\['a', 'b'\]"
            ) as found:
                block(optimizer, "aa", parameters)
            assert len(found) == 1
            late = []
        for name in ["a", "b", *late]:
            block(optimizer, name, parameters)
        optimizer.step()
    assert optimizer.tasks == ("a", "b", "aa")


# Gradients read while they are kept apart.


READERS = {
    "clip_grad_norm_": lambda p: nn.utils.clip_grad_norm_(p, 0.001),
    "clip_grad_norm_, foreach": lambda p: nn.utils.clip_grad_norm_(p, 0.001, foreach=True),
    "clip_grad_value_": lambda p: nn.utils.clip_grad_value_(p, 0.001),
    "a logger": lambda p: [q.grad.norm().item() for q in p if q.grad is not None],
    "an older logger": lambda p: [q.grad.data.norm() for q in p if q.grad is not None],
    "a print": lambda p: [str(q.grad) for q in p],
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_reading_between_the_blocks_and_the_step_warns_once(read):
    for parameters, optimizer in methods():
        twins, twin = setting(type(optimizer) if type(optimizer) is PCGrad else LossSum)
        pattern = r"\.grad was read .*; call optimizer\.surgery\(\) first"
        with pytest.warns(UserWarning, match=pattern) as caught:
            steps(2, lambda p, o: (accumulated(p, o), read(p)), parameters, optimizer)
        assert [Path(warning.filename).name for warning in caught] == [HERE]
        steps(2, accumulated, twins, twin)  # and nothing else comes of it
        assert all(torch.equal(p, q) for p, q in zip(parameters, twins, strict=True))


@pytest.mark.parametrize("surgery", [True, False])
def test_nobody_is_warned_who_reads_after_surgery_or_is_silent(surgery):
    parameters, optimizer = setting(warn=surgery)
    accumulated(parameters, optimizer)
    if surgery:
        optimizer.surgery()
    norm = nn.utils.clip_grad_norm_(parameters, 0.001)
    assert norm.item() == pytest.approx(4 * 3**0.5 if surgery else 0.0)
    if not surgery:
        assert all(parameter.grad is None for parameter in parameters)


def test_what_autograd_adds_outside_the_blocks_stays():
    """By hand: tasks 1 and 2 agree, their gradients are 1 and 2 everywhere, that outside is 0.5."""
    parameters, optimizer = setting()
    block(optimizer, "a", parameters, 1.0)
    loss(parameters, 0.5).backward()
    block(optimizer, "b", parameters, 2.0)
    loss(parameters, 0.25).backward(create_graph=False)
    optimizer.surgery()
    for parameter in parameters:
        assert type(parameter.grad) is torch.Tensor
        assert torch.equal(parameter.grad, torch.full_like(parameter, 3.75))


def test_a_copy_of_the_model_and_of_the_optimizer_goes_on():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    copy.deepcopy(nn.ParameterList(parameters))
    optimizer.step()
    optimizer.zero_grad()
    one_step(accumulated, *(lambda o: (o.param_groups[0]["params"], o))(copy.deepcopy(optimizer)))


def test_no_memory_for_large_parameters():
    large = nn.Parameter(torch.zeros(1 << 17))
    optimizer = PCGrad(torch.optim.SGD([large], lr=0.1))
    accumulated([large], optimizer)
    assert large.grad is None
