"""Warnings of steps without surgery: when and what they say; `.grad` read, against surgery()."""

import copy
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.optimizer.seal import Seal

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
    "NumPy": lambda p: [np.asarray(q.grad) for q in p],
    "a copy": lambda p: copy.deepcopy([q.grad for q in p]),
    "torch.save": lambda p: torch.save([q.grad for q in p], io.BytesIO()),
    "an edit in place": lambda p: p[0].grad.mul_(0.5),
    "an item": lambda p: p[0].grad.__setitem__(0, 7.0),
    "other data": lambda p: setattr(p[0].grad, "data", torch.ones(2)),
    "zeros": lambda p: nn.ParameterList(p).zero_grad(set_to_none=False),
    "replaced": lambda p: setattr(p[0], "grad", p[0].grad * 0.5),
    "in inference mode": torch.inference_mode()(lambda p: p[0].grad.sum().item()),
    "C++": lambda p: without_torch_function(p[0].grad.sum),
}


def without_torch_function(call):
    with torch._C.DisableTorchFunctionSubclass():
        return call()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("warn", [True, False])
def test_reading_between_the_blocks_and_the_step_performs_surgery(read, warn):
    for parameters, optimizer in methods(warn=warn):
        twins, twin = setting(
            PCGrad if type(optimizer) is PCGrad else lambda b: MultiTaskOptimizer(b, ones)
        )
        for _ in range(3):
            accumulated(parameters, optimizer)
            read(parameters)
            accumulated(twins, twin)
            twin.surgery()
            read(twins)
            for parameter, other in zip(parameters, twins, strict=True):
                assert type(parameter.grad) is torch.Tensor
                assert torch.equal(parameter.grad, other.grad)
            for one in (optimizer, twin):
                one.step()
                one.zero_grad()
            assert all(torch.equal(p, q) for p, q in zip(parameters, twins, strict=True))


def test_clipping_between_the_blocks_and_the_step():
    """By hand: tasks 1 and 3 agree, so that the gradient is 4 everywhere and its norm 4 sqrt(3)."""
    parameters, optimizer = setting()
    before = [parameter.detach().clone() for parameter in parameters]
    block(optimizer, "a", parameters, 1.0)
    block(optimizer, "b", parameters, 3.0)
    norm = nn.utils.clip_grad_norm_(parameters, 0.001)
    assert norm.item() == pytest.approx(4 * 3**0.5)
    optimizer.step()
    moved = torch.cat([p.detach() - q for p, q in zip(parameters, before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 0.001, rel=1e-3)


def test_the_base_alone_steps_along_the_combined_gradient():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    optimizer.base.step()
    assert parameters[1].item() == pytest.approx(3.0 - 0.1 * 4.0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_were_there_before_do_not_hide_those_kept_apart(set_to_none):
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none)
    loss(parameters, 0.5).backward()
    accumulated(parameters, optimizer)
    loss(parameters, 0.25).backward()
    assert nn.utils.clip_grad_norm_(parameters, 1e9).item() == pytest.approx(4.75 * 3**0.5)


def test_shape_type_and_place_are_told_without_surgery():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    for parameter in parameters:
        grad = parameter.grad
        assert grad.shape == parameter.shape == grad.size()
        assert (grad.dtype, grad.device, grad.layout) == (
            torch.float32,
            parameter.device,
            torch.strided,
        )
        assert (grad.numel(), grad.dim(), len(grad)) == (parameter.numel(), 1, len(parameter))
        assert not any([grad.is_sparse, grad.requires_grad, grad.is_cuda, grad.is_complex()])
        assert grad.stride() == parameter.stride()
        assert grad in {grad: 1}
        assert without_torch_function(grad.data_ptr) == 0  # there is no memory
    assert optimizer.diagnostics.num_surgeries == 0


def test_who_keeps_a_gradient_keeps_what_surgery_made_of_it():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    objects = [id(parameter.grad) for parameter in parameters]
    kept = parameters[0].grad
    optimizer.step()
    for _ in range(2):
        optimizer.zero_grad()
        block(optimizer, "a", parameters, 5.0)
        block(optimizer, "b", parameters, 6.0)
        assert kept.tolist() == [4.0, 4.0]
        assert parameters[0].grad is not kept
        assert id(parameters[1].grad) == objects[1]  # used again, since nobody keeps it
        assert parameters[0].grad.tolist() == [11.0, 11.0]
        optimizer.step()


def test_a_gradient_that_was_kept_and_dropped_says_so():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    kept = parameters[0].grad
    optimizer.zero_grad()
    accumulated(parameters, optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match=r"^\.grad: must be read before its step is over, got .*$"):
        kept.norm()


def test_what_is_put_into_grad_meanwhile_takes_the_place_of_the_tasks_gradients():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    parameters[0].grad = None
    parameters[1].grad = torch.tensor([9.0])
    block(optimizer, "a", parameters, 0.5)
    optimizer.surgery()
    assert parameters[0].grad.tolist() == [0.5, 0.5]
    assert parameters[1].grad.tolist() == [9.5]


def test_one_gradient_is_dropped_and_another_read():
    parameters, optimizer = setting()
    accumulated(parameters, optimizer)
    parameters[0].grad = None
    assert parameters[1].grad.mul_(0.5).tolist() == [2.0]
    optimizer.step()
    assert parameters[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("further", ["block", "backward"])
def test_a_task_after_a_reading_is_warned_of_once(further):
    parameters, optimizer = setting()

    def go_on():
        if further == "block":
            block(optimizer, "c", parameters)
        else:
            optimizer.backward({"c": loss(parameters, 1.0)})

    accumulated(parameters, optimizer)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    with pytest.warns(UserWarning, match="read .* before the block of task 'c'") as caught:
        go_on()
    assert [Path(warning.filename).name for warning in caught] == [HERE]
    for _ in range(2):
        optimizer.zero_grad()
        accumulated(parameters, optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        go_on()


@pytest.mark.parametrize("meanwhile", ["step", "zero_grad", "surgery"])
def test_no_task_is_late_in_the_next_step(meanwhile):
    parameters, optimizer = setting()
    for _ in range(2):
        accumulated(parameters, optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        getattr(optimizer, meanwhile)()


def test_two_wrappers_of_the_same_parameters():
    parameters, optimizer = setting()
    other = PCGrad(torch.optim.SGD(parameters, lr=0.1))
    accumulated(parameters, optimizer)
    accumulated(parameters, other)
    other.surgery()
    assert parameters[1].grad.tolist() == [8.0]


@pytest.mark.parametrize("speaks", [True, False])
def test_where_others_take_part_in_surgery_a_reader_is_told(speaks):
    said = []
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    seal = Seal(pytest.fail, said.append, speaks=speaks, is_alone=False)
    buffer = GradientBuffer()
    for task in range(2):
        buffer.capture(task, [(p, torch.ones_like(p)) for p in parameters], copy=False)
    seal.lay(buffer, "apart")
    assert parameters[0].grad is None
    if not speaks:
        assert parameters[1].grad is None
        return
    with pytest.raises(ValueError, match=r"call optimizer\.surgery\(\) before unscale_\(\)"):
        torch._amp_foreach_non_finite_check_and_unscale_(
            [parameters[1].grad], torch.zeros(1), torch.ones(1)
        )
    for _ in range(2):
        assert nn.utils.clip_grad_norm_(parameters, 1.0) == 0
    assert len(said) == 1
    assert said[0].endswith("call optimizer.surgery() first")


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
