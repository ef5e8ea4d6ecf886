"""accelerate against the plain loop, bit for bit."""

import pytest
import torch
from torch import nn

from gradsurgery import PCGrad
from tests.guides.guide import (
    TASKS,
    ThreeTasks,
    assert_close,
    assert_trained,
    make_loader,
    run,
)

pytest.importorskip("accelerate")

GUIDE = "accelerate.md"


@pytest.fixture(autouse=True)
def alone():
    """accelerate keeps its state in singletons, and asks the environment for a device."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()
    yield
    reset()


def plain_loop(loader, *, parts=1, autocast=False):
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    for step in range(0, len(loader), parts):
        optimizer.zero_grad()
        for batches in loader[step : step + parts]:
            for name, (inputs, targets) in batches.items():
                with optimizer.task(name):
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        predictions = model(name, inputs)
                    loss = nn.functional.mse_loss(predictions.float(), targets)
                    (loss / parts).backward()
        optimizer.surgery()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_loop_reaches_the_weights_of_the_plain_one(precision):
    edits = {"Accelerator()": f"Accelerator(cpu=True, mixed_precision={precision!r})"}
    model = ThreeTasks()
    space = run(GUIDE, "The loop", edits=edits, model=model, loader=make_loader(6))
    assert space["pcgrad"].tasks == TASKS
    assert space["pcgrad"].diagnostics.num_surgeries == 6
    assert space["optimizer"].optimizer is space["pcgrad"]
    assert_trained(model)
    assert_close(model, plain_loop(make_loader(6), autocast=precision == "bf16"), 0.0)


def accumulated(loader, model, **names):
    edits = {"Accelerator(": "Accelerator(cpu=True, "}
    return run(GUIDE, "Accumulation", edits=edits, model=model, loader=loader, **names)


def test_accumulation_reaches_the_weights_of_the_plain_loop():
    model = ThreeTasks()
    space = accumulated(make_loader(6), model)
    assert space["pcgrad"].diagnostics.num_surgeries == 3
    assert_trained(model)
    assert_close(model, plain_loop(make_loader(6), parts=2), 0.0)


def test_a_prepared_scheduler_and_loader():
    """What `prepare` makes of them steps with the wrapper."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = ThreeTasks()
    pcgrad = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    scheduler = torch.optim.lr_scheduler.StepLR(pcgrad, step_size=2)
    loader = torch.utils.data.DataLoader(make_loader(6), batch_size=None)
    model, optimizer, scheduler, loader = accelerator.prepare(model, pcgrad, scheduler, loader)
    for batches in loader:
        optimizer.zero_grad()
        for name, (inputs, targets) in batches.items():
            with pcgrad.task(name):
                accelerator.backward(nn.functional.mse_loss(model(name, inputs), targets))
        optimizer.step()
        scheduler.step()
    other = ThreeTasks()
    plain = PCGrad(torch.optim.AdamW(other.parameters(), lr=1e-3))
    plain_scheduler = torch.optim.lr_scheduler.StepLR(plain, step_size=2)
    for batches in make_loader(6):
        plain.zero_grad()
        plain.backward((name, other.loss(name, batch)) for name, batch in batches.items())
        plain.step()
        plain_scheduler.step()
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"] == pytest.approx(1e-6)
    assert_trained(model)
    assert_close(model, other, 0.0)


def test_save_state_and_load_state_resume_bit_for_bit(tmp_path):
    whole = ThreeTasks()
    accumulated(make_loader(8), whole)
    first = accumulated(make_loader(8)[:4], ThreeTasks())
    first["accelerator"].save_state(str(tmp_path / "state"))

    model = ThreeTasks()
    space = accumulated([], model)
    space["accelerator"].load_state(str(tmp_path / "state"))
    assert_close(model, first["model"], 0.0)
    code = space["accelerator"]
    for batches in make_loader(8)[4:]:
        with code.accumulate(model):
            for name, (inputs, targets) in batches.items():
                with space["pcgrad"].task(name):
                    loss = nn.functional.mse_loss(space["model"](name, inputs), targets)
                    code.backward(loss)
            if code.sync_gradients:
                space["pcgrad"].surgery()
                code.clip_grad_norm_(model.parameters(), 1.0)
            space["optimizer"].step()
            space["optimizer"].zero_grad()
    assert space["pcgrad"].diagnostics.num_surgeries == 4
    assert_close(model, whole, 0.0)


def test_the_shell_has_no_blocks():
    edits = {"Accelerator()": "Accelerator(cpu=True)", "pcgrad.task(name)": "optimizer.task(name)"}
    with pytest.raises(AttributeError, match="task"):
        run(GUIDE, "The loop", edits=edits, model=ThreeTasks(), loader=make_loader(1))
