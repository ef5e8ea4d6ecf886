"""Runs on two processes that torchrun started, against the same runs in one process, against runs
that nobody disturbed, and against the one line and the one folder that they are to leave.

Starting two processes takes longer than a run: one start does all commands that can share a process
group (`torchrun_worker.py`), and starts of their own are for what ends processes.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.multitask_bert.records.lock import alone_in
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training.checkpoint import load_state
from tests.benchmark.training.torchrun_worker import NUM_DEV, run
from tests.paths import ROOT
from tests.reliability.outcome import FILES, TIMES, outcome

LOSS_SUM, PCGRAD = "smet-walker/general-linear-loss-sum", "smet-walker/v2-dropout-0.3"
SECONDS = 400  # all commands take 40 on an idle machine

# What must come to the same in one process and in two, since nothing is drawn but batches.
CALM = ("encoder_dropout=0.0", "head_dropout=0.0", "lr=1e-3")
SMART = """regularisers=[{"name": "smart", "options": {
    "weight": 5.0, "noise_variance": 0.25, "epsilon": 0.1, "step_size": 50.0, "num_steps": 2
}}]"""
BREGMAN = 'regularisers=[{"name": "bregman", "options": {"momentum": 0.5}}]'
ALIKE: dict[str, tuple[str, ...]] = {
    "loss sum": (LOSS_SUM, "batch_size=8"),
    "loss sum, not monitored": (LOSS_SUM, "batch_size=8", "monitored=false"),
    "PCGrad": (PCGRAD, "batch_size=8"),
    "3 and 2": (PCGRAD, "batch_size=5"),
    "3 and 2 of the loss sum": (LOSS_SUM, "batch_size=5"),
    "one and none": (PCGRAD, "batch_size=5", "batch_size.sst=1"),
    "a task a step of the loss sum": (LOSS_SUM, "batch_size=1", "sampling.name=round-robin"),
    "clipped": (PCGRAD, "batch_size=8", "grad_clip=0.05"),
    "samples of one weight": (LOSS_SUM, "batch_size.sts=16", "weighting=sample"),
    "negatives in the batch": ("benton/equit-cosim-mnr", "batch_size=5"),
    "padding inside": (PCGRAD, "batch_size=5", "pairs.sts=joint-raw-ids"),
    "near the past": (PCGRAD, "batch_size=5", BREGMAN),
    "smooth": (PCGRAD, "batch_size=5", SMART),
    "frozen layers": (PCGRAD, "batch_size=5", "frozen_layers=1"),
    "shortened evaluation": (PCGRAD, "batch_size=8", 'dev_batches={"quora": 1}'),
    "stages": ("chada-jolly/novel-cs-gs", "batch_size=16", "epochs=1"),
}
WITH_DROPOUT = ("run", PCGRAD, "--epochs", "3", "--set", "batch_size=8")
WITH_DROPOUT += ("--set", "encoder_dropout=0.1")


def alike(name: str) -> dict[str, Any]:
    """The command of one of ``ALIKE``, without its ``--out``."""
    recipe, *settings = ALIKE[name]
    fields = [part for setting in (*CALM, *settings) for part in ("--set", setting)]
    return {"arguments": ["run", recipe, "--max-steps", "12", *fields], "steady": True}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Starts torchrun with two processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m")
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as behind a terminal's prompt
    )


def start_commands(folder: Path, commands: list[dict[str, Any]]) -> subprocess.Popen[str]:
    folder.mkdir()
    (folder / "commands.json").write_text(json.dumps(commands))
    return start("tests.benchmark.training.torchrun_worker", folder)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Waits for its end, or ends it: exit status and what was printed."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, out, err


def run_folder(out: Path) -> Path:
    (config,) = out.rglob("config.json")
    return config.parent


class Together:
    """What became of the commands that shared a start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: list[str] = []
        self.commands: list[dict[str, Any]] = []

    def add(self, name: str, out: str, *arguments: str, **command: Any) -> None:
        self.names.append(name)
        given = [*arguments, *(["--out", str(self.root / out)] if out else [])]
        self.commands.append({"arguments": given, **command})

    def told(self, name: str) -> list[dict[str, Any]]:
        """Of each process: exit status and what it printed."""
        number = self.names.index(name)
        paths = [self.root / "told" / f"{number}.{process}.json" for process in range(2)]
        for path in paths:
            assert path.exists(), f"{name}: no end within {SECONDS} s"
        return [json.loads(path.read_text()) for path in paths]

    def folder(self, out: str) -> Path:
        return run_folder(self.root / out)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def ctrl_c(root: Path) -> tuple[int, str, str]:
    """Ctrl-C at a terminal, which every process gets, and a second time from torchrun."""
    arguments = [*WITH_DROPOUT, "--out", str(root / "ctrl-c")]
    command = {"arguments": arguments, "trouble": (0, "slow", 0)}
    process = start_commands(root / "told-ctrl-c", [command])
    wait_for_training(root / "ctrl-c", process)
    os.killpg(process.pid, signal.SIGINT)
    return ended(process)


@pytest.fixture(scope="module")
def killed(root: Path) -> tuple[int, str, str]:
    """One process is killed in the second epoch, of 5 steps, of its run."""
    arguments = [*WITH_DROPOUT, "--out", str(root / "killed")]
    command = {"arguments": arguments, "trouble": (1, "SIGKILL", 3 * 7)}
    return ended(start_commands(root / "told-killed", [command]))


def wait_for_training(out: Path, process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    while not any('"event": "train"' in path.read_text() for path in out.rglob("metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < SECONDS
        time.sleep(0.02)


@pytest.fixture(scope="module")
def together(root: Path, ctrl_c: object, killed: object) -> Iterator[Together]:
    found = Together(root)
    for name in ALIKE:
        command = alike(name)
        found.add(name, name, *command.pop("arguments"), **command)
    found.add("undisturbed", "undisturbed", *WITH_DROPOUT)
    found.add("again", "again", *WITH_DROPOUT)
    for name, trouble in {"SIGTERM": (1, "SIGTERM", 8), "SIGINT": (0, "SIGINT", 16)}.items():
        found.add(name, name, *WITH_DROPOUT, trouble=trouble)
        found.add(f"{name} resumed", name, *WITH_DROPOUT, "--resume")
    for name in ("ctrl-c", "killed"):
        found.add(f"{name} resumed", name, *WITH_DROPOUT, "--resume")
    found.add("interrupted", "interrupted", *WITH_DROPOUT, trouble=(1, "SIGTERM", 8))
    found.add("refuse", "refuse", *WITH_DROPOUT, trouble=(1, "refuse", 8))
    found.add("crash", "crash", *WITH_DROPOUT, trouble=(1, "crash", 8))
    found.add("no space", "no space", *WITH_DROPOUT, trouble=(0, "no space", 8))
    found.add("no space resumed", "no space", *WITH_DROPOUT, "--resume")
    two = ("run", LOSS_SUM, PCGRAD, "--max-steps", "2")
    found.add("one of two fails", "two", *two, trouble=(1, "refuse", 4))
    found.add("bad argument", "bad", "run", "--speed", "9")
    found.add("bad setting", "bad", "run", "--set", "lr=fast")
    found.add("bad device", "bad", "run", "--device", "cpu:0")
    found.add("in use", "in use", *WITH_DROPOUT)
    found.add("list", "", "list")
    alone = {"arguments": [*WITH_DROPOUT, "--out", str(root / "alone")]}
    assert run({**alone, "trouble": (0, "SIGINT", 8)})["status"] == 130
    found.add("of one process", "alone", *WITH_DROPOUT, "--resume")
    with alone_in(root / "in use" / PCGRAD / "seed-11711"):
        status, out, err = ended(start_commands(root / "told", found.commands))
    assert out == "", "what a process prints is caught"
    yield found
    assert status == 1, err  # torchrun's, for the last command's


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if name not in TIMES}
        for event in Record(folder).events()
    ]


def assert_close(found: Any, expected: Any, tolerance: float, where: str) -> None:
    """Numbers within a tolerance, everything else equal."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=where)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, tolerance, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_close(found[number], value, tolerance, f"{where}.{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def predictions_of(folder: Path, task: str) -> list[list[Any]]:
    with (folder / f"predictions/{task}-dev.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [[id, *map(float, values)] for id, *values in rows]


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_are_one(together, tmp_path, name):
    """After 12 steps in float32: the weights, and all that a run tells of itself."""
    command = alike(name)
    command["arguments"] += ["--out", str(tmp_path)]
    assert run(command)["status"] == 0
    assert [told["status"] for told in together.told(name)] == [0, 0], together.told(name)
    two, one = together.folder(name), run_folder(tmp_path)
    weights, expected = (load_state(folder / "state/state.pt")["model"] for folder in (two, one))
    assert_close(weights, expected, 1e-5, "weights")
    assert_close(events_of(two), events_of(one), 1e-3, "events")
    for task in NUM_DEV:
        found = predictions_of(two, task)
        assert len(found) == NUM_DEV[task]
        assert_close(found, predictions_of(one, task), 1e-3, task)


def test_the_smoothness_of_these_runs_matters(together):
    """Else the test above could not tell a wrong step of its ascent."""
    plain, smooth = (
        load_state(together.folder(name) / "state/state.pt")["model"]
        for name in ("3 and 2", "smooth")
    )
    assert max(float((plain[name] - smooth[name]).abs().max()) for name in plain) > 1e-3


def test_one_set_of_files(together):
    """As in one process, and written by the first: the second prints nothing at all."""
    folder = together.folder("undisturbed")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == FILES
    first, second = together.told("undisturbed")
    assert (second["out"], second["err"], first["err"]) == ("", "", "")
    assert sum("epoch" in line for line in first["out"].splitlines()) == 3
    assert len(list(Record(folder).events())) == 6 + 1 + 3 + 1  # data, train, dev, end
    config = Record(folder).read_json("config.json")
    assert (config["num_processes"], config["device"]) == (2, "2 processes on cpu")
    assert config["command"][:4] == [
        "torchrun",
        "--nproc-per-node=2",
        "-m",
        "benchmarks.multitask_bert",
    ]
    assert config["command"][4:-2] == list(WITH_DROPOUT)


def test_each_process_draws_its_own_and_the_same_again(together, tmp_path):
    """Dropout differs from that of one process, and from process to process."""
    found = [outcome(together.folder(name)) for name in ("undisturbed", "again")]
    assert found[0] == found[1]
    state = load_state(together.folder("undisturbed") / "state/state.pt")
    (other,) = state["others"]
    seeds = []
    for drawn in (state["random"]["cpu"], other["random"]["cpu"]):
        generator = torch.Generator()
        generator.set_state(drawn)
        seeds.append(generator.initial_seed())
    assert seeds[0] == 11711
    assert seeds[1] != seeds[0]
    assert run({"arguments": [*WITH_DROPOUT, "--out", str(tmp_path)]})["status"] == 0
    alone = load_state(run_folder(tmp_path) / "state/state.pt")["model"]
    assert any(not torch.equal(alone[name], state["model"][name]) for name in alone)


# Interrupted, killed, resumed.


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_ends_all_after_the_same_step(together, name):
    first, second = together.told(name)
    assert (first["status"], second["status"]) == (130, 130)
    (line,) = first["err"].splitlines()
    assert line.startswith("interrupted: ")
    assert second["err"] == ""
    assert [told["status"] for told in together.told(f"{name} resumed")] == [0, 0]
    assert outcome(together.folder(name)) == outcome(together.folder("undisturbed"))


def test_ctrl_c_leaves_a_folder_that_can_be_resumed(ctrl_c, together):
    status, _, err = ctrl_c
    assert status != 0
    for process in range(2):
        told = json.loads((together.root / f"told-ctrl-c/0.{process}.json").read_text())
        assert told["status"] == 130, err
        assert told["err"].startswith("interrupted: ") == (process == 0)
    assert [told["status"] for told in together.told("ctrl-c resumed")] == [0, 0]
    assert outcome(together.folder("ctrl-c")) == outcome(together.folder("undisturbed"))


def test_a_killed_process_ends_all_and_the_run_can_be_resumed(killed, together):
    status, _, err = killed
    assert status == 1
    assert "Signal 9 (SIGKILL)" in err
    assert [told["status"] for told in together.told("killed resumed")] == [0, 0]
    found = outcome(together.folder("killed"))
    found.pop("lock", None)  # of a process that torchrun ended; it locks nothing
    assert found == outcome(together.folder("undisturbed"))


def test_another_number_of_processes_is_refused(together):
    for told in together.told("of one process"):
        assert told["status"] == 2
    (line,) = together.told("of one process")[0]["err"].splitlines()
    assert "on 2 processes, found one on 1" in line
    assert together.told("of one process")[1]["err"] == ""
    folder = together.folder("interrupted")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = str(together.root / "interrupted")
    told = run({"arguments": [*WITH_DROPOUT, "--resume", "--out", out]})
    assert (told["status"], told["out"]) == (2, "")
    (line,) = told["err"].splitlines()
    assert "on 1 process, found one on 2" in line
    assert {path: path.read_bytes() for path in before} == before


# Errors.


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("refuse", 2, "error: process 1: must be well, found ill"),
        ("crash", 1, "error: process 1: ZeroDivisionError: once in a while"),
        ("no space", 2, "metrics.jsonl: cannot be written (No space left on device)"),
        ("bad argument", 2, "error: unrecognized arguments: --speed"),
        ("bad setting", 2, "lr=fast"),
        ("bad device", 2, "--device: must be cpu or cuda where there are 2 processes"),
        ("in use", 2, "at work in it"),
    ],
)
def test_an_error_in_one_process_ends_all_with_one_line(together, name, status, words):
    first, second = together.told(name)
    assert (first["status"], second["status"]) == (status, status)
    (line,) = first["err"].splitlines()
    assert words in line
    if name == "crash":  # somebody will want to know where
        assert second["err"].splitlines()[-1] == "ZeroDivisionError: once in a while"
    else:
        assert second["err"] == ""


def test_what_was_refused_wrote_nothing(together):
    assert not (together.root / "bad").exists()
    assert not any(path.is_file() for path in (together.root / "in use").rglob("*"))


def test_a_full_disk_of_the_first_can_be_resumed(together):
    assert [told["status"] for told in together.told("no space resumed")] == [0, 0]
    assert outcome(together.folder("no space")) == outcome(together.folder("undisturbed"))


def test_a_failing_recipe_does_not_stop_the_rest(together):
    first, second = together.told("one of two fails")
    assert (first["status"], second["status"], second["err"]) == (1, 1, "")
    failure, last = first["err"].splitlines()
    assert failure == f"error: {LOSS_SUM} seed 11711: process 1: must be well, found ill"
    assert last == f"failed: {LOSS_SUM} seed 11711"
    assert Record(together.root / "two" / PCGRAD / "seed-11711").is_complete


def test_other_commands_are_done_once(together):
    first, second = together.told("list")
    assert (first["status"], second["status"], second["out"]) == (0, 0, "")
    assert PCGRAD in first["out"]


# As it is typed.


def test_the_command_itself(tmp_path):
    """The whole built-in corpus, without anything of these tests in it."""
    arguments = ("run", PCGRAD, "--max-steps", "3", "--set", "batch_size=8", "--out", tmp_path)
    status, out, err = ended(start("benchmarks.multitask_bert", *arguments))
    assert status == 0, err
    first, *_, last = out.splitlines()
    assert first.startswith("built-in corpus: generated")
    assert last.startswith("done: ")
    assert out.count("step 3") == 1
    folder = run_folder(tmp_path)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == FILES


def test_the_command_itself_refused(tmp_path):
    """torchrun adds its own report, with the exit status of each process."""
    status, out, err = ended(start("benchmarks.multitask_bert", "run", "nobody/knows"))
    assert (status, out) == (1, "")
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert "exitcode  : 2" in err
