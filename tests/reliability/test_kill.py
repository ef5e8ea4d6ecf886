"""Runs that were killed, at random moments and inside every kind of write, against undisturbed
ones: bit for bit the same weights, metrics, predictions and last state."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.records.record import Record
from tests.reliability.commands import Commands
from tests.reliability.outcome import outcome

RECIPE = "smet-walker/v2-dropout-0.3"
SEED = 11711
ARGUMENTS = (
    *("run", RECIPE, "--seed", str(SEED), "--epochs", "3"),
    *("--set", "batch_size=8", "--set", "encoder_dropout=0.1"),  # a lost random state would show
)
NUM_KILLS = 20


@dataclass
class Undisturbed:
    outcome: dict[str, Any]
    seconds: float
    num_moments: int


def folder_of(out: Path) -> Path:
    return out / RECIPE / f"seed-{SEED}"


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    status, process = commands.run(*ARGUMENTS, "--out", out / "runs", count=str(out / "count"))
    assert status == 0, process.err
    seconds = time.monotonic() - started
    return Undisturbed(outcome(folder_of(out / "runs")), seconds, int((out / "count").read_text()))


def finish(commands: Commands, out: Path, undisturbed: Undisturbed) -> str:
    """Resumes to the end, and compares; gives what was said on stderr."""
    status, process = commands.run(*ARGUMENTS, "--out", out, "--resume")
    assert status == 0, process.err
    found = outcome(folder_of(out))
    assert found.keys() == undisturbed.outcome.keys()
    for name, expected in undisturbed.outcome.items():
        assert found[name] == expected, name
    return process.err


def test_killed_at_random_moments(commands, tmp_path, undisturbed):
    """Again and again until the run is complete, and then another run."""
    draw = random.Random(5)
    num_killed = num_runs = num_steps = 0
    while num_killed < NUM_KILLS:
        out = tmp_path / str(num_runs)
        process = commands.start(*ARGUMENTS, "--out", out, "--resume")
        time.sleep(draw.uniform(0.1, 0.9) * undisturbed.seconds)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            num_killed += 1
            num_steps += any(event["event"] == "train" for event in Record(folder_of(out)).events())
        if num_killed == NUM_KILLS or Record(folder_of(out)).is_complete:
            finish(commands, out, undisturbed)
            num_runs += 1
    assert num_steps > 0, "some kills must come while the run trains"


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_killed_while_writing(commands, tmp_path, undisturbed, number):
    """With half of a file written, before and after it is on the disk and has its name."""
    share = (number + random.Random(number).random()) / NUM_KILLS
    moment = 1 + int(share * undisturbed.num_moments)
    status, _ = commands.run(*ARGUMENTS, "--out", tmp_path, kill_at=moment)
    assert status == -signal.SIGKILL
    finish(commands, tmp_path, undisturbed)


def test_killed_at_every_moment_of_one_checkpoint(commands, tmp_path, undisturbed):
    """The last checkpoint's: those where only the previous state has its name are among them."""
    said = []
    for before_end in range(1, 12):
        out = tmp_path / str(before_end)
        moment = undisturbed.num_moments - before_end
        status, _ = commands.run(*ARGUMENTS, "--out", out, kill_at=moment)
        assert status == -signal.SIGKILL
        said.append(finish(commands, out, undisturbed))
    fallbacks = [text for text in said if text]
    assert 0 < len(fallbacks) < len(said)
    for text in fallbacks:
        (line,) = text.splitlines()
        assert "found none; went on from" in line
        assert "previous.pt, step" in line


def test_killed_in_the_evaluation_of_all_batches(commands, tmp_path):
    """A recipe that evaluates on a few batches while training does so on all of them at the end."""
    arguments = (
        *("run", "jiang-yu/finetune-3", "--max-steps", "6", "--set", "batch_size=8"),
        *("--set", 'dev_batches={"sst": 1, "quora": 1, "sts": 1}'),
    )
    count = tmp_path / "count"
    status, process = commands.run(*arguments, "--out", tmp_path / "whole", count=str(count))
    assert status == 0, process.err
    num_moments = int(count.read_text())
    for moment in range(num_moments - 14, num_moments + 1, 3):
        out = tmp_path / str(moment)
        assert commands.run(*arguments, "--out", out, kill_at=moment)[0] == -signal.SIGKILL
        assert commands.run(*arguments, "--out", out, "--resume")[0] == 0
        (found,), (expected,) = (
            [path.parent for path in each.rglob("config.json")]
            for each in (out, tmp_path / "whole")
        )
        assert outcome(found) == outcome(expected)
