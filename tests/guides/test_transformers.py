"""transformers.Trainer against the plain loop, bit for bit."""

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from gradsurgery import PCGrad
from tests.guides.guide import TASKS, ThreeTasks, assert_close, assert_trained, batch_of, run

transformers = pytest.importorskip("transformers")

GUIDE = "transformers.md"
NUM_EXAMPLES = {"a": 24, "b": 16, "c": 8}


class Model(ThreeTasks):
    """The same with the arguments that the Trainer gives."""

    def forward(self, task, inputs, labels=None):
        return {"loss": nn.functional.mse_loss(super().forward(task, inputs), labels)}


def tasks():
    found = {}
    for name, size in NUM_EXAMPLES.items():
        inputs, targets = batch_of(name, 0, size)
        found[name] = [
            {"inputs": one, "labels": label} for one, label in zip(inputs, targets, strict=True)
        ]
    return found


def arguments(folder, **options):
    return transformers.TrainingArguments(
        use_cpu=True,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        output_dir=str(folder),
        **{"save_strategy": "no", "logging_strategy": "no", **options},
    )


def trainer_of(model, args, edits=None, collate=default_collate):
    """The guide's trainer, before it trains."""
    space = run(GUIDE, "The Trainer", edits=edits)
    data_edits = {"data_collator=default_collate": "data_collator=collate", "trainer.train()": ""}
    names = {"model": model, "args": args, "tasks": tasks(), "collate": collate}
    trainer = space["MultiTaskTrainer"]
    return run(GUIDE, "The data", edits=data_edits, MultiTaskTrainer=trainer, **names)["trainer"]


def plain_loop(trainer, model, drawn, *, clip, parts):
    """PCGrad in a loop of one's own over the batches that the Trainer drew."""
    decay = trainer.get_decay_parameter_names(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decay) == decays]}
        for decays in (True, False)
    ]
    # The Trainer's default: fused AdamW without weight decay, and a rate that falls linearly.
    optimizer = PCGrad(torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0, fused=True))
    num_steps = len(drawn) // parts
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, num_steps)
    for step in range(num_steps):
        optimizer.zero_grad()
        for batch in drawn[step * parts : (step + 1) * parts]:
            for name in TASKS:
                with optimizer.task(name):
                    (model(name, **batch[name])["loss"] / parts).backward()
        if clip:
            optimizer.surgery()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return optimizer


@pytest.mark.parametrize("clip", [0.0, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("parts", [1, 2], ids=["every batch", "accumulated"])
def test_the_trainer_reaches_the_weights_of_the_plain_loop(clip, parts, tmp_path):
    drawn = []

    def collate(examples):
        drawn.append(default_collate(examples))
        return drawn[-1]

    model = Model()
    args = arguments(tmp_path, max_grad_norm=clip, gradient_accumulation_steps=parts)
    trainer = trainer_of(model, args, collate=collate)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, PCGrad)
    assert optimizer.diagnostics.num_surgeries == trainer.state.global_step == 12 // parts
    assert_trained(model)
    other = Model()
    expected = plain_loop(trainer, other, drawn, clip=clip, parts=parts)
    assert_close(model, other, 0.0)
    assert torch.equal(optimizer.diagnostics.conflict_rate, expected.diagnostics.conflict_rate)


def test_the_trainer_resumes_bit_for_bit(tmp_path):
    """Shuffled: the Trainer restores the random state as well."""
    whole = Model()
    args = arguments(tmp_path, save_strategy="steps", save_steps=5)
    trainer_of(whole, args).train()
    resumed = Model()
    trainer = trainer_of(resumed, args)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert trainer.optimizer.optimizer.diagnostics.num_surgeries == 12
    assert_trained(resumed)
    assert_close(resumed, whole, 0.0)


def test_the_trainer_logs_the_sum_of_the_losses_and_the_norm_of_the_combined_gradient(tmp_path):
    drawn = []

    def collate(examples):
        drawn.append(default_collate(examples))
        return drawn[-1]

    options = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 1}
    trainer = trainer_of(Model(), arguments(tmp_path, **options), collate=collate)
    trainer.train()
    first = trainer.state.log_history[0]
    losses = [Model()(name, **batch)["loss"].item() for name, batch in drawn[0].items()]
    assert first["loss"] == pytest.approx(sum(losses), rel=1e-5)
    norms = trainer.optimizer.optimizer.diagnostics.norm_after
    assert first["grad_norm"] >= norms.item() > 0.0  # that of the heads comes to it


def test_the_shell_has_no_blocks(tmp_path):
    edits = {"self.optimizer.optimizer ": "self.optimizer "}
    with pytest.raises(AttributeError, match="task"):
        trainer_of(Model(), arguments(tmp_path), edits).train()
