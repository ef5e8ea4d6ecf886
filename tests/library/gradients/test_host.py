"""Rows in the host's memory against ordinary ones: blocks, on a CPU that counts as away."""

import copy

import pytest
import torch

from gradsurgery import PCGrad
from gradsurgery.gradients import host, layout
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.rows import Units
from gradsurgery.kernels import blocked, reference
from tests.library.methods.table import GRAM_METHODS
from tests.library.optimizer.test_sketched import PLANS, TASKS, Model, numbers, sgd, trained

pytestmark = pytest.mark.usefixtures("poisoned_empty", "far_cpu")


@pytest.fixture
def far_cpu(monkeypatch):
    """Blocks of 2^15 columns, and a CPU whose memory is another than the host's."""
    monkeypatch.setattr(layout, "is_away", lambda device: True)
    monkeypatch.setattr(host, "_COLUMNS", 1 << 15)


def parameters_of(sizes):
    return [torch.nn.Parameter(torch.zeros(size)) for size in sizes]


def grads_of(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    return [(p, torch.randn(p.shape, generator=generator)) for p in parameters]


SIZES = [(1 << 15, 1 << 15), (40_000, 3, 70_001, 640), (5, 7), (200_000,), (0, 33_000, 0)]


@pytest.mark.parametrize("kernels", [reference, blocked])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("by_tensor", [False, True])
def test_the_passes_by_blocks_are_those_over_rows(sizes, kernels, by_tensor):
    """The update to the last bit, and the Gram matrix but for the order of its totals; but for the
    kernels of a CPU, which never meet host rows, and sum a row by its length."""
    parameters = parameters_of(sizes)
    units = Units([p] for p in parameters) if by_tensor else Units()
    found = []
    for on_host in (False, True):
        buffer = GradientBuffer(on_host=on_host)
        for step in range(3):
            for task in range(3):
                for half in range(2):  # a second backward adds
                    buffer.capture(
                        task, grads_of(parameters, 10 * step + 2 * task + half), copy=True
                    )
            buffer.settle()
            grams = buffer.grams(kernels.gram_matrices, units, alone=False)
            weights = torch.arange(1.0, 1 + 3 * units.number).view(-1, 3)
            update = buffer.combine(kernels.combine_segments, units, weights)
            found.append((grams, [update[p].clone() for p in parameters]))
            buffer.clear()
        assert {type(rows) is host.HostRows for rows in buffer._layout.row_sets} == {on_host}
    for (gram, update), (of_host, by_blocks) in zip(found[:3], found[3:], strict=True):
        goes_by_length = kernels is blocked
        rtol = 1e-6 if goes_by_length else 1e-13
        torch.testing.assert_close(of_host, gram, rtol=rtol, atol=1e3 * rtol)
        if goes_by_length:
            torch.testing.assert_close(by_blocks, update, rtol=1e-6, atol=1e-5)
        else:
            assert all(map(torch.equal, by_blocks, update))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_no_more_than_blocks_is_on_the_device(monkeypatch, sizes):
    parameters = parameters_of(sizes)
    blocks = []
    monkeypatch.setattr(
        host.Road, "await_block", lambda self, block, ready: blocks.append(block) or block
    )
    buffer = GradientBuffer(on_host=True)
    for step in range(2):
        for task in range(3):
            buffer.capture(task, grads_of(parameters, step + task), copy=False)
        buffer.settle()
        buffer.grams(reference.gram_matrices, Units(), alone=False)
        buffer.clear()
    columns = [block.shape[1] for block in blocks]
    assert sum(columns) == sum(sizes)
    assert max(columns) < 2 << 15
    assert len(columns) == max(1, sum(sizes) >> 15)


@pytest.mark.parametrize("method", GRAM_METHODS)
def test_every_method_comes_to_the_same(method):
    rows, _ = trained(GRAM_METHODS[method])
    found, optimizer = trained(GRAM_METHODS[method], buffer_device="cpu")
    assert torch.equal(found, rows)
    assert optimizer._step.buffer.num_bytes > 0


@pytest.mark.parametrize(
    "options",
    [{"scope": "all"}, {"granularity": "tensor"}, {"granularity": "group"}, {"every": 2},
     {"on_nonfinite": "skip_task"}, {"buffer_dtype": torch.float32}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("plan", PLANS)
def test_options_and_absent_tasks_come_to_the_same(options, plan):
    found = []
    for device in (None, "cpu"):
        model = Model()
        optimizer = PCGrad(sgd(model), tasks=TASKS, buffer_device=device, **options)
        for step, tasks in enumerate([*PLANS[plan], TASKS]):
            optimizer.zero_grad()
            for part in range(2):
                losses = model.losses(step + 20 * part, tasks, same_inputs=False)
                for task, loss in losses.items():
                    with optimizer.task(task):
                        loss.backward()
            optimizer.step()
        found.append(numbers(model))
    assert torch.equal(*found)


def test_gradients_that_were_handed_out_are_kept():
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, buffer_device="cpu")
    kept = []
    for step in range(4):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        kept += [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        optimizer.step()
    assert all(torch.equal(grad, was) for grad, was in kept)


def test_copies_and_checkpoints_go_on_alike():
    model = Model()
    optimizer = PCGrad(sgd(model), tasks=TASKS, buffer_device="cpu")
    optimizer.backward(model.losses(0))
    optimizer.step()
    other, copied = copy.deepcopy((model, optimizer))
    again = Model()
    again.load_state_dict(model.state_dict())
    resumed = PCGrad(sgd(again), tasks=TASKS, buffer_device="cpu")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, of_each in ((model, optimizer), (other, copied), (again, resumed)):
        of_each.zero_grad()
        of_each.backward(each.losses(1))
        of_each.step()
        assert torch.equal(numbers(each), numbers(model))
        assert of_each._step.buffer.on_host


@pytest.mark.parametrize("device", ["cuda", 0, torch.device("meta")])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=r'^buffer_device: must be None or "cpu", got'):
        PCGrad(sgd(Model()), buffer_device=device)


def test_sketches_have_no_rows_to_be_moved():
    with pytest.raises(ValueError, match=r"^buffer_device: must be left out where memory='sketch'"):
        PCGrad(sgd(Model()), buffer_device="cpu", memory="sketch")
