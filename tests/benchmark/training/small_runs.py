"""Runs of a few steps on a small corpus, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.multitask_bert.data.synthetic import make_corpus
from benchmarks.multitask_bert.model.tiny import settings, tiny_encoder
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import (
    Recipe,
    Sampling,
    Stage,
)
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training.checkpoint import load_state
from benchmarks.multitask_bert.training.loop import Training
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
    "peak_bytes",
    "samples_per_second",
    "eval_samples_per_second",
}


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


HEADS_FIRST = (
    make_stage("loss-sum", epochs=1, trainable="heads", lr=1e-2),
    make_stage(epochs=2, sampling=Sampling("joint", "smallest")),
)
SAMPLED_SECOND = (
    make_stage("loss-sum", epochs=1, tasks=("quora",), sampling=Sampling("sequential")),
    make_stage(epochs=2, sampling=Sampling("annealed", "batches", 9)),
)
