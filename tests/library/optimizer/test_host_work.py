"""Operations and calls of a step on a small network, counted, against those of a plain loop."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradsurgery
from gradsurgery import LossSum, PCGrad

PACKAGE = str(Path(gradsurgery.__file__).parent)
NUM_TASKS = 3


class Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of_ours(counted):
    """Counts calls of our own functions; newer Pythons have no frame for a comprehension."""

    def profile(frame, event, argument):
        is_ours = frame.f_code.co_filename.startswith(PACKAGE)
        if event == "call" and is_ours and not frame.f_code.co_name.startswith("<"):
            counted.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def training(wrap=None, num_tasks=NUM_TASKS):
    """A step of a network with 22,000 shared parameters, and a head for each task."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(39, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
    heads = nn.ModuleList(nn.Linear(128, 1) for _ in range(num_tasks))
    inputs = [torch.randn(4, 39) for _ in range(num_tasks)]
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.01)
    if wrap is not None:
        optimizer = wrap(optimizer)

    def loss(task):
        return (heads[task](trunk(inputs[task])) - (-1) ** task).square().mean()

    def step():
        optimizer.zero_grad()
        for task in range(num_tasks):
            if wrap is None:
                loss(task).backward()
            else:
                with optimizer.task(task):
                    loss(task).backward()
        optimizer.step()

    for _ in range(3):  # the rows have their places then
        step()
    return step


def operations(step):
    with Operations() as counted:
        step()
    return counted.number


def test_loss_sum_adds_no_operation():
    assert operations(training(LossSum)) == operations(training())


def test_operations_of_pcgrad_beyond_those_of_a_plain_loop():
    assert operations(training(PCGrad)) - operations(training()) <= 44


def test_each_further_task_costs_its_copy_and_what_autograd_takes():
    # Four gradients begin anew instead of being added to, the two of its head are made ours, and
    # one operation copies the others.
    plain, ours = ([operations(training(w, n)) for n in (3, 6)] for w in (None, PCGrad))
    of_task = (ours[1] - ours[0] - (plain[1] - plain[0])) / 3
    assert of_task <= 3


@pytest.mark.parametrize(("wrap", "most"), [(LossSum, 95), (PCGrad, 520)])
def test_calls_of_a_step(wrap, most):
    step, counted = training(wrap), []
    with calls_of_ours(counted):
        step()
    assert 0 < len(counted) <= most
