"""A gradient that is not finite on one process: what all do, against one process that knows it."""

import copy
import functools
from unittest import mock

import pytest
import torch
import torch.distributed as dist

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
    message,
    methods,
    own_batches,
    sgd,
    train_step,
    uneven,
    watched,
)

NAN = float("nan")


def built(name, on_nonfinite, group=True):
    model = Model()
    options = {"process_group": dist.group.WORLD} if group else {}
    wrapper = functools.partial(WRAPPERS[name], on_nonfinite=on_nonfinite, **options)
    return model, watched(wrapper(base=sgd(model)), model)


def failing(step, num_processes):
    """The task that is not finite in a step, and the one process that finds it so."""
    return {1: ("a", 0), 2: ("b", num_processes - 1)}.get(step, (None, None))


@check
def a_skipped_task_is_zero_on_all_processes():
    me, num = dist.get_rank(), dist.get_world_size()
    for name in dict.fromkeys([*methods(), "loss-sum"]):
        if name == "custom" or name.startswith("sketch"):  # divides by norms; keeps none apart
            continue
        model, optimizer = built(name, "skip_task")
        joined = Joined(WRAPPERS[name])
        for step in range(5):
            task, process = failing(step, num)
            joined.step(step, without=task)
            optimizer.zero_grad()
            blocks(model, optimizer, own_batches(step, uneven, me, num))
            if me == process:  # what it found before is finite
                blocks(model, optimizer, {task: batch_of(task, step, me, NAN)})
            optimizer.step()
            try:
                assert_same(model, optimizer, joined)
            except AssertionError as error:
                raise AssertionError(f"{name}, step {step}: {error}") from error
        assert optimizer.diagnostics.num_nonfinite.tolist() == [1, 1, 0], name
        assert_equal_everywhere(model, optimizer)


@check
def blocks_after_a_surgery_may_fail_as_well():
    me, num = dist.get_rank(), dist.get_world_size()
    for name in ("pcgrad", "loss-sum"):
        model, optimizer = built(name, "skip_task")
        alone, expected = built(name, "propagate", group=False)
        parts = [(("a", "b"), "a"), (("b", "c"), "c")]
        for number, (tasks, bad) in enumerate(parts):
            weights = {task: NAN if task == bad and me == number else 1.0 for task in tasks}
            blocks(model, optimizer, {t: batch_of(t, number, me, w) for t, w in weights.items()})
            optimizer.surgery()
            for task in tasks:
                with expected.task(task):
                    for process in range(num):
                        batch = batch_of(task, number, process, 0.0 if task == bad else 1 / num)
                        alone(task, batch).backward()
            expected.surgery()
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, msg=name)
        assert optimizer.diagnostics.num_nonfinite.tolist() == [1, 0, 1]


@check
def an_error_is_raised_on_all_processes():
    me, num = dist.get_rank(), dist.get_world_size()
    for name in ("pcgrad", "every", "loss-sum", "weighted"):
        model, optimizer = built(name, "raise")
        joined = Joined(WRAPPERS[name], even)
        joined.step(0)
        train_step(model, optimizer, own_batches(0, even, me, num))
        before = copy.deepcopy(model.state_dict())
        batches = {task: batch_of(task, 1, me) for task in TASKS if me or task != "c"}
        if me == num - 1:
            batches["b"] = batch_of("b", 1, me, float("inf"))
        for call in (optimizer.surgery, optimizer.step):
            if call == optimizer.step:  # and without a block on the last but one
                batches = {} if me == num - 2 else batches
            optimizer.zero_grad()
            blocks(model, optimizer, batches)
            texts = [None] * num
            dist.all_gather_object(texts, message(FloatingPointError, call))
            assert len(set(texts)) == 1, texts
            assert texts[0].startswith("task 'b': gradients must be finite"), texts
            assert message(FloatingPointError, optimizer.step) == texts[0]  # until zero_grad()
        losses = {task: model(task, batch) for task, batch in batches.items()}
        optimizer.zero_grad()
        backward = functools.partial(optimizer.backward, losses)
        assert message(FloatingPointError, backward) == texts[0]
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), name
        joined.step(2)
        train_step(model, optimizer, own_batches(2, even, me, num))
        assert_same(model, optimizer, joined)
        assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 5, 0]


@check
def features_that_are_not_finite_are_so_for_all():
    me, num = dist.get_rank(), dist.get_world_size()
    inputs = torch.randn(6 * num, 4, generator=torch.Generator().manual_seed(5))
    targets = torch.stack([inputs.sum(1), -inputs.sum(1), inputs[:, 0]], dim=1)

    def losses_of(model, mine, factors):
        features = model.trunk(inputs[mine])
        outputs = torch.cat([model.heads[task](features) for task in TASKS], dim=1)
        losses = (outputs - targets[mine]).square().mean(0).unbind()
        return [loss * factor for loss, factor in zip(losses, factors, strict=True)], features

    mine = slice(6 * me, 6 * me + 6)
    (model, optimizer), (alone, expected) = (
        built("pcgrad", "skip_task"),
        built("pcgrad", "propagate", group=False),
    )
    for step in range(3):
        bad = step == 1
        for network, stepper, rows, factor in (
            (model, optimizer, mine, NAN if bad and me == 0 else 1.0),
            (alone, expected, slice(None), 0.0 if bad else 1.0),
        ):
            stepper.zero_grad()
            stepper.feature_backward(*losses_of(network, rows, [1.0, factor, 1.0]))
            stepper.step()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 1, 0]
    torch.testing.assert_close(optimizer.diagnostics.gram, expected.diagnostics.gram)
    assert_equal_everywhere(model, optimizer)

    model, optimizer = built("pcgrad", "raise")
    given = losses_of(model, mine, [1.0, NAN if me == num - 1 else 1.0, 1.0])
    backward = functools.partial(optimizer.feature_backward, *given)
    text = message(FloatingPointError, backward)
    assert text.startswith("task 'b'")
    assert all(p.grad is None for p in model.parameters())
    optimizer.feature_backward(*losses_of(model, mine, [1.0, 1.0, 1.0]))
    optimizer.step()
    assert_equal_everywhere(model, optimizer)


@check
def one_non_finite_gradient_skips_the_step_everywhere():
    me = dist.get_rank()
    model, optimizer = built("pcgrad", "skip_step")
    for step in range(3):
        before = copy.deepcopy(model.state_dict())
        weight = NAN if step == 1 and me == 0 else 1.0
        train_step(model, optimizer, {task: batch_of(task, step, me, weight) for task in TASKS})
        changed = not torch.equal(before["scale"], model.scale.detach())
        assert changed == (step != 1)
    assert optimizer.diagnostics.num_skipped_steps == 1
    assert optimizer.diagnostics.num_nonfinite.tolist() == [1, 1, 1]
    assert_equal_everywhere(model, optimizer)


@check
def nothing_is_read_in_a_block_and_no_message_is_added():
    me = dist.get_rank()
    calls = {}
    for policy in ("propagate", "skip_task", "raise"):
        model, optimizer = built("pcgrad", policy)
        for step in range(2):
            optimizer.zero_grad()
            with pytest.MonkeyPatch.context() as patch:
                for read in ("__bool__", "__int__", "__float__", "item", "tolist"):
                    patch.setattr(torch.Tensor, read, mock.Mock(side_effect=AssertionError(read)))
                blocks(model, optimizer, own_batches(step, even, me, dist.get_world_size()))
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
                optimizer.step()
        calls[policy] = all_reduce.call_count
    assert len(set(calls.values())) == 1, calls
