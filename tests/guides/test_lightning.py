"""lightning's manual optimisation against the plain loop, bit for bit."""

import logging

import pytest
import torch
from torch import nn

from gradsurgery import LossSum, PCGrad
from tests.guides.guide import ThreeTasks, assert_close, assert_trained, make_loader, run

lightning = pytest.importorskip("lightning")

GUIDE = "lightning.md"
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.ERROR)


def trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return lightning.Trainer(**{**defaults, **options})


def module(model, edits=None):
    return run(GUIDE, "The module", edits=edits)["MultiTask"](model)


def loader(num_steps=6):
    return torch.utils.data.DataLoader(make_loader(num_steps), batch_size=None)


def plain_loop(num_epochs=2, clip=True, schedule=None):
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    scheduler = schedule and schedule(optimizer)
    for batches in make_loader(6) * num_epochs:
        optimizer.zero_grad()
        for name, batch in batches.items():
            with optimizer.task(name):
                model.loss(name, batch).backward()
        optimizer.surgery()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return model


CLIP = (
    "        self.clip_gradients(optimizer, gradient_clip_val=1.0, "
    'gradient_clip_algorithm="norm")\n'
)
STEP = "        optimizer.step()\n"


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "unclipped"])
def test_the_module_reaches_the_weights_of_the_plain_loop(clip, tmp_path):
    model = ThreeTasks()
    trained = module(model, {} if clip else {CLIP: ""})
    fit = trainer(tmp_path)
    fit.fit(trained, loader())
    optimizer = fit.optimizers[0]
    assert isinstance(optimizer, PCGrad)
    assert optimizer.diagnostics.num_surgeries == fit.global_step == 12
    assert_trained(model)
    assert_close(model, plain_loop(clip=clip), 0.0)


def test_a_scheduler(tmp_path):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=5)

    edits = {
        "        return PCGrad(": "        pcgrad = PCGrad(",
        "lr=1e-3))\n": "lr=1e-3))\n        return [pcgrad], [schedule(pcgrad)]\n",
        STEP: STEP + "        self.lr_schedulers().step()\n",
    }
    model = ThreeTasks()
    space = run(GUIDE, "The module", edits=edits, schedule=schedule)
    fit = trainer(tmp_path)
    fit.fit(space["MultiTask"](model), loader())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    assert_close(model, plain_loop(schedule=schedule), 0.0)


def test_a_checkpoint_resumes_bit_for_bit(tmp_path):
    whole = ThreeTasks()
    trainer(tmp_path).fit(module(whole), loader())
    path = tmp_path / "half.ckpt"
    half = trainer(tmp_path, max_epochs=1)
    half.fit(module(ThreeTasks()), loader())
    half.save_checkpoint(path)
    model = ThreeTasks()
    fit = trainer(tmp_path)
    fit.fit(module(model), loader(), ckpt_path=path)
    assert fit.global_step == 12
    assert fit.optimizers[0].diagnostics.num_surgeries == 12
    assert_close(model, whole, 0.0)


def test_lightning_refuses_to_clip_by_itself(tmp_path):
    refusal = lightning.fabric.utilities.exceptions.MisconfigurationException
    with pytest.raises(refusal, match="not supported for manual optimization"):
        trainer(tmp_path, gradient_clip_val=1.0).fit(module(ThreeTasks()), loader())


METHODS = {
    "pcgrad": (PCGrad, {}),
    "refreshed": (PCGrad, {"every": 2, "start_step": 3}),
    "sum": (LossSum, {"monitor": True}),
    "guarded": (PCGrad, {"on_nonfinite": "skip_task"}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", ["backward", "blocks"])
def test_calls_through_the_shell_are_calls_on_the_wrapper(method, call, tmp_path):
    """Bit for bit, and nothing of the wrapper's stays in the shell."""
    wrapper, options = METHODS[method]
    in_blocks = (
        "            with optimizer.task(name):\n"
        "                self.manual_backward(self.model.loss(name, batch))\n"
    )
    at_once = "        optimizer.backward((n, self.model.loss(n, b)) for n, b in batches.items())\n"
    edits = {
        "lr=1e-3))": "lr=1e-3), **options)",
        "return PCGrad(": "return wrapper(",
    }
    if call == "backward":
        edits["        for name, batch in batches.items():\n" + in_blocks] = at_once
    model, twin = ThreeTasks(), ThreeTasks()
    trained = run(GUIDE, "The module", edits=edits, wrapper=wrapper, options=options)["MultiTask"]
    fit = trainer(tmp_path)
    module_of = trained(model)
    fit.fit(module_of, loader())
    (optimizer,) = fit.optimizers
    (shell,) = fit.strategy._lightning_optimizers
    assert vars(shell).keys() & vars(optimizer).keys() == set()
    alone = wrapper(torch.optim.AdamW(twin.parameters(), lr=1e-3), **options)
    for batches in make_loader(6) * 2:
        alone.zero_grad()
        alone.backward((n, twin.loss(n, b)) for n, b in batches.items())
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        alone.step()
    assert optimizer.diagnostics.num_surgeries == alone.diagnostics.num_surgeries > 0
    assert_close(model, twin, 0.0)


def test_a_step_past_the_shell_is_not_counted(tmp_path):
    model = ThreeTasks()
    fit = trainer(tmp_path)
    fit.fit(module(model, {STEP: "        optimizer.optimizer.step()\n"}), loader())
    assert fit.global_step == 0
    assert_close(model, plain_loop(), 0.0)


def test_a_step_cannot_be_skipped(tmp_path):
    edits = {"lr=1e-3))": 'lr=1e-3), on_nonfinite="skip_step")'}
    with pytest.raises(ValueError, match="must be called without a closure"):
        trainer(tmp_path).fit(module(ThreeTasks(), edits), loader())
