"""Gradient accumulation: micro-batches and drawn batches against one large batch for each task."""

from collections import Counter
from functools import partial
from itertools import islice

import pytest
import torch

from gradsurgery import MultiTaskLoader, PCGrad, Proportional
from tests.guides.guide import (
    TASKS,
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    losses_of,
    run,
    train_by_hand,
)

GUIDE = "accumulation.md"
MICRO = "Micro-batches"
DRAWN = "Tasks drawn by a sampler"
DTYPES = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-4)}
# Sizes of each task's micro-batches in each step: uneven, and at times none.
SIZES = [
    {"a": [3, 5], "b": [4], "c": [1, 2, 5]},
    {"a": [8], "b": [], "c": [2, 2]},
    {"a": [], "b": [1, 7, 3], "c": [6]},
    {"a": [2, 2, 2, 2], "b": [5, 1], "c": []},
    {"a": [], "b": [], "c": [4, 4]},
    {"a": [1, 6], "b": [3], "c": [2, 3]},
]


def joined(parts):
    inputs, targets = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def micro_batches(dtype):
    """Steps of micro-batches, and the same as one large batch for each task that is there."""
    small = [
        {
            name: [batch_of(name, 10 * step + i, size, dtype) for i, size in enumerate(sizes)]
            for name, sizes in by_task.items()
        }
        for step, by_task in enumerate(SIZES)
    ]
    large = [{name: joined(parts) for name, parts in by_task.items() if parts} for by_task in small]
    return small, large


def train(loader, dtype, heading="Rules that hold everywhere", **names):
    """The plain loop of the index, without clipping, or another."""
    clip = "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    guide, edits = ("index.md", {clip: ""}) if heading.startswith("Rules") else (GUIDE, None)
    model = ThreeTasks().to(dtype)
    space = run(guide, heading, edits=edits, model=model, loader=loader, **names)
    return model, space["optimizer"]


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize("dtype", DTYPES)
def test_micro_batches_equal_one_large_batch(dtype):
    dtype, tolerance = DTYPES[dtype]
    small, large = micro_batches(dtype)
    model, optimizer = train(small, dtype, MICRO)
    other, _ = train(large, dtype)
    by_hand = ThreeTasks().to(dtype)
    # Tasks are numbered in the order of their arrival, which is that of TASKS here.
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    train_by_hand(by_hand, base, losses_of(by_hand, large))
    assert optimizer.tasks == TASKS
    assert optimizer.diagnostics.num_surgeries == len(SIZES)
    assert_trained(model)
    assert_close(model, other, tolerance)
    assert_close(model, by_hand, tolerance)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
def test_the_order_of_the_micro_batches_does_not_matter():
    small, _ = micro_batches(torch.float64)
    model, _ = train(small, torch.float64, MICRO)
    # Every task's first, then every task's second; the first step keeps the tasks' numbers.
    turns = ThreeTasks().double()
    optimizer = PCGrad(torch.optim.AdamW(turns.parameters(), lr=1e-3), tasks=TASKS)
    for by_task in small:
        optimizer.zero_grad()
        for turn in range(4):
            for name, parts in reversed(by_task.items()):
                if turn < len(parts):
                    share = len(parts[turn][1]) / sum(len(targets) for _, targets in parts)
                    with optimizer.task(name):
                        (turns.loss(name, parts[turn]) * share).backward()
        optimizer.step()
    assert_close(model, turns, 1e-10)


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
def test_an_absent_task_is_left_alone():
    """Its head does not move, by momentum or weight decay either, and the others are as alone."""
    small, _ = micro_batches(torch.float64)
    model = ThreeTasks().double()
    start = {name: p.clone() for name, p in model.heads["c"].named_parameters()}
    without = [{**by_task, "c": []} for by_task in small if by_task["a"] or by_task["b"]]
    run(GUIDE, MICRO, model=model, loader=without)
    assert model.heads["c"].weight.grad is None
    for name, parameter in model.heads["c"].named_parameters():
        assert torch.equal(parameter, start[name])

    head = model.heads["a"].weight
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    for name in ("a", "b"):
        optimizer.zero_grad()
        before = head.clone()
        with optimizer.task(name):
            model.loss(name, batch_of(name, 0, dtype=torch.float64)).backward()
        optimizer.step()
        assert torch.equal(head, before) == (name == "b")
    assert optimizer.diagnostics.tasks == ("b",)


def loaders(dtype):
    """Batches of four; one task has much more of them than another."""
    sizes = {"a": 24, "b": 14, "c": 4}
    return {
        name: [batch_of(name, step, 4, dtype) for step in range(size)]
        for name, size in sizes.items()
    }


def drawn_steps(dtype, num_drawn=8):
    of_tasks = loaders(dtype)
    sizes = {name: len(loader) for name, loader in of_tasks.items()}
    draws = iter(MultiTaskLoader(of_tasks, Proportional(sizes, seed=0)))
    while drawn := list(islice(draws, num_drawn)):
        yield drawn


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_tasks_equal_one_large_batch(dtype):
    dtype, tolerance = DTYPES[dtype]
    steps = list(drawn_steps(dtype))
    counts = [Counter(name for name, _ in drawn) for drawn in steps]
    assert any(len(of_step) < 3 for of_step in counts), "no task was ever absent"
    assert len({tuple(sorted(of_step.values())) for of_step in counts}) > 2
    assert sum(map(len, steps)) == 42

    model = ThreeTasks().to(dtype)
    optimizer = run(GUIDE, DRAWN, model=model, loaders=loaders(dtype))["optimizer"]
    assert optimizer.diagnostics.num_surgeries == len(steps)
    large = [
        {
            name: joined([batch for other, batch in drawn if other == name])
            for name in optimizer.tasks
            if of_step[name]
        }
        for drawn, of_step in zip(steps, counts, strict=True)
    ]
    other, _ = train(large, dtype)
    by_hand = ThreeTasks().to(dtype)
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    train_by_hand(by_hand, base, losses_of(by_hand, large))
    assert_trained(model)
    assert_close(model, other, tolerance)
    assert_close(model, by_hand, tolerance)


def test_every_batch_counts_the_same_divided_by_the_number_drawn():
    """It is the sum of the tasks' means, each weighted by its share of the draws."""
    of_tasks = loaders(torch.float64)
    model = ThreeTasks().double()
    edits = {"counts[name]": "len(drawn)"}
    optimizer = run(GUIDE, DRAWN, edits=edits, model=model, loaders=of_tasks)["optimizer"]
    by_hand = ThreeTasks().double()

    def share_of(drawn, name):
        parts = [batch for other, batch in drawn if other == name]
        return by_hand.loss(name, joined(parts)) * len(parts) / len(drawn)

    steps = []
    for drawn in drawn_steps(torch.float64):
        there = {name for name, _ in drawn}
        names = [name for name in optimizer.tasks if name in there]
        steps.append({name: partial(share_of, drawn, name) for name in names})
    train_by_hand(by_hand, torch.optim.AdamW(by_hand.parameters(), lr=1e-3), steps)
    assert_close(model, by_hand, 1e-10)


BLOCK = "            with optimizer.task(name):\n"
BACKWARD = "                (loss * len(targets) / num_examples).backward()\n"


@pytest.mark.filterwarnings("ignore:.*a step without surgery")
@pytest.mark.parametrize(
    "edits",
    [
        {BACKWARD: f"{BACKWARD}            optimizer.surgery()\n"},
        {BLOCK: f"            optimizer.zero_grad()\n{BLOCK}"},
    ],
    ids=["surgery", "zero_grad"],
)
def test_what_not_to_do_between_micro_batches(edits):
    small, _ = micro_batches(torch.float64)
    model, _ = train(small, torch.float64, MICRO)
    other = ThreeTasks().double()
    run(GUIDE, MICRO, edits=edits, model=other, loader=small)
    with pytest.raises(AssertionError):
        assert_close(model, other, 1e-5)


def test_a_step_without_any_task_changes_nothing():
    model, optimizer = train([{"a": [], "b": [], "c": []}], torch.float32, MICRO)
    assert_close(model, ThreeTasks(), 0.0)
    assert not optimizer.state
