"""Runs against plain loops, against their own repetition, and against runs never interrupted."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.data.synthetic import make_corpus
from benchmarks.multitask_bert.metrics import overall_mean, overall_normalised
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.model.tiny import settings, tiny_encoder
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import (
    Head,
    Recipe,
    RecipeError,
    Regulariser,
    Sampling,
    Stage,
)
from benchmarks.multitask_bert.records.record import Record, RecordError
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training import run_state as parts
from benchmarks.multitask_bert.training import selection as selections
from benchmarks.multitask_bert.training.checkpoint import load_model, load_state, save_state
from benchmarks.multitask_bert.training.evaluate import Evaluation, evaluate
from benchmarks.multitask_bert.training.loop import Training, run
from benchmarks.multitask_bert.training.plan import Plan

TASKS = ("sst", "quora", "sts")
# In batches of 8: 5, 7 and 3 of them, so that a large data set is in its second pass late, and a
# small one early.
SIZES = {"sst": 40, "quora": 56, "sts": 24}
NUM_DEV = 12
CORPUS = make_corpus(
    sizes={
        **{(task, "train"): size for task, size in SIZES.items()},
        **{(task, "dev"): NUM_DEV for task in TASKS},
    }
)
TOKENIZED: dict[Any, Any] = {}
CPU = torch.device("cpu")
JOINT = Sampling("joint", "largest")
TIMES = {
    "seconds",
    "eval_seconds",
    "train_seconds",
    "samples_per_second",
    "eval_samples_per_second",
}


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    """More "train" events than the few steps here would leave."""
    monkeypatch.setattr(train, "LOG_EVERY", 4)


def make_stage(method: str = "pcgrad", sampling: Sampling = JOINT, **fields: Any) -> Stage:
    defaults = {"epochs": 2, "lr": 2e-3, "batch_size": dict.fromkeys(TASKS, 8)}
    return Stage(**{**defaults, "method": method, "sampling": sampling, **fields})


def make_recipe(*stages: Stage, id: str = "smet-walker/v2-dropout-0.3", **fields: Any) -> Recipe:
    """With dropout, so that a run that loses its random state shows it."""
    recipe, _ = override(find(id), settings(find(id)))
    fields = {"head_dropout": 0.1, "encoder_dropout": 0.1, **fields}
    return replace(recipe, stages=stages or (make_stage(),), **fields)


def make_plan(folder: Path, recipe: Recipe, **fields: Any) -> Plan:
    defaults = {"seed": 5, "device": CPU, "tokenized": TOKENIZED, "make_encoder": tiny_encoder}
    return Plan(
        recipe=recipe,
        corpus=CORPUS,
        folder=folder,
        **{**defaults, "config": {"recipe": recipe.to_dict()}, **fields},
    )


def events_of(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What was measured, without the clock's share of it."""
    return [
        {name: value for name, value in event.items() if name not in TIMES}
        for event in Record(folder).events()
        if kind in (None, event["event"])
    ]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, as far as it is to be equal."""
    state = load_state(folder / "state" / "state.pt")
    for name in ("seconds", "eval_seconds"):
        del state["progress"][name]
    files = ["config.json", "model.safetensors", *(f"predictions/{t}-dev.csv" for t in TASKS)]
    return {
        "events": events_of(folder),
        # Through JSON lines of different times the file need not be equally long.
        "state": {name: part for name, part in state.items() if "metrics" not in name},
        **{name: (folder / name).read_bytes() for name in files},
    }


def assert_same(found: Any, expected: Any, where: str = "outcome") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_same(found[number], value, f"{where}.{number}")
    else:
        assert found == expected, where


def weights_of(folder: Path) -> dict[str, Tensor]:
    """After the last step."""
    weights: dict[str, Tensor] = load_state(folder / "state" / "state.pt")["model"]
    return weights


def initial_weights(recipe: Recipe, seed: int = 5) -> dict[str, Tensor]:
    plan = make_plan(Path("never written"), recipe, seed=seed)
    return {name: value.clone() for name, value in Training(plan).model.state_dict().items()}


# What is learned.


@pytest.mark.parametrize("method", ["loss-sum", "pcgrad"])
def test_losses_fall(tmp_path, method):
    recipe = make_recipe(make_stage(method, epochs=8), encoder_dropout=0.0, head_dropout=0.0)
    assert run(make_plan(tmp_path, recipe))
    losses = [event["losses"] for event in events_of(tmp_path, "train")]
    assert [set(each) for each in losses] == [set(TASKS)] * len(losses)
    for task, share in (("sst", 0.8), ("quora", 0.9), ("sts", 0.5)):
        last = sum(each[task] for each in losses[-3:]) / 3
        assert last < share * losses[0][task], task


def by_hand(outputs: Tensor, labels: Tensor, task: str) -> Tensor:
    if task == "sst":
        return F.cross_entropy(outputs, labels)
    if task == "quora":
        return F.binary_cross_entropy_with_logits(outputs, labels)
    return ((outputs - labels) ** 2).mean()


def steps_of(training: Training, epoch: int) -> Iterator[list[tuple[str, Any]]]:
    """The batches of an epoch, three tasks a step."""
    training.loader.set_epoch(epoch)
    draws = list(training.loader)
    for start in range(0, len(draws), len(TASKS)):
        yield draws[start : start + len(TASKS)]


@pytest.mark.parametrize(("weight_decay", "grad_clip"), [(0.0, None), (0.1, 0.5)])
def test_loss_sum_is_a_plain_loop(tmp_path, monkeypatch, weight_decay, grad_clip):
    """Sum of the losses and AdamW, step by step on the same batches: equal to the last bit."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = make_recipe(make_stage("loss-sum"), weight_decay=weight_decay, grad_clip=grad_clip)
    assert run(make_plan(tmp_path, recipe))
    training = Training(make_plan(tmp_path / "by hand", recipe))
    model = training.model
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=2e-3,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=weight_decay,
        fused=True,  # the same formula, other roundings than unfused
    )
    losses = []
    for epoch in range(2):  # between them the run evaluates, which draws no random number
        for step in steps_of(training, epoch):
            optimizer.zero_grad()
            found = {}
            for task, batch in step:
                loss = by_hand(model(batch), batch.labels, task)
                loss.backward()  # gradients add up: that of the sum
                found[task] = loss.item()
            if grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            optimizer.step()
            losses.append(found)
    assert [event["losses"] for event in events_of(tmp_path, "train")] == losses
    assert_same(weights_of(tmp_path), model.state_dict())


def test_pcgrad_is_not_the_loss_sum(tmp_path):
    """Same start, same batches, and conflicts on the way: other weights."""
    for method in ("pcgrad", "loss-sum"):
        assert run(make_plan(tmp_path / method, make_recipe(make_stage(method))))
    rates = events_of(tmp_path / "pcgrad", "train")[-1]["conflict_rate"]
    assert set(rates) == {"sst~quora", "sst~sts", "quora~sts"}
    assert any(rate > 0 for rate in rates.values())
    surgery, plain = (weights_of(tmp_path / method) for method in ("pcgrad", "loss-sum"))
    name = "encoder.embeddings.word.weight"
    assert not torch.equal(surgery[name], plain[name])


def test_loss_sum_measures_conflicts_too(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(make_stage("loss-sum"))))
    for event in events_of(tmp_path, "train"):
        assert all(-1 <= cosine <= 1 for cosine in event["cosines"].values())
        assert all(0 <= rate <= 1 for rate in event["conflict_rate"].values())
        assert event["norm_after"] == pytest.approx(event["norm_before"], rel=1e-6)
        assert event["norms_after"] is None


@pytest.mark.parametrize("method", ["loss-sum", "pcgrad"])
def test_monitoring_changes_nothing_but_what_is_logged(tmp_path, method):
    for monitored in (True, False):
        recipe = make_recipe(make_stage(method, monitored=monitored))
        run(make_plan(tmp_path / str(monitored), recipe))
    watched, plain = (events_of(tmp_path / str(m), "train") for m in (True, False))
    assert [event["losses"] for event in watched] == [event["losses"] for event in plain]
    assert all(event["layer_cosines"] for event in watched)
    assert not any(event["layer_cosines"] for event in plain)
    # PCGrad has the Gram matrix anyway.
    assert all(bool(event["cosines"]) == (method == "pcgrad") for event in plain)


def test_gradients_are_told_apart_by_layer(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(make_stage("pcgrad"))))
    for event in events_of(tmp_path, "train"):
        layers = event["layer_cosines"]
        assert list(layers) == ["embeddings", "layer 1", "layer 2"]  # the mean needs no pooler
        assert all(set(layer) == set(event["cosines"]) for layer in layers.values())
        # The whole is a weighted mean of its parts.
        for pair, cosine in event["cosines"].items():
            parts = [abs(layer[pair]) for layer in layers.values()]
            assert abs(cosine) <= max(parts) + 1e-6
        assert all(event["norms_after"][t] <= event["norms"][t] * (1 + 1e-6) for t in TASKS)


# The same again.


def test_a_seed_decides_everything(tmp_path):
    recipe = make_recipe()
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        torch.manual_seed(hash(name))  # what was drawn before does not matter
        assert run(make_plan(tmp_path / name, recipe, seed=seed))
    first, again, other = (outcome(tmp_path / name) for name in ("first", "again", "other"))
    assert_same(again, first)
    assert other["model.safetensors"] != first["model.safetensors"]
    losses = [
        [event["losses"] for event in each["events"] if event["event"] == "train"]
        for each in (first, other)
    ]
    assert losses[0] != losses[1]


def test_splits_tokenized_by_another_run_are_the_same(tmp_path):
    recipe = make_recipe()
    for name in ("own", "shared"):
        tokenized: dict[Any, Any] = {} if name == "own" else TOKENIZED
        assert run(make_plan(tmp_path / name, recipe, tokenized=tokenized))
    assert_same(outcome(tmp_path / "own"), outcome(tmp_path / "shared"))


# Interrupted and resumed.


def interrupting(after: int, mode: str = "train") -> Callable[[Recipe], Any]:
    """Makes encoders that send Ctrl-C to this process in their n-th forward pass in some mode."""

    def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
        encoder, tokenizer = tiny_encoder(recipe)
        count = 0

        def hook(module: MinBert, inputs: Any) -> None:
            nonlocal count
            count += module.training == (mode == "train")
            if count == after and module.training == (mode == "train"):
                signal.raise_signal(signal.SIGINT)

        encoder.register_forward_pre_hook(hook)
        return encoder, tokenizer

    return make_encoder


def assert_resumes(folder: Path, undisturbed: Path, recipe: Recipe, *after: int, **fields: Any):
    """Interrupted in some forward passes, one after the other, and then to the end."""
    for number, forward in enumerate(after):
        handler = signal.getsignal(signal.SIGINT)
        plan = make_plan(folder, recipe, make_encoder=interrupting(forward), **fields)
        assert not run(plan, resume=number > 0)
        assert signal.getsignal(signal.SIGINT) is handler
        assert not Record(folder).is_complete
    assert run(make_plan(folder, recipe, **fields), resume=True)
    assert_same(outcome(folder), outcome(undisturbed))


HEADS_FIRST = (
    make_stage("loss-sum", epochs=1, trainable="heads", lr=1e-2),
    make_stage(epochs=2, sampling=Sampling("joint", "smallest")),
)
SAMPLED_SECOND = (
    make_stage("loss-sum", epochs=1, tasks=("quora",), sampling=Sampling("sequential")),
    make_stage(epochs=2, sampling=Sampling("annealed", "batches", 9)),
)
# Name -> stages, and the training forward passes in which to interrupt. A joint step has three, one
# a task; a step of one task has one.
INTERRUPTS: Mapping[str, tuple[tuple[Stage, ...], tuple[int, ...]]] = {
    # Of 7 steps an epoch: within the first, in its last and in the next one's first; the 13th step.
    "joint": ((make_stage(),), (1, 8, 21, 22, 38)),
    "loss-sum": ((make_stage("loss-sum"),), (5, 20)),
    "proportional": (
        (make_stage(sampling=Sampling("proportional", "batches", 9)),),
        (3, 9, 10, 16),
    ),
    "annealed": ((make_stage(sampling=Sampling("annealed", "batches", 9)),), (3, 9, 14)),
    "round-robin": ((make_stage(sampling=Sampling("round-robin", "smallest")),), (2, 9, 13)),
    "sequential": ((make_stage(sampling=Sampling("sequential")),), (2, 6, 15, 17)),
    # 7 joint steps with frozen encoder, then 2 x 3 with surgery.
    "heads first": (HEADS_FIRST, (5, 21, 23, 29, 31)),
    # 7 steps of one task, then 2 x 9 of any.
    "sampled second": (SAMPLED_SECOND, (3, 7, 10, 20)),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the same run without an interrupt, made once."""
    root = tmp_path_factory.mktemp("undisturbed")

    def make(name: str) -> Path:
        if not (root / name).exists():
            assert run(make_plan(root / name, make_recipe(*INTERRUPTS[name][0])))
        return root / name

    return make


@pytest.mark.parametrize(
    ("name", "forward"),
    [(name, forward) for name, (_, points) in INTERRUPTS.items() for forward in points],
)
def test_resumed_is_undisturbed(tmp_path, undisturbed, name, forward):
    recipe = make_recipe(*INTERRUPTS[name][0])
    assert_resumes(tmp_path, undisturbed(name), recipe, forward)


@pytest.mark.parametrize("name", ["joint", "sequential"])
def test_interrupted_again_and_again(tmp_path, undisturbed, name):
    """Each time after a step or three."""
    recipe = make_recipe(*INTERRUPTS[name][0])
    assert_resumes(tmp_path, undisturbed(name), recipe, 1, 2, 9, 1, 5)


def test_interrupted_while_evaluating(tmp_path, undisturbed):
    """The evaluation is finished and recorded once."""
    recipe = make_recipe(*INTERRUPTS["joint"][0])
    plan = make_plan(tmp_path, recipe, make_encoder=interrupting(2, "eval"))
    assert not run(plan)
    assert [event["epoch"] for event in events_of(tmp_path, "dev")] == [1]
    assert run(make_plan(tmp_path, recipe), resume=True)
    assert_same(outcome(tmp_path), outcome(undisturbed("joint")))


def test_interrupted_in_the_last_evaluation_is_complete(tmp_path, undisturbed):
    recipe = make_recipe(*INTERRUPTS["joint"][0])
    plan = make_plan(tmp_path, recipe, make_encoder=interrupting(4, "eval"))
    assert run(plan)
    assert_same(outcome(tmp_path), outcome(undisturbed("joint")))


def test_with_a_limit_of_steps(tmp_path):
    recipe = make_recipe()
    assert run(make_plan(tmp_path / "undisturbed", recipe, max_steps=10))
    assert_resumes(tmp_path / "resumed", tmp_path / "undisturbed", recipe, 14, max_steps=10)


def test_what_was_measured_after_the_state_is_forgotten(tmp_path, undisturbed):
    """A process that is killed has written more events than its last state knows of."""
    recipe = make_recipe(*INTERRUPTS["joint"][0])
    assert not run(make_plan(tmp_path, recipe, make_encoder=interrupting(5)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 4000, "losses": {}}\n{"event": "tr')
    assert run(make_plan(tmp_path, recipe), resume=True)
    assert_same(outcome(tmp_path), outcome(undisturbed("joint")))


def test_killed_before_the_first_state_starts_again(tmp_path, undisturbed):
    recipe = make_recipe(*INTERRUPTS["joint"][0])
    assert not run(make_plan(tmp_path, recipe, make_encoder=interrupting(5)))
    shutil.rmtree(tmp_path / "state")
    assert run(make_plan(tmp_path, recipe), resume=True)
    assert_same(outcome(tmp_path), outcome(undisturbed("joint")))


def test_a_second_interrupt_ends_the_process_as_usual(tmp_path):
    """The first waits for the step to be whole, which may be long; the second does not."""

    def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
        encoder, tokenizer = tiny_encoder(recipe)
        encoder.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
        return encoder, tokenizer

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(make_plan(tmp_path, make_recipe(), make_encoder=make_encoder))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda state: {}, id="empty"),
        pytest.param(lambda state: {**state, "model": {}}, id="no weights"),
        pytest.param(lambda state: {**state, "progress": {"steps": 1}}, id="other progress"),
        pytest.param(lambda state: {**state, "optimizer": {}}, id="no optimizer"),
        pytest.param(lambda state: {**state, "loader": {}}, id="no loader"),
        pytest.param(lambda state: {**state, "random": {}}, id="no random state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, damage):
    recipe = make_recipe()
    assert not run(make_plan(tmp_path, recipe, make_encoder=interrupting(5)))
    path = tmp_path / "state" / "state.pt"
    save_state(path, damage(load_state(path)))
    assert_resume_refused(tmp_path, recipe)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(
            make_recipe(heads={t: Head(("linear:D", "linear:out")) for t in TASKS}), id="heads"
        ),
        pytest.param(make_recipe(make_stage(sampling=Sampling("sequential"))), id="sampler"),
        pytest.param(make_recipe(make_stage(tasks=("sst", "sts"))), id="tasks"),
    ],
)
def test_the_state_of_another_recipe_is_refused(tmp_path, other):
    assert not run(make_plan(tmp_path, other, make_encoder=interrupting(5)))
    assert_resume_refused(tmp_path, make_recipe())


def assert_resume_refused(folder: Path, recipe: Recipe) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RecordError, match=r"state\.pt") as refused:
        run(make_plan(folder, recipe), resume=True)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# Stages.


def test_a_frozen_encoder_does_not_move(tmp_path):
    """Not by a gradient, and not by weight decay either."""
    recipe = make_recipe(make_stage(trainable="heads"), weight_decay=0.1)
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("encoder."), name


def test_the_encoder_moves_in_the_stage_after(tmp_path):
    recipe = make_recipe(*HEADS_FIRST)
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    assert not torch.equal(
        before["encoder.embeddings.word.weight"], after["encoder.embeddings.word.weight"]
    )
    events = events_of(tmp_path, "dev")
    assert [(e["stage"], e["epoch"], e["step"]) for e in events] == [
        (0, 1, 7),
        (1, 1, 10),
        (1, 2, 13),
    ]


def test_a_stage_of_some_tasks(tmp_path):
    """Their heads and the encoder learn, the others' heads stay, and all tasks are evaluated."""
    recipe = make_recipe(make_stage(tasks=("sts", "quora")))
    assert run(make_plan(tmp_path, recipe))
    before, after = initial_weights(recipe), weights_of(tmp_path)
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert {"sts", "quora", "embeddings"} <= moved
    assert "sst" not in moved
    assert set(events_of(tmp_path, "end")[0]["metrics"]) == set(TASKS)
    assert set(events_of(tmp_path, "train")[0]["losses"]) == {"sts", "quora"}


def test_the_losses_of_a_stage(tmp_path, monkeypatch):
    """A stage may train a task on another loss than the recipe's."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = make_recipe(make_stage(losses={"sts": "cosine-mse"}))
    assert run(make_plan(tmp_path, recipe, max_steps=1))
    training = Training(make_plan(tmp_path / "by hand", recipe))
    step = dict(next(steps_of(training, 0)))
    expected = {}
    for task in TASKS:  # in this order, for the dropout
        outputs, labels = training.model(step[task]), step[task].labels
        loss = (
            ((outputs - labels / 2.5 + 1) ** 2).mean()
            if task == "sts"
            else by_hand(outputs, labels, task)
        )
        expected[task] = loss.item()
    assert events_of(tmp_path, "train")[0]["losses"] == pytest.approx(expected, rel=1e-6)


STEPS = {
    ("joint", "smallest", None): (3, {"sst": 24, "quora": 24, "sts": 24}),
    ("joint", "largest", None): (7, {"sst": 56, "quora": 56, "sts": 56}),
    ("joint", "batches", 2): (2, {"sst": 16, "quora": 16, "sts": 16}),
    ("joint", "batches", 6): (6, {"sst": 48, "quora": 48, "sts": 48}),
    ("round-robin", "smallest", None): (9, {"sst": 24, "quora": 24, "sts": 24}),
    ("round-robin", "largest", None): (21, {"sst": 56, "quora": 56, "sts": 56}),
    ("round-robin", "batches", 4): (4, {"sst": 16, "quora": 8, "sts": 8}),
    ("proportional", "smallest", None): (9, None),
    ("proportional", "batches", 5): (5, None),
    ("annealed", "largest", None): (21, None),
    ("sequential", "smallest", None): (15, {"sst": 40, "quora": 56, "sts": 24}),
}


@pytest.mark.parametrize("sampling", STEPS, ids=lambda s: "-".join(str(x) for x in s if x))
def test_steps_of_an_epoch(tmp_path, sampling):
    num_steps, samples = STEPS[sampling]
    seen = dict.fromkeys(TASKS, 0)

    class Counting(MultiTaskModel):
        def forward(self, batch):
            if self.training:
                seen[batch.task] += len(batch)
            return super().forward(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MultiTaskModel", Counting)
        recipe = make_recipe(make_stage(sampling=Sampling(*sampling), epochs=1))
        assert run(make_plan(tmp_path, recipe))
    assert [event["step"] for event in events_of(tmp_path, "dev")] == [num_steps]
    if samples is None:
        assert sum(seen.values()) == 8 * num_steps
    else:
        assert seen == samples


def test_a_batch_that_is_not_full(tmp_path):
    """The last batch of a pass may be smaller, and its examples are counted."""
    stage = make_stage(
        epochs=1, sampling=Sampling("sequential"), batch_size={"sst": 12, "quora": 30, "sts": 24}
    )
    assert run(make_plan(tmp_path, make_recipe(stage)))
    (end,) = events_of(tmp_path, "end")
    assert end["step"] == 4 + 2 + 1
    state = load_state(tmp_path / "state" / "state.pt")
    assert state["progress"]["samples"] == 40 + 56 + 24


@pytest.mark.parametrize(
    ("max_steps", "epochs"), [(1, [1]), (5, [5]), (7, [7]), (9, [7, 9]), (14, [7, 14])]
)
def test_max_steps(tmp_path, max_steps, epochs):
    """Ends a run after so many steps, whatever the epochs, and with an evaluation."""
    assert run(make_plan(tmp_path, make_recipe(), max_steps=max_steps))
    assert [event["step"] for event in events_of(tmp_path, "dev")] == epochs
    (end,) = events_of(tmp_path, "end")
    assert (end["step"], end["epochs"]) == (max_steps, len(epochs))


def test_max_steps_beyond_the_recipe(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(), max_steps=1000))
    assert events_of(tmp_path, "end")[0]["step"] == 14


def test_max_steps_ends_the_stages_too(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(*HEADS_FIRST), max_steps=7))
    assert [(e["stage"], e["step"]) for e in events_of(tmp_path, "dev")] == [(0, 7)]


def test_max_steps_counts_over_the_stages(tmp_path):
    assert run(make_plan(tmp_path, make_recipe(*HEADS_FIRST), max_steps=8))
    assert [(e["stage"], e["step"]) for e in events_of(tmp_path, "dev")] == [(0, 7), (1, 8)]


def test_no_epoch_at_all(tmp_path):
    """The untrained model is evaluated once."""
    recipe = make_recipe(make_stage(epochs=0))
    assert run(make_plan(tmp_path, recipe))
    (end,) = events_of(tmp_path, "end")
    assert end["step"] == 0
    assert set(end["metrics"]) == set(TASKS)
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    before = initial_weights(recipe)
    assert all(torch.equal(found[name], before[name]) for name in before)


# What is kept, and recorded.

# Epoch -> metrics of a scripted evaluation. The best of the means is the first, of the normalised
# means the second, and of SST the third, which equals the fourth.
SCRIPT = (
    {"sst": 0.5, "quora": 0.5, "sts": 0.9},
    {"sst": 0.6, "quora": 0.6, "sts": 0.6},
    {"sst": 0.7, "quora": 0.3, "sts": 0.1},
    {"sst": 0.7, "quora": 0.2, "sts": -0.2},
)


@pytest.mark.parametrize(
    ("selection", "kept"),
    [("mean", 1), ("normalised", 2), ("last", 4), ("sst", 3), ("quora", 2), ("sts", 1)],
)
def test_selection(tmp_path, monkeypatch, selection, kept):
    weights: list[dict[str, Tensor]] = []  # at each evaluation

    def scripted(model, batches, device, precision, processes):
        (task,) = {batch.task for batch in batches}
        if task == TASKS[0]:
            weights.append({name: x.clone() for name, x in model.state_dict().items()})
        epoch = len(weights)
        return Evaluation([float(epoch)] * NUM_DEV, [1.0] * NUM_DEV, SCRIPT[epoch - 1][task], {})

    monkeypatch.setattr(selections, "evaluate", scripted)
    stage = make_stage(epochs=4, sampling=Sampling("joint", "batches", 1))
    recipe = make_recipe(stage, selection=selection)
    assert run(make_plan(tmp_path, recipe))
    (end,) = events_of(tmp_path, "end")
    assert end["best_epoch"] == kept
    assert end["metrics"] == SCRIPT[kept - 1]
    assert end["mean"] == pytest.approx(overall_mean(SCRIPT[kept - 1]))
    assert end["normalised"] == pytest.approx(overall_normalised(SCRIPT[kept - 1]))
    best = [event["epoch"] for event in events_of(tmp_path, "dev") if event["best"]]
    assert best[-1] == kept
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for number, each in enumerate(weights, start=1):
        is_kept = all(torch.equal(saved[name], each[name]) for name in each)
        assert is_kept == (number == kept)
    for task in TASKS:
        rows = (tmp_path / "predictions" / f"{task}-dev.csv").read_text().splitlines()[1:]
        assert {row.split(",")[1] for row in rows} == {str(kept)}


def test_the_checkpoint_gives_the_recorded_metrics(tmp_path):
    """What is on the disk, loaded into a new model, predicts what the record says."""
    recipe = make_recipe()
    assert run(make_plan(tmp_path, recipe))
    training = Training(make_plan(tmp_path / "new", recipe, seed=99))
    load_model(tmp_path / "model.safetensors", training.model)
    (end,) = events_of(tmp_path, "end")
    for task in TASKS:
        batches = evaluation_batches(training.splits[task, "dev"], selections.EVALUATION_BATCH)
        found = evaluate(training.model, batches, CPU, nullcontext)
        assert found.metric == end["metrics"][task]
        rows = (tmp_path / "predictions" / f"{task}-dev.csv").read_text().splitlines()[1:]
        examples = CORPUS.splits[task, "dev"].examples
        assert [row.split(",")[0] for row in rows] == [example.id for example in examples]
        assert [float(row.split(",")[2]) for row in rows] == [e.label for e in examples]
        predictions = [float(row.split(",")[1]) for row in rows]
        assert predictions == pytest.approx(found.predictions, rel=1e-5)


def test_events(tmp_path):
    assert run(make_plan(tmp_path, make_recipe()))
    events = list(Record(tmp_path).events())
    kinds = [event["event"] for event in events]
    assert kinds == ["data"] * 6 + ["train", "dev"] + ["train"] * 2 + ["dev", "end"]
    for task in TASKS:
        part, dev = (e for e in events[:6] if e["task"] == task)
        assert (part["split"], part["examples"], part["skipped"]) == ("train", SIZES[task], 0)
        assert (dev["split"], dev["examples"], dev["skipped"]) == ("dev", NUM_DEV, 0)
        labels = [example.label for example in CORPUS.splits[task, "dev"].examples]
        most = max(labels.count(label) for label in labels) / len(labels)
        assert dev["constant_metric"] == pytest.approx(0 if task == "sts" else most)
    trained = [event for event in events if event["event"] == "train"]
    assert [(e["epoch"], e["step"], e["samples"]) for e in trained] == [
        (1, 4, 96),
        (2, 8, 192),
        (2, 12, 288),
    ]
    seconds = [event["seconds"] for event in events if "seconds" in event]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    for event in trained:
        assert event["norm_before"] > 0
        assert event["norm_after"] > 0
    for event in events:
        if event["event"] == "dev":
            assert event["eval_samples"] == 3 * NUM_DEV
            assert event["mean"] == pytest.approx(overall_mean(event["metrics"]))
            assert event["normalised"] == pytest.approx(overall_normalised(event["metrics"]))
    end = events[-1]
    assert end["samples_per_second"] == pytest.approx(14 * 24 / end["train_seconds"], rel=0.05)
    assert end["eval_samples_per_second"] > 0


def test_losses_of_an_event_are_means_since_the_last_one(tmp_path, monkeypatch):
    recipe = make_recipe()
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    assert run(make_plan(tmp_path / "each", recipe, max_steps=6))
    monkeypatch.setattr(train, "LOG_EVERY", 3)
    assert run(make_plan(tmp_path / "three", recipe, max_steps=6))
    each = [event["losses"] for event in events_of(tmp_path / "each", "train")]
    three = [event["losses"] for event in events_of(tmp_path / "three", "train")]
    for number, found in enumerate(three):
        for task in TASKS:
            steps = [losses[task] for losses in each[3 * number : 3 * number + 3]]
            assert found[task] == pytest.approx(sum(steps) / 3, rel=1e-6)


def test_config_and_environment(tmp_path):
    recipe = make_recipe(*SAMPLED_SECOND, grad_clip=1.0)
    assert run(make_plan(tmp_path, recipe, max_steps=1))
    config = json.loads((tmp_path / "config.json").read_text())
    assert Recipe.from_dict(config["recipe"]) == recipe
    assert json.loads((tmp_path / "environment.json").read_text())["torch"] == torch.__version__


# What this version cannot run.


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (
            lambda: make_recipe(losses={"sst": "cross-entropy", "quora": "bce", "sts": "mnr"}),
            "losses.sts",
        ),
        (lambda: make_recipe(losses={"sst": "bce", "quora": "bce", "sts": "mse"}), "losses.sst"),
        (lambda: make_recipe(losses={"sst": "mse", "quora": "bce", "sts": "mse"}), "losses.sst"),
        (
            lambda: make_recipe(
                losses={"sst": "cross-entropy", "quora": "cross-entropy", "sts": "mse"}
            ),
            "losses.quora",
        ),
        (lambda: make_recipe(make_stage(losses={"sts": "mnr"})), "losses.sts"),
        (lambda: make_recipe(make_stage(), make_stage(losses={"sts": "mnr"})), "losses.sts"),
        (
            lambda: make_recipe(regularisers=(Regulariser("smart", {"strength": 1.0}),)),
            "regularisers",
        ),
        (
            lambda: make_recipe(pairs={"quora": "joint-sep", "sts": "siamese-cos"}),
            "heads.sts.output",
        ),
        (lambda: make_recipe(selection="cfimdb"), "selection"),
        (
            lambda: make_recipe(make_stage(trainable="heads"), id="smet-walker/v3-cosine-pcgrad"),
            "sts",  # whose head has nothing to train
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path, recipe, field):
    folder = tmp_path / "out" / "run"
    with pytest.raises(RecipeError, match=field) as refused:
        run(make_plan(folder, recipe()))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_inputs_longer_than_the_encoder_takes_are_refused_before_anything_is_written(tmp_path):
    def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
        _, tokenizer = tiny_encoder(recipe)
        config = EncoderConfig(tokenizer.get_vocab_size(), 8, 1, 2, 8, max_positions=10)
        return MinBert(config), tokenizer

    with pytest.raises(ValueError, match=r"max_length|max_positions"):
        run(make_plan(tmp_path / "run", make_recipe(), make_encoder=make_encoder))
    assert not (tmp_path / "run").exists()


# Options.


def gradients_of(recipe: Recipe, folder: Path) -> list[Tensor]:
    """The gradient of the whole model as AdamW gets it, in every step."""
    found: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if type(optimizer) is torch.optim.AdamW:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
            found.append(torch.cat([g.flatten() for g in grads if g is not None]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        assert run(make_plan(folder, recipe, max_steps=3))
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("method", ["pcgrad", "loss-sum"])
def test_the_combined_gradient_is_clipped(tmp_path, method):
    stage = make_stage(method)
    free = gradients_of(make_recipe(stage), tmp_path / "free")
    clipped = gradients_of(make_recipe(stage, grad_clip=0.01), tmp_path / "clipped")
    assert len(free) == len(clipped) == 3
    assert min(grad.norm() for grad in free) > 0.1
    assert [grad.norm().item() for grad in clipped] == pytest.approx([0.01] * 3, rel=1e-3)
    # In the first step the weights are equal still.
    torch.testing.assert_close(clipped[0] / clipped[0].norm(), free[0] / free[0].norm())


def test_a_high_limit_clips_nothing(tmp_path):
    for name, limit in (("none", None), ("high", 1e6)):
        assert run(make_plan(tmp_path / name, make_recipe(grad_clip=limit)))
    assert_same(weights_of(tmp_path / "high"), weights_of(tmp_path / "none"))


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_the_mean_is_the_sum_divided_by_the_tasks(tmp_path, scope):
    """On the encoder; a head has its gradient from one task."""
    grads = {}
    for reduction in ("sum", "mean"):
        recipe = make_recipe(make_stage(reduction=reduction, scope=scope))
        grads[reduction] = gradients_of(recipe, tmp_path / reduction)[0]
    weights = initial_weights(make_recipe())
    num_heads = sum(x.numel() for name, x in weights.items() if name.startswith("heads."))
    total, mean = (grads[reduction][:-num_heads] for reduction in ("sum", "mean"))
    assert total.norm() > 0.1
    torch.testing.assert_close(mean * len(TASKS), total)


def test_every_sample_of_the_same_weight(tmp_path):
    """The gradient of the sum over all samples, whichever task has how many of them."""
    sizes = {"sst": 8, "quora": 12, "sts": 4}
    calm = {"encoder_dropout": 0.0, "head_dropout": 0.0}
    recipe = make_recipe(make_stage("loss-sum", batch_size=sizes, weighting="sample"), **calm)
    training = Training(make_plan(tmp_path / "by hand", recipe))
    (step, *_) = steps_of(training, 0)
    for task, batch in step:
        assert len(batch) == sizes[task]
        # Times 3 tasks / 24 samples: a task of the average size keeps its mean.
        (by_hand(training.model(batch), batch.labels, task) * len(batch) * 3 / 24).backward()
    grads = [p.grad.flatten() for p in training.model.parameters() if p.grad is not None]
    found = gradients_of(recipe, tmp_path / "run")[0]
    torch.testing.assert_close(found, torch.cat(grads))


def test_scopes_differ(tmp_path):
    found = [
        gradients_of(make_recipe(make_stage(scope=scope)), tmp_path / scope)[0]
        for scope in ("shared", "all")
    ]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("method", ["pcgrad", "loss-sum"])
def test_bf16(tmp_path, method):
    """Activations in bf16, weights in float32, losses near those of float32."""
    recipe = make_recipe(make_stage(method), encoder_dropout=0.0, head_dropout=0.0)
    for precision in ("fp32", "bf16"):
        assert run(make_plan(tmp_path / precision, recipe, precision=precision))
    losses = {}
    for precision in ("fp32", "bf16"):
        assert {x.dtype for x in weights_of(tmp_path / precision).values()} == {torch.float32}
        losses[precision] = events_of(tmp_path / precision, "train")[0]["losses"]
        assert all(math.isfinite(loss) for loss in losses[precision].values())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


@pytest.mark.parametrize("id", ["smet-walker/v1-dropout-0.3", "smet-walker/v3-cosine-pcgrad"])
def test_siamese_recipes_run(tmp_path, id):
    recipe = make_recipe(make_stage(), id=id)
    assert recipe.pairs["sts"] == "siamese-cos"
    assert run(make_plan(tmp_path, recipe, max_steps=4))
    assert Record(tmp_path).is_complete
