"""Schedulers and averages on the wrapper against the base alone; a resumed run against a whole."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradsurgery import PCGrad
from tests.guides.guide import ThreeTasks, assert_close, assert_trained, blocks, make_loader, run

GUIDE = "schedulers.md"
PLAIN = "A scheduler"
ONE_CYCLE = "torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8)"
NUM_STEPS = 8

lr_scheduler = "torch.optim.lr_scheduler"
SCHEDULERS = {
    "OneCycleLR": ONE_CYCLE,
    "StepLR": f"{lr_scheduler}.StepLR(optimizer, step_size=2)",
    "MultiStepLR": f"{lr_scheduler}.MultiStepLR(optimizer, [2, 5])",
    "LambdaLR": f"{lr_scheduler}.LambdaLR(optimizer, lambda step: 1 / (1 + step))",
    "MultiplicativeLR": f"{lr_scheduler}.MultiplicativeLR(optimizer, lambda step: 0.9)",
    "ConstantLR": f"{lr_scheduler}.ConstantLR(optimizer, factor=0.5, total_iters=3)",
    "LinearLR": f"{lr_scheduler}.LinearLR(optimizer, total_iters=4)",
    "PolynomialLR": f"{lr_scheduler}.PolynomialLR(optimizer, total_iters=6, power=2.0)",
    "ExponentialLR": f"{lr_scheduler}.ExponentialLR(optimizer, gamma=0.8)",
    "CosineAnnealingLR": f"{lr_scheduler}.CosineAnnealingLR(optimizer, T_max=6)",
    "CosineAnnealingWarmRestarts": f"{lr_scheduler}.CosineAnnealingWarmRestarts(optimizer, T_0=3)",
    "CyclicLR": f"{lr_scheduler}.CyclicLR(optimizer, 1e-4, 1e-2, step_size_up=3)",
    "SequentialLR": (
        f"{lr_scheduler}.SequentialLR(optimizer, [{lr_scheduler}.LinearLR(optimizer, total_iters=3)"
        f", {lr_scheduler}.ExponentialLR(optimizer, gamma=0.8)], milestones=[3])"
    ),
    "ChainedScheduler": (
        f"{lr_scheduler}.ChainedScheduler([{lr_scheduler}.LinearLR(optimizer, total_iters=3)"
        f", {lr_scheduler}.ExponentialLR(optimizer, gamma=0.8)], optimizer=optimizer)"
    ),
    "SWALR": "torch.optim.swa_utils.SWALR(optimizer, swa_lr=1e-2, anneal_epochs=3)",
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def rates(space):
    """The learning rate, and the moments' rates, which some schedulers set as well."""
    group = space["optimizer"].param_groups[0]
    return group["lr"], group["betas"]


def observed(heading, edits, loader, model):
    """Runs a block; returns its names, and the rates after each of its steps."""
    seen = []

    def watch(space, loader):
        for batches in loader:
            yield batches
            seen.append(rates(space))

    edits = {**(edits or {}), "for batches in loader:": "for batches in watch(globals(), loader):"}
    return run(GUIDE, heading, edits=edits, model=model, loader=loader, watch=watch), seen


def without_wrapper(edits=None):
    """The block on the base alone: the plain sum of the losses."""
    return {
        **(edits or {}),
        "PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))": (
            "torch.optim.AdamW(model.parameters(), lr=1e-3)"
        ),
        "        with optimizer.task(name):\n": "        if True:\n",
    }


def loss_sum(edits=None):
    return {**(edits or {}), "import PCGrad": "import LossSum as PCGrad"}


@every_scheduler
def test_schedulers_drive_the_wrapper_as_they_drive_the_base(scheduler):
    """The same rates with PCGrad; with the loss sum the same weights, bit for bit."""
    edits = {} if scheduler == "OneCycleLR" else {ONE_CYCLE: SCHEDULERS[scheduler]}
    loader = make_loader(NUM_STEPS)
    model, plain, summed = ThreeTasks(), ThreeTasks(), ThreeTasks()
    space, found = observed(PLAIN, edits, loader, model)
    _, expected = observed(PLAIN, without_wrapper(edits), loader, plain)
    _, of_sum = observed(PLAIN, loss_sum(edits), loader, summed)
    assert isinstance(space["optimizer"], PCGrad)
    assert len(found) == NUM_STEPS
    assert len(set(found)) > 1
    assert found == expected == of_sum
    assert_trained(model)
    assert_close(summed, plain, 0.0)
    with pytest.raises(AssertionError):
        assert_close(model, plain, 1e-3)


def test_a_scheduler_of_transformers():
    loader = make_loader(NUM_STEPS)
    model, plain = ThreeTasks(), ThreeTasks()
    space, found = observed("A scheduler of Transformers", None, loader, model)
    observed("A scheduler of Transformers", without_wrapper(), loader, plain)
    assert isinstance(space["optimizer"], PCGrad)
    expected = [5e-4, 1e-3, *[1e-3 * (6 - step) / 6 for step in range(1, 7)]]
    assert [lr for lr, _ in found] == pytest.approx(expected)
    assert_trained(model)


def test_reduce_on_plateau():
    """The rate falls after two steps without progress, as on the base alone."""
    loader = make_loader(1) * NUM_STEPS
    scale = {"scheduler.step(total)": "scheduler.step(round(total, -1))"}  # hardly any progress
    model, plain, summed = ThreeTasks(), ThreeTasks(), ThreeTasks()
    space, found = observed("On a plateau", scale, loader, model)
    _, expected = observed("On a plateau", without_wrapper(scale), loader, plain)
    _, of_sum = observed("On a plateau", loss_sum(scale), loader, summed)
    assert isinstance(space["optimizer"], PCGrad)
    assert [lr for lr, _ in found][:3] == [1e-3, 1e-3, 1e-4]
    assert expected == of_sum
    assert found[:3] == expected[:3]
    assert_close(summed, plain, 0.0)


# Resume.


def loop(heading):
    """What a block does after its construction: one loop, without the lines before it."""
    code, _ = blocks(GUIDE)[heading]
    return code[code.index("for batches in loader:") :]


def go_on(space, loader, heading=PLAIN):
    space["loader"] = loader
    exec(compile(loop(heading), GUIDE, "exec"), space)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "transformers", "ReduceLROnPlateau"])
def test_a_resumed_run_continues_bit_for_bit(scheduler, num_steps, tmp_path):
    names = {"path": tmp_path / "checkpoint.pt"}
    heading, text = PLAIN, SCHEDULERS.get(scheduler)
    if scheduler == "transformers":
        from transformers import get_linear_schedule_with_warmup

        names["warmup"] = get_linear_schedule_with_warmup
        text = "warmup(optimizer, num_warmup_steps=2, num_training_steps=8)"
    elif scheduler == "ReduceLROnPlateau":
        heading = "On a plateau"
        text = f"{lr_scheduler}.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)"
    edits = {} if text == ONE_CYCLE else {ONE_CYCLE: text}
    loader = make_loader(NUM_STEPS)

    unbroken = ThreeTasks()
    space = run(GUIDE, PLAIN, edits=edits, model=unbroken, loader=[], **names)
    go_on(space, loader, heading)

    first = ThreeTasks()
    space_of_first = run(GUIDE, PLAIN, edits=edits, model=first, loader=[], **names)
    go_on(space_of_first, loader[:num_steps], heading)
    run(
        GUIDE,
        "Save",
        **{n: space_of_first[n] for n in ("model", "optimizer", "scheduler")},
        **names,
    )

    resumed = ThreeTasks()
    space_of_resumed = run(GUIDE, "Resume", edits=edits, model=resumed, **names)
    assert_close(resumed, first, 0.0)
    go_on(space_of_resumed, loader[num_steps:], heading)
    assert_trained(resumed)
    assert_close(resumed, unbroken, 0.0)
    assert rates(space_of_resumed) == rates(space)
    found, expected = space_of_resumed["optimizer"].diagnostics, space["optimizer"].diagnostics
    assert torch.equal(found.conflict_rate, expected.conflict_rate)
    assert found.num_surgeries == expected.num_surgeries == NUM_STEPS


# Averages.


AVERAGES = {
    "ema": {},
    "swa": {"(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))": "(model)"},
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_weights(average):
    """The weights after each step, averaged by hand; the training itself is untouched."""
    loader = make_loader(NUM_STEPS)
    snapshots = []

    def keeping(model):
        for batches in loader:
            yield batches
            snapshots.append(copy.deepcopy(model.state_dict()))

    model = ThreeTasks()
    heading = "Averaged weights"
    space = run(GUIDE, heading, edits=AVERAGES[average], model=model, loader=keeping(model))
    alone = ThreeTasks()
    swalr = {ONE_CYCLE: SCHEDULERS["SWALR"]}
    run(GUIDE, PLAIN, edits=swalr, model=alone, loader=loader)
    assert_trained(model)
    assert_close(model, alone, 0.0)
    for name, found in space["averaged"].module.state_dict().items():
        expected = snapshots[0][name].double()
        for number, snapshot in enumerate(snapshots[1:], 2):
            share = 0.1 if average == "ema" else 1 / number
            expected = expected + share * (snapshot[name].double() - expected)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(found, snapshots[-1][name])


@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_weights_resume_bit_for_bit(average, tmp_path):
    loader = make_loader(NUM_STEPS)
    path = tmp_path / "checkpoint.pt"
    heading = "Averaged weights"
    whole = run(GUIDE, heading, edits=AVERAGES[average], model=ThreeTasks(), loader=loader)
    half = run(GUIDE, heading, edits=AVERAGES[average], model=ThreeTasks(), loader=loader[:3])
    run(GUIDE, "Save", path=path, **{n: half[n] for n in ("model", "optimizer", "scheduler")})
    torch.save(half["averaged"].state_dict(), tmp_path / "averaged.pt")

    edits = {ONE_CYCLE: SCHEDULERS["SWALR"]}
    resumed = run(GUIDE, "Resume", edits=edits, model=ThreeTasks(), path=path)
    average_of = None if average == "swa" else get_ema_multi_avg_fn(0.9)
    resumed["averaged"] = AveragedModel(resumed["model"], multi_avg_fn=average_of)
    resumed["averaged"].load_state_dict(torch.load(tmp_path / "averaged.pt", weights_only=True))
    go_on(resumed, loader[3:], heading)
    assert_close(resumed["model"], whole["model"], 0.0)
    assert_close(resumed["averaged"].module, whole["averaged"].module, 0.0)


def test_a_checkpoint_between_block_and_step_lacks_the_tasks_gradients():
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    (batches,) = make_loader(1)
    with optimizer.task("a"):
        model.loss("a", batches["a"]).backward()
    optimizer.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(model)
    optimizer.step()
    assert_close(model, before, 0.0)
