"""lightning's manual optimisation against the plain loop, bit for bit."""

import logging

import pytest
import torch
from torch import nn

from gradsurgery import PCGrad
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


CLIP = '        self.clip_gradients(shell, gradient_clip_val=1.0, gradient_clip_algorithm="norm")\n'


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "unclipped"])
def test_the_module_reaches_the_weights_of_the_plain_loop(clip, tmp_path):
    model = ThreeTasks()
    trained = module(model, {} if clip else {CLIP: "", "        optimizer.surgery()\n": ""})
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
        "        shell.step()\n": "        shell.step()\n        self.lr_schedulers().step()\n",
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


@pytest.mark.parametrize(
    "call", ["task(name).__enter__()", "backward([])", "surgery()", "zero_grad()"]
)
def test_the_shell_refuses_what_would_stay_in_it(call, tmp_path):
    """It takes on the class of the wrapper: `shell.task` would train nothing, silently."""
    edits = {"        optimizer.surgery()\n": f"        shell.{call}\n"}
    with pytest.raises(TypeError, match="on the optimizer itself, got a LightningPCGrad"):
        trainer(tmp_path).fit(module(ThreeTasks(), edits), loader())
