"""States that somebody has changed, with a checksum that is right, against the rule that each ends
in a run or in one line: whatever is put in the place of whatever a run saves."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.multitask_bert.data.synthetic import make_corpus
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.tiny import settings, tiny_encoder
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import Recipe, Regulariser, Stage
from benchmarks.multitask_bert.records.record import RecordError
from benchmarks.multitask_bert.training.checkpoint import load_state, save_state
from benchmarks.multitask_bert.training.loop import Training, run
from benchmarks.multitask_bert.training.plan import Plan

TASKS = ("sst", "quora", "sts")
CORPUS = make_corpus(sizes={(t, s): n for t in TASKS for s, n in (("train", 24), ("dev", 6))})
TOKENIZED: dict[Any, Any] = {}
STEPS = 8  # of a run; its state is that after six

GONE = object()
ANYTHING: dict[str, Any] = {
    "gone": GONE,
    "none": None,
    "true": True,
    "below zero": -1,
    "large": 10**30,
    "endless": 10**5000,
    "a fraction": 0.5,
    "not a number": math.nan,
    "infinite": math.inf,
    "text": "x",
    "a list": [],
    "a mapping": {},
    "a list of lists": [[1], {}],
    "a mapping of numbers": {1: 2},
    "numbers": torch.zeros(3),
    "a number": torch.tensor(7),
    "much": torch.zeros(1).expand(10**12),
    "sparse": torch.eye(2).to_sparse(),
    "complex": torch.zeros(2, dtype=torch.complex64),
    "nowhere": torch.zeros(2, device="meta"),
}


def make_recipe() -> Recipe:
    """With all that a state can hold: ended encoders, surgery, a past model, dropout."""
    recipe = find("smet-walker/v2-dropout-0.3")
    recipe, _ = override(recipe, settings(recipe))
    size = dict.fromkeys(TASKS, 8)
    first = Stage(epochs=1, batch_size=size, start="initial")
    second = Stage(epochs=3, batch_size=size, method="pcgrad", start="initial")
    third = Stage(epochs=1, batch_size=size, start="average")
    past = Regulariser("bregman", {})
    return replace(recipe, stages=(first, second, third), regularisers=(past,), head_dropout=0.1)


def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
    _, tokenizer = tiny_encoder(recipe)
    config = EncoderConfig(tokenizer.get_vocab_size(), 8, 1, 2, 8, max_positions=64)
    return MinBert(config), tokenizer


def make_plan(folder: Path, recipe: Recipe) -> Plan:
    return Plan(
        recipe=recipe,
        corpus=CORPUS,
        make_encoder=make_encoder,
        folder=folder,
        seed=3,
        device=torch.device("cpu"),
        tokenized=TOKENIZED,
        max_steps=STEPS,
    )


def places(content: Any, few: int = 2) -> Iterator[tuple[Any, ...]]:
    """Where something can be put: every entry, and of many alike a few."""
    if isinstance(content, dict):
        alike = [key for key, value in content.items() if isinstance(value, Tensor)]
        left_out = set(alike[few:]) | {
            key for key in content if isinstance(key, int) and key >= few
        }
        for key in content:
            if key not in left_out:
                yield (key,)
                yield from ((key, *path) for path in places(content[key]))
    elif isinstance(content, list | tuple):
        for number in range(min(len(content), few)):
            yield (number,)
            yield from ((number, *path) for path in places(content[number]))


def changed(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A state with something else in one place."""
    state = copy.deepcopy(state)
    *above, last = path
    place: Any = state
    for key in above:
        if isinstance(place[key], tuple):
            place[key] = list(place[key])
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return state


class Interrupted:
    """A run that was interrupted after six steps, three of them with surgery."""

    def __init__(self, folder: Path) -> None:
        training = Training(make_plan(folder, make_recipe()))
        training.begin(resume=False)
        assert not training.finish(lambda: training.progress.step >= 6)
        self.folder = folder
        self.state = load_state(folder / "state" / "state.pt")

    def resumed(self, folder: Path, state: dict[str, Any]) -> str | None:
        """What is said of a state: None where the run goes on from it to its end."""
        shutil.copytree(self.folder, folder)
        (folder / "state" / "previous.pt").unlink()
        save_state(folder / "state" / "state.pt", state)
        try:
            assert run(make_plan(folder, make_recipe()), resume=True)
        except RecordError as error:
            return str(error)
        return None

    def takes(self, folder: Path, path: tuple[Any, ...], value: Any) -> bool:
        """Whether its state with something else in one place is taken; else one line says why."""
        said = self.resumed(folder, changed(self.state, path, value))
        if said is not None:
            assert said.splitlines() == [said], path
            assert len(said) < 1500
        return said is None


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Interrupted:
    return Interrupted(tmp_path_factory.mktemp("interrupted"))


def test_an_unchanged_state_is_taken(tmp_path, interrupted):
    assert interrupted.resumed(tmp_path / "run", interrupted.state) is None


def test_anything_in_any_place(tmp_path, interrupted):
    """One draw for each place."""
    draw = Random(7)
    taken = []
    for number, path in enumerate(places(interrupted.state)):
        name = draw.choice(list(ANYTHING))
        if interrupted.takes(tmp_path / str(number), path, ANYTHING[name]):
            taken.append(path)
    assert 0 < len(taken) < number / 2


OPTIMIZER = ("optimizer", "gradsurgery")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("progress", "stage"), 3),
        (("progress", "epoch"), 4),
        (("progress", "step"), 10**400),
        (("progress", "seconds"), -1.0),
        (("progress", "best_metrics"), {"sst": 0.5}),
        (("progress", "best_metrics", "sst"), "high"),
        (("progress", "best_legacy"), {"sst": {"x": "y"}}),
        (("loss_counts", "sst"), 0),
        (("loss_counts",), {}),
        (("loss_sums", "sst"), torch.zeros(2)),
        (("loss_sums", "sst"), GONE),
        (("ended_encoders",), []),
        (("ended_encoders", 0), {}),
        (("others",), [{}]),
        (("loader", "loaders", "sst", "batches"), 4),
        (("loader", "loaders", "sst", "pass"), 10**5000),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(1).expand(10**12)),
        (("optimizer", "state", 0, "exp_avg_sq"), GONE),
        (("optimizer", "state", 0, "step"), 3),
        (("optimizer", "state", 999), {}),
        (("optimizer", "param_groups", 0, "params"), [1, 0]),
        ((*OPTIMIZER, "in_rows"), [999]),
        ((*OPTIMIZER, "num_rows"), 10**12),
        ((*OPTIMIZER, "num_steps"), 10**30),
        ((*OPTIMIZER, "last_weights"), {0: "heavy"}),
        ((*OPTIMIZER, "last_shared"), {0: 3}),
        ((*OPTIMIZER, "diagnostics", "met"), torch.zeros(9, 9, dtype=torch.int64)),
        ((*OPTIMIZER, "diagnostics", "conflicted"), torch.zeros(3, dtype=torch.int64)),
    ],
    ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_what_would_end_a_step_is_refused_before_the_first(tmp_path, interrupted, path, value):
    assert not interrupted.takes(tmp_path / "run", path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(
            (("param_groups", 0, n), "fast")
            for n in ("lr", "betas", "eps", "weight_decay", "fused")
        ),
        (("gradsurgery", "last_weights"), {0: torch.zeros(1)}),  # of surgery in some steps only
    ],
    ids=lambda x: x[-1] if isinstance(x, tuple) else "",
)
def test_the_recipe_says_what_the_optimizer_does(tmp_path, interrupted, path, value):
    """Whatever a state has in its place; the run is the same."""
    assert interrupted.resumed(tmp_path / "own", interrupted.state) is None
    assert interrupted.takes(tmp_path / "other", ("optimizer", *path), value)
    found = [load_state(tmp_path / each / "state/state.pt")["model"] for each in ("own", "other")]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
