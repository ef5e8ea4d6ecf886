"""Resumed runs against undisturbed ones, and states of other runs against the rule of one line."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.model.kept import KeptOutputs
from benchmarks.multitask_bert.model.tiny import tiny_encoder
from benchmarks.multitask_bert.recipes.recipe import (
    Head,
    Recipe,
    Sampling,
    Stage,
)
from benchmarks.multitask_bert.records.record import Record, RecordError
from benchmarks.multitask_bert.training.checkpoint import load_state, save_state
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import (
    HEADS_FIRST,
    SAMPLED_SECOND,
    TASKS,
    assert_same,
    events_of,
    make_plan,
    make_recipe,
    make_stage,
    outcome,
)

pytestmark = pytest.mark.usefixtures("short_intervals")


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


@pytest.mark.parametrize("max_bytes", [30_000, 2**30])
def test_outputs_of_frozen_layers_are_made_again(tmp_path, max_bytes):
    """In the order in which the rest of the run needs them."""
    recipe = make_recipe(frozen_layers=1)
    assert run(make_plan(tmp_path / "undisturbed", recipe))
    kept = KeptOutputs(max_bytes)
    assert_resumes(tmp_path / "resumed", tmp_path / "undisturbed", recipe, 8, 21, kept=kept)
    assert_resumes(tmp_path / "anew", tmp_path / "undisturbed", recipe, 8)


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
