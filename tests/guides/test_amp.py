"""Mixed precision: loss scaling against none, autocast against PCGrad by hand under autocast."""

import math
from unittest import mock

import pytest
import torch
from torch import nn

from gradsurgery import PCGrad
from tests.guides.guide import (
    TASKS,
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    losses_of,
    make_loader,
    run,
    train_by_hand,
)

every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
        ),
    ],
)
SCALED = "float16 with loss scaling"
CLIPPED = "Gradient clipping"
ON_LOSSES = "Methods that look at losses"
BFLOAT16 = {"dtype=torch.float16": "dtype=torch.bfloat16"}
FLOAT32 = {"dtype=torch.float16": "dtype=torch.float16, enabled=False"}
UNSCALED = {"GradScaler(device)": "GradScaler(device, enabled=False)"}


def scale(initial):
    return {"GradScaler(device)": f"GradScaler(device, init_scale={initial})"}


def trained(heading, device, edits=None, num_steps=6, loader=None):
    model = ThreeTasks().to(device)
    loader = make_loader(num_steps, device=device) if loader is None else loader
    space = run("amp.md", heading, edits=edits, model=model, loader=loader, device=device)
    return model, space


def train_autocast_by_hand(model, device, dtype, num_steps=6, clip=None):
    def loss(name, batch):
        with torch.autocast(device, dtype=dtype):
            return model.loss(name, batch)

    steps = [
        {name: lambda name=name, batch=batch: loss(name, batch) for name, batch in batches.items()}
        for batches in make_loader(num_steps, device=device)
    ]
    base = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_by_hand(model, base, steps, clip=clip)


@every_device
def test_bfloat16_with_a_layer_norm(device):
    model, space = trained("bfloat16", device)
    assert_trained(model)
    assert space["loss"].dtype == torch.float32
    assert space["optimizer"].diagnostics.num_surgeries == 6
    by_hand = ThreeTasks().to(device)
    train_autocast_by_hand(by_hand, device, torch.bfloat16)
    assert_close(model, by_hand, 1e-5)  # float32 sums in another order
    exact, _ = trained("bfloat16", device, {"dtype=torch.bfloat16": "enabled=False"})
    with pytest.raises(AssertionError, match="trunk"):
        assert_close(model, exact, 1e-5)  # autocast did something


@every_device
def test_float16_with_a_layer_norm(device):
    model, space = trained(SCALED, device, scale(2.0**8))
    assert_trained(model)
    assert space["scaler"].get_scale() == 2.0**8  # no step was skipped
    by_hand = ThreeTasks().to(device)
    train_autocast_by_hand(by_hand, device, torch.float16)
    assert_close(model, by_hand, 1e-4)  # without a scale, small numbers lose digits


@every_device
@pytest.mark.parametrize("heading", [SCALED, CLIPPED, ON_LOSSES])
@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT32], ids=["bfloat16", "float32"])
def test_scaled_and_unscaled_results_are_equal(device, heading, precision):
    """Bit for bit: a power of two rounds nothing where the range is that of float32."""
    scaled, space = trained(heading, device, {**precision, **scale(2.0**16)})
    unscaled, _ = trained(heading, device, {**precision, **UNSCALED})
    assert space["scaler"].get_scale() == 2.0**16
    assert_trained(scaled)
    assert_close(scaled, unscaled, 0.0)


@every_device
@pytest.mark.parametrize("heading", [SCALED, CLIPPED])
def test_scaled_and_unscaled_results_are_equal_in_float16(device, heading):
    scaled, _ = trained(heading, device, scale(2.0**8))
    unscaled, _ = trained(heading, device, UNSCALED)
    assert_trained(scaled)
    assert_close(scaled, unscaled, 1e-4)  # unscaled, small numbers lose digits


@every_device
def test_clipping_sees_the_unscaled_combined_gradient(device):
    norms = []

    def clip(parameters, max_norm):
        norm = clip_grad_norm(parameters, max_norm)
        norms.append(norm.item())
        return norm

    clip_grad_norm = nn.utils.clip_grad_norm_
    with mock.patch.object(nn.utils, "clip_grad_norm_", clip):
        model, _ = trained(CLIPPED, device, {**FLOAT32, **scale(2.0**16)})
    assert len(norms) == 6
    assert all(1.0 < norm < 100.0 for norm in norms)
    # float32 sums in another order
    by_hand = ThreeTasks().to(device)
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    steps = losses_of(by_hand, make_loader(6, device=device))
    train_by_hand(by_hand, base, steps, clip=1.0)
    assert_close(model, by_hand, 1e-5)


@every_device
def test_an_overflow_in_one_task_skips_the_step_and_lowers_the_scale(device):
    """A real one: an error of a thousand, scaled, is beyond float16 on its way back."""
    inputs, targets = batch_of("b", 0, device=device)
    loader = make_loader(6, device=device)
    spoilt = [{**loader[0], "b": (inputs, targets + 1000.0)}, *loader]
    model, space = trained(SCALED, device, scale(2.0**9), loader=spoilt[:1])
    assert_close(model, ThreeTasks().to(device), 0.0)
    assert space["scaler"].get_scale() == 2.0**8
    assert not space["optimizer"].state
    heads = {name: head.weight.grad.isfinite().all().item() for name, head in model.heads.items()}
    assert heads == {"a": True, "b": False, "c": True}
    assert not any(parameter.grad.isfinite().any() for parameter in model.trunk[0].parameters())

    # The run goes on as if that step had never been.
    model, space = trained(SCALED, device, scale(2.0**9), loader=spoilt)
    assert space["scaler"].get_scale() == 2.0**8
    clean, _ = trained(SCALED, device, scale(2.0**8), loader=loader)
    assert_trained(model)
    assert_close(model, clean, 0.0)


@every_device
@pytest.mark.parametrize("options", [{}, {"every": 3}, {"start_step": 2}], ids=str)
def test_a_skipped_step_does_not_count(device, options):
    """The orders, and which steps have a surgery, are those of a run without it."""
    options = ", ".join(f"{name}={value}" for name, value in options.items())
    edits = {**FLOAT32, "lr=1e-3))": f"lr=1e-3), {options})"}
    loader = make_loader(6, device=device)
    for place in range(6):
        inputs, targets = loader[place]["c"]
        spoilt = {**loader[place], "c": (inputs * math.inf, targets)}
        model, _ = trained(SCALED, device, edits, loader=[*loader[:place], spoilt, *loader[place:]])
        clean, _ = trained(SCALED, device, edits, loader=loader)
        assert_trained(model)
        assert_close(model, clean, 0.0)


@every_device
def test_diagnostics_are_of_the_scaled_gradients(device):
    _, scaled = trained(SCALED, device, {**FLOAT32, **scale(2.0**10)})
    _, unscaled = trained(SCALED, device, {**FLOAT32, **UNSCALED})
    found, expected = scaled["optimizer"].diagnostics, unscaled["optimizer"].diagnostics
    assert torch.equal(found.norms, expected.norms * 2.0**10)
    assert torch.equal(found.cosines, expected.cosines)
    assert torch.equal(found.conflicts, expected.conflicts)
    assert torch.equal(found.weights, expected.weights)


@every_device
@pytest.mark.parametrize("where", ["around all tasks", "around the block"])
def test_autocast_may_lie_anywhere(device, where):
    """A weight that autocast has cast once for several tasks gives each its gradient."""
    model = ThreeTasks().to(device)
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    for batches in make_loader(6, device=device):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=where == "around all tasks"):
            for name, batch in batches.items():
                with torch.autocast(device, dtype=torch.bfloat16), optimizer.task(name):
                    model.loss(name, batch).backward()
        optimizer.step()
    usual, _ = trained("bfloat16", device)
    assert_close(model, usual, 0.0)


@every_device
@pytest.mark.parametrize("heading", [SCALED, CLIPPED])
def test_the_scaler_finds_what_surgery_before_it_makes(device, heading):
    first = "    scaler.unscale_(" if heading == CLIPPED else "    scaler.step("
    model, space = trained(heading, device, scale(2.0**8))
    edits = {**scale(2.0**8), first: f"    optimizer.surgery()\n{first}"}
    explicit, _ = trained(heading, device, edits)
    assert space["optimizer"].diagnostics.num_surgeries == 6
    assert_trained(model)
    assert_close(model, explicit, 0.0)


@every_device
def test_unscaling_before_the_last_block_is_warned_of(device):
    backward = "            scaler.scale(loss).backward()\n"
    edits = {backward: f"{backward}        if name == 'b': scaler.unscale_(optimizer)\n"}
    with pytest.warns(UserWarning, match="before the block of task 'c'"):
        trained(SCALED, device, edits, num_steps=1)


@every_device
def test_a_scale_for_each_task_is_not_the_same(device):
    scales = "{'a': 1.0, 'b': 256.0, 'c': 65536.0}"
    edits = {**FLOAT32, **UNSCALED, "scaler.scale(loss)": f"(loss * {scales}[name])"}
    _, space = trained(SCALED, device, edits)
    norms = space["optimizer"].diagnostics.norms
    assert norms[2] > 1000 * norms[0]
    assert len(norms) == len(TASKS)


@every_device
@pytest.mark.parametrize("policy", ["propagate", "skip_step", "skip_task", "raise"])
def test_a_policy_for_what_is_not_finite(device, policy):
    """Two leave the overflow to the scaler, one hides it, one stops."""
    inputs, targets = batch_of("b", 0, device=device)
    loader = make_loader(6, device=device)
    spoilt = [*loader[:2], {**loader[2], "b": (inputs, targets + 1000.0)}, *loader[2:]]
    edits = {**scale(2.0**9), "lr=1e-3))": f"lr=1e-3), on_nonfinite={policy!r})"}
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="'b'"):
            trained(SCALED, device, edits, loader=spoilt)
        return
    model, space = trained(SCALED, device, edits, loader=spoilt)
    assert space["scaler"].get_scale() == (2.0**9 if policy == "skip_task" else 2.0**8)
    usual, _ = trained(SCALED, device, scale(2.0**9), loader=spoilt)
    if policy == "skip_task":
        with pytest.raises(AssertionError):
            assert_close(model, usual, 1e-5)
    else:
        assert_close(model, usual, 0.0)
